package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// holderFile is locked by the holder for as long as it lives, and has its
// process number in it.
const holderFile = "netns.pid"

// Descriptors that a holder gets.
const (
	lockFD   = 3
	statusFD = 4 // takes the text of an error, and ends when the namespaces are ready
)

// patience is how long another process may take to start or end a holder.
const patience = 10 * time.Second

// Open opens the namespaces that config names. The error wraps ErrUnavailable
// where this machine is in the way.
func Open(ctx context.Context, config Config) (*Namespaces, error) {
	if _, err := findEnter(); err != nil {
		return nil, err
	}
	if config.Netns != "" {
		return open(config.Netns)
	}
	if err := makeDir(config.Dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(config.Dir, holderFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of the namespace's holder: %w", err)
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		pid, held, err := holder(lock)
		if err != nil {
			return nil, err
		}
		if !held {
			return config.start(ctx, lock)
		}
		if pid != 0 {
			n, err := open(netOf(pid))
			if err == nil {
				config.Logger.Info("rootless: found the network namespace of an earlier run", "held_by", pid)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return n, err
			}
		}
		if err := pause(ctx); err != nil { // one is just starting, or ending
			return nil, fmt.Errorf("wait for the holder behind %s: %w", lock.Name(), err)
		}
	}
}

// Find opens the namespaces that a holder of the directory holds. The error
// wraps fs.ErrNotExist if there is none.
func Find(dir string) (*Namespaces, error) {
	pid, err := Holder(dir)
	if err != nil {
		return nil, err
	}
	return open(netOf(pid))
}

// Stop ends the holder of a directory and waits until it has. The namespaces
// end with the last process in them. That there is none is no error.
func Stop(ctx context.Context, dir string) error {
	pid, err := Holder(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		return fmt.Errorf("end the holder %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if _, err := Holder(dir); errors.Is(err, fs.ErrNotExist) {
			return os.Remove(filepath.Join(dir, holderFile))
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for the end of the holder %d: %w", pid, err)
		}
	}
}

func netOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// Holder is the process that holds the namespaces of a directory. The error
// wraps fs.ErrNotExist if there is none.
func Holder(dir string) (pid int, err error) {
	lock, err := os.OpenFile(filepath.Join(dir, holderFile), os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("find network namespace: %w", err)
	}
	defer lock.Close()
	pid, held, err := holder(lock)
	if err != nil {
		return 0, err
	}
	if !held || pid == 0 {
		return 0, fmt.Errorf("find network namespace: nobody holds one in %s: %w", dir, fs.ErrNotExist)
	}
	return pid, nil
}

// holder reads who holds the lock; 0 is somebody who has not said so yet. If
// nobody did, the lock is now held by this open file.
func holder(lock *os.File) (pid int, held bool, err error) {
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return 0, false, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, false, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	text := make([]byte, 32)
	n, err := lock.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, false, fmt.Errorf("read %s: %w", lock.Name(), err)
	}
	if n == 0 {
		return 0, true, nil
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil || pid <= 1 {
		return 0, false, fmt.Errorf("read %s: %q is no process number", lock.Name(), text[:n])
	}
	return pid, true, nil
}

// start starts a holder, which takes over the lock.
func (c Config) start(ctx context.Context, lock *os.File) (n *Namespaces, err error) {
	if err := lock.Truncate(0); err != nil {
		return nil, fmt.Errorf("empty %s: %w", lock.Name(), err)
	}
	status, statusWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer status.Close()
	cmd := exec.Command(c.Hold[0], c.Hold[1:]...) //nolint:noctx // it outlives its starter
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.ExtraFiles = []*os.File{lockFD - 3: lock, statusFD - 3: statusWrite}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Setsid:      true, // no terminal or session takes it along
	}
	err = cmd.Start()
	statusWrite.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: make user and network namespace: %w%s", ErrUnavailable, err, cures())
	}
	n, err = ready(ctx, cmd, status)
	if err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	c.Logger.Info("rootless: made a network namespace", "held_by", cmd.Process.Pid)
	return n, cmd.Process.Release()
}

// ready waits until a holder has furnished its namespaces, and opens them.
func ready(ctx context.Context, cmd *exec.Cmd, status *os.File) (*Namespaces, error) {
	stop := context.AfterFunc(ctx, func() { status.Close() })
	defer stop()
	text, err := io.ReadAll(status)
	if err == nil && len(text) > 0 {
		err = errors.New(string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w%s", ErrUnavailable, err, cures())
	}
	n, err := open(netOf(cmd.Process.Pid))
	if err == nil {
		n.made = true
	}
	return n, err
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// makeDir makes the directory for this user alone.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("run directory %s is not a directory of this user: remove it, or choose another by --run-dir", dir)
	}
	return nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(5 * time.Millisecond):
		return nil
	}
}

// Hold is what the holder does: it makes the network namespace that it was
// started in fit to live in, and keeps it until ctx is done.
func Hold(ctx context.Context) error {
	status := os.NewFile(statusFD, "status")
	info, err := status.Stat()
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return errors.New("hold namespaces: the agent starts this, when it makes a network namespace")
	}
	unix.CloseOnExec(lockFD)
	unix.CloseOnExec(statusFD)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	if err := furnish(); err != nil {
		_, writeErr := io.WriteString(status, err.Error())
		return errors.Join(err, writeErr)
	}
	if err := status.Close(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// furnish makes a new network namespace a router with a loopback device.
func furnish() error {
	if err := UpLoopback(); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		err := os.WriteFile(path, []byte("1\n"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without that family
			return fmt.Errorf("let pods' packets through: %w", err)
		}
	}
	return nil
}

// UpLoopback sets the loopback of the calling thread's network namespace up.
func UpLoopback() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
