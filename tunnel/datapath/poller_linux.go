package datapath

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

// poller waits in epoll, outside Go's netpoller: the thread that is woken is the
// one that does the work, and nothing is allocated. Of the descriptors only those
// that had something are asked again, where poll asks all.
type poller struct {
	epoll  int
	events []unix.EpollEvent // room for those of all descriptors
	// happened is how many of these the last look has found.
	happened int
	waker    *linux.Waker
	closed   atomic.Bool
	mu       sync.Mutex // held while waiting
	spin     spin
	turns
}

// newPoller waits for groups of descriptors, the first group being bit 0.
func newPoller(groups [][]int, busyPoll time.Duration) (*poller, error) {
	waker, err := linux.NewWaker()
	if err != nil {
		return nil, err
	}
	p := &poller{waker: waker, spin: newSpin(busyPoll)}
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("open epoll: %w", err), waker.Close())
	}
	err = p.add(waker.Descriptor(), woken)
	for i, group := range groups {
		for _, fd := range group {
			err = errors.Join(err, p.add(fd, int32(i)))
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.free())
	}
	return p, nil
}

// woken stands in place of a bit for the waker.
const woken = -1

// add has a descriptor waited for that sets a bit.
func (p *poller) add(fd int, bit int32) error {
	// What comes back in Fd is whatever was put there.
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: bit}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("add to epoll: %w", err)
	}
	p.events = append(p.events, unix.EpollEvent{})
	return nil
}

// Wait implements engine.Poller. A descriptor with an error counts as ready:
// reading tells what is wrong.
func (p *poller) Wait(spin bool) (ready uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed.Load() {
		if err := p.spin.wait(spin, p.look, p.giveTurn); err != nil {
			return 0, fmt.Errorf("wait in epoll: %w", err)
		}
		for _, event := range p.events[:p.happened] {
			if event.Fd != woken {
				ready |= 1 << event.Fd
			}
		}
		if ready != 0 {
			return ready, nil
		}
	}
	return 0, tunnel.ErrClosed
}

// look is one epoll_wait, for events that have happened or until there is one.
func (p *poller) look(sleep bool) (found bool, err error) {
	timeout := 0
	if sleep {
		timeout = -1
	}
	p.called(1)
	n, err := unix.EpollWait(p.epoll, p.events, timeout)
	p.happened = max(n, 0)
	if err == unix.EINTR {
		err = nil
	}
	return n > 0, err
}

// Calls implements engine.Poller.
func (p *poller) Calls() uint64 { return p.calls.Load() }

// Close implements engine.Poller.
func (p *poller) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	p.waker.Wake()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.free()
}

func (p *poller) free() error {
	if err := errors.Join(unix.Close(p.epoll), p.waker.Close()); err != nil {
		return fmt.Errorf("close epoll: %w", err)
	}
	return nil
}
