package ring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/internal/linux"
)

// Supported says why a Ring cannot be used here, and what to do about it; nil: it can.
// It tries everything that Streams and Writes do.
func Supported() error {
	// READ_MULTISHOT is there from 6.7 on; the first versions had it miss wake-ups.
	if v := linux.KernelVersion(); !v.AtLeast(6, 12, 0) {
		return fmt.Errorf("this is Linux %v, want 6.12 or later", v)
	}
	err := try()
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (see: sysctl kernel.io_uring_disabled; in a container its seccomp profile)", err)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w (the kernel is built without it, or a seccomp profile forbids it)", err)
	}
	return err
}

// try has a Ring carry a message through a pair of sockets and bytes through a pipe.
func try() (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Stop(), r.Close()) }()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a pair of sockets: %w", err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	from, to, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("open a pipe: %w", err)
	}
	defer from.Close()
	defer to.Close()
	for _, way := range []struct {
		from, to int
		message  bool
	}{{pair[0], pair[1], true}, {int(from.Fd()), int(to.Fd()), false}} {
		if err := r.tryOne(way.from, way.to, way.message); err != nil {
			return err
		}
	}
	return nil
}

func (r *Ring) tryOne(from, to int, message bool) error {
	const size = 1 << 10
	stream, err := r.Stream(StreamConfig{Descriptor: from, SlotSize: size, Slots: 2, Large: 2, Message: message})
	if err != nil {
		return err
	}
	writes := r.Writes(to, 1, 1)
	if !r.started {
		if err := r.Start(); err != nil {
			return err
		}
	}
	sent := []byte("hello")
	stream.Renew()
	writes.Add(sent, nil)
	results, err := writes.Do()
	if err == nil && results[0] != int32(len(sent)) {
		err = fmt.Errorf("write by io_uring: %w", unix.Errno(-results[0]))
	}
	for deadline := time.Now().Add(time.Second); err == nil && !stream.Ready() && time.Now().Before(deadline); {
		err = r.Enter(0)
	}
	if err != nil {
		return err
	}
	slot, ok, errno := stream.Take()
	if !ok && errno == 0 {
		errno = unix.ETIMEDOUT
	}
	if errno != 0 {
		return fmt.Errorf("read by io_uring: %w", errno)
	}
	got := stream.Memory()[slot.Number*size:][:slot.Length]
	if got := string(got[len(got)-len(sent):]); got != string(sent) {
		return fmt.Errorf("read by io_uring: %q, want %q", got, sent)
	}
	return nil
}
