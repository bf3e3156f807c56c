package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// insideEnv names the variable with the descriptors of the user and the network
// namespace that Enter has left open.
const insideEnv = "WEFT_USERNS"

// Inner is the network namespace beside the one that this process is in, and
// which it may program.
type Inner struct{ net *os.File }

// Inside returns what Enter has led this process to; nil if it was started in
// another way.
func Inside() (*Inner, error) {
	text, set := os.LookupEnv(insideEnv)
	if !set {
		return nil, nil
	}
	n, err := inherited(text)
	if err != nil {
		return nil, fmt.Errorf("enter user namespace: environment variable %s=%s: %w (unset it)", insideEnv, text, err)
	}
	if err := errors.Join(os.Unsetenv(insideEnv), n.user.Close()); err != nil {
		return nil, fmt.Errorf("enter user namespace: %w", err)
	}
	if !Privileged() {
		return nil, errors.Join(errors.New("enter user namespace: there are no rights in it: want one in which this user is root"), n.net.Close())
	}
	return &Inner{net: n.net}, nil
}

// inherited takes over the descriptors if they are what Enter has left open.
func inherited(text string) (*Namespaces, error) {
	var files []*os.File
	for word := range strings.SplitSeq(text, ",") {
		fd, err := strconv.Atoi(word)
		if err != nil || fd <= 2 {
			return nil, errors.New("want two descriptors")
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
		files = append(files, os.NewFile(uintptr(fd), "namespace"))
	}
	if len(files) != 2 {
		return nil, errors.New("want two descriptors")
	}
	owner, err := ownerOf(files[1])
	if err != nil {
		return nil, err
	}
	defer owner.Close()
	have, err := owner.Stat()
	if err != nil {
		return nil, err
	}
	if own, err := os.Stat(ownUserNS); err != nil || !os.SameFile(own, have) {
		return nil, errors.Join(errors.New("it is not of the user namespace that this process is in"), err)
	}
	return &Namespaces{user: files[0], net: files[1]}, nil
}

// Do runs f in the network namespace: system calls that f makes itself, in its
// own goroutine, and processes it starts. What f opens stays there; goroutines
// that it starts do not.
func (n *Inner) Do(f func() error) error {
	return OnThread(func() error {
		if err := n.join(); err != nil {
			return err
		}
		return f()
	})
}

// join moves the calling thread, which must be locked.
func (n *Inner) join() error {
	if err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join network namespace: %w", err)
	}
	return nil
}

// Exec replaces this process by a program in the network namespace. It returns
// only if that fails.
func (n *Inner) Exec(argv, env []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	runtime.LockOSThread() // the program goes on in this thread's namespace
	if err := n.join(); err != nil {
		return err
	}
	if err := unix.Exec(path, argv, env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// OnThread runs f on a thread that is thrown away afterwards, so that f may
// move it into other namespaces.
func OnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread is never thrown away, and /proc/self is its view.
			err := OnThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // ends locked, and the thread with it
	}()
	return <-done
}
