package linux

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Waker waits for descriptors in poll, outside Go's netpoller: the thread that
// is woken is the one that then drains the descriptor, and nothing is allocated.
type Waker struct{ event int }

// NewWaker opens a Waker. It holds one descriptor until Close.
func NewWaker() (*Waker, error) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open eventfd: %w", err)
	}
	return &Waker{event: event}, nil
}

// Wait waits until fd has one of the poll events or an error condition, or Wake
// was called, or the timeout in milliseconds is over (below 0: never). Only the
// first makes it return true.
func (w *Waker) Wait(fd int, events int16, timeout int) (ready bool, err error) {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(w.event), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], timeout)
		if err == nil {
			return fds[0].Revents != 0, nil
		}
		if err != unix.EINTR {
			return false, fmt.Errorf("poll: %w", err)
		}
	}
}

// Descriptor is readable from the first Wake on. It is for a wait together with
// more descriptors than Wait takes, and valid until Close.
func (w *Waker) Descriptor() int { return w.event }

// Wake ends every Wait, those that are still to come included.
func (w *Waker) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// The counter is only ever added to once per caller, so it cannot be full.
	_, _ = unix.Write(w.event, one[:])
}

// Close frees the descriptor. Nothing may Wait any more.
func (w *Waker) Close() error { return unix.Close(w.event) }
