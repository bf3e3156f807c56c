package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/userns"
)

// handles keeps namespaces alive and is the way into them.
type handles struct {
	net, uts, mnt *os.File
}

func (h handles) files() []*os.File { return []*os.File{h.net, h.uts, h.mnt} }

// setNamespaces moves the calling thread, which must be locked.
func setNamespaces(files []*os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	for _, file := range files {
		if err := unix.Setns(int(file.Fd()), 0); err != nil {
			return fmt.Errorf("join %s: %w", file.Name(), err)
		}
	}
	return nil
}

// newHandles makes a network, mount and UTS namespace.
func newHandles(hostname string) (h handles, err error) {
	err = userns.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("make namespaces: %w", explain(err))
		}
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
		if err := mountHost(); err != nil {
			return err
		}
		for name, file := range map[string]**os.File{"net": &h.net, "uts": &h.uts, "mnt": &h.mnt} {
			if *file, err = os.Open("/proc/thread-self/ns/" + name); err != nil {
				return errors.Join(err, h.close())
			}
		}
		return nil
	})
	return h, err
}

// adopt makes handles of a network namespace that is there already, in the same
// mount and UTS namespace.
func (h handles) adopt(path string) (handles, error) {
	adopted := handles{}
	var err error
	if adopted.net, err = os.Open(path); err != nil {
		return handles{}, err
	}
	if adopted.uts, err = duplicate(h.uts); err == nil {
		adopted.mnt, err = duplicate(h.mnt)
	}
	if err != nil {
		return handles{}, errors.Join(err, adopted.close())
	}
	return adopted, nil
}

func duplicate(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// inner makes a network namespace in the same mount and UTS namespace and
// binds it to path there.
func (h handles) inner(path string) (inner handles, err error) {
	err = h.do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
		if err != nil {
			return err
		}
		file.Close()
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
		if err := prepareEmpty(); err != nil {
			return err
		}
		inner, err = h.adopt(path)
		return err
	})
	return inner, err
}

func (h handles) do(f func() error) error {
	return userns.OnThread(func() error {
		if err := setNamespaces(h.files()); err != nil {
			return err
		}
		return f()
	})
}

func (h handles) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	var paths []string // as other processes of the lab see them
	for _, file := range h.files() {
		paths = append(paths, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()))
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{roleJoin, strings.Join(paths, ":"), name}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	// Children of the program may hold its output open after its end.
	cmd.WaitDelay = time.Second
	return cmd
}

func (h handles) close() error {
	var errs []error
	for _, file := range h.files() {
		if file != nil {
			errs = append(errs, file.Close())
		}
	}
	return errors.Join(errs...)
}

// release kills the processes in the network namespace and closes it.
func (h handles) release() error {
	err := h.kill()
	return errors.Join(err, h.close())
}

// kill ends every process in the network namespace. A process may fork while
// this looks, hence it looks until nothing is left.
func (h handles) kill() error {
	info, err := h.net.Stat()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		left, err := processesIn(info)
		if err != nil || len(left) == 0 {
			return err
		}
		for _, pid := range left {
			unix.Kill(pid, unix.SIGKILL) // it may have just ended
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("processes survive SIGKILL")
}

// processesIn lists the processes whose network namespace is the given file.
func processesIn(network os.FileInfo) (pids []int, err error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		info, err := os.Stat(entry + "/ns/net") // fails for the dead
		if err != nil || !os.SameFile(info, network) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(entry)); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
