package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Requests of ioctl_ns(2) that package unix does not have.
const (
	nsGetUserNS   = 0xb701
	nsGetType     = 0xb703
	nsGetOwnerUID = 0xb704
)

// ownUserNS is the user namespace of this process.
const ownUserNS = "/proc/self/ns/user"

// Privileged reports whether this process may program the network namespace it
// is in.
func Privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// Namespaces are a network namespace and the user namespace that owns it, both
// of this user.
type Namespaces struct {
	user, net *os.File
	made      bool
}

// Made reports whether the namespaces are new.
func (n *Namespaces) Made() bool { return n.made }

// Close lets go of the namespaces. They stay for as long as something is in them.
func (n *Namespaces) Close() error { return errors.Join(n.user.Close(), n.net.Close()) }

// open opens the network namespace in a file and what owns it.
func open(path string) (n *Namespaces, err error) {
	n = new(Namespaces)
	if n.net, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if n.user, err = ownerOf(n.net); err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", path, err), n.net.Close())
	}
	if err := n.checkOwner(); err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

// ownerOf opens the user namespace that owns a network namespace.
func ownerOf(network *os.File) (*os.File, error) {
	kind, err := unix.IoctlRetInt(int(network.Fd()), nsGetType)
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, errors.New("this is no network namespace: want a file such as /proc/PID/ns/net")
	}
	fd, err := unix.IoctlRetInt(int(network.Fd()), nsGetUserNS)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("it belongs to a user namespace outside of this process's own: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("find the user namespace that owns it: %w", err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "user namespace"), nil
}

// checkOwner refuses what cannot be entered, or should not be.
func (n *Namespaces) checkOwner() error {
	own, err := os.Stat(ownUserNS)
	if err != nil {
		return err
	}
	have, err := n.user.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(own, have) {
		return errors.New("it belongs to the user namespace that this process is in, where it has no rights: " +
			"want that of a rootless container runtime, or of unshare --user --map-root-user --net")
	}
	uid, err := ownerUID(n.user)
	if err != nil {
		return err
	}
	if uid != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, and this process to user %d: run as that user", uid, os.Geteuid())
	}
	return nil
}

// Enter replaces this process by argv, run in the user namespace, and in the
// network namespace that this process is in. Inside gives it the other one.
// Enter returns only if that fails. Nobody has to pass on signals, and the
// number of the process stays.
//
// A process with several threads cannot enter a user namespace, and one in Go
// always has several; so nsenter of util-linux does it.
func (n *Namespaces) Enter(argv, env []string) error {
	enter, err := findEnter()
	if err != nil {
		return err
	}
	var kept []string
	for _, file := range []*os.File{n.user, n.net} {
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD, 0) // stays open in the program
		if err != nil {
			return fmt.Errorf("keep %s open: %w", file.Name(), err)
		}
		kept = append(kept, strconv.Itoa(fd))
	}
	args := append([]string{enter, "--preserve-credentials", "--user=/proc/self/fd/" + kept[0], "--"}, argv...)
	if err := unix.Exec(enter, args, append(env, insideEnv+"="+strings.Join(kept, ","))); err != nil {
		return fmt.Errorf("run %s: %w", enter, err)
	}
	return nil
}

// findEnter finds the program that enters user namespaces.
func findEnter() (string, error) {
	path, err := exec.LookPath("nsenter")
	if err != nil {
		return "", fmt.Errorf("%w: %w: install util-linux", ErrUnavailable, err)
	}
	return path, nil
}

// ownerUID is the user that a user namespace belongs to.
func ownerUID(namespace *os.File) (int, error) {
	uid, err := unix.IoctlGetUint32(int(namespace.Fd()), nsGetOwnerUID)
	if err != nil {
		return 0, fmt.Errorf("find its user: %w", err)
	}
	return int(uid), nil
}
