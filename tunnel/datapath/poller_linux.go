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
	waker  *linux.Waker
	calls  atomic.Uint64
	closed atomic.Bool
	mu     sync.Mutex // held while waiting
	spin   spin

	yielded time.Time // last
	short   bool      // the thread's slice is
	fixed   bool      // the slice cannot be changed
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

const (
	// slice is how long the thread runs while others want the processor, as the
	// scheduler has it (sched_setattr(2), from 6.12 on). Turns are as many as before,
	// and shorter: between two of them a receiver's buffer does not overflow.
	slice = 300 * time.Microsecond
	// crowd is the time between two Yields below which the thread wants such turns. At
	// all other times they are a loss: a thread with a short slice preempts whoever
	// wakes it, and one packet's way takes longer.
	crowd = 500 * time.Microsecond
)

// Yield implements engine.Poller. Where the scheduler does not take the slice, a
// turn given away would be a long one, and none is.
func (p *poller) Yield() {
	now := time.Now()
	short := now.Sub(p.yielded) < crowd
	p.yielded = now
	if short != p.short && !p.fixed {
		p.setSlice(short)
	}
	if p.short {
		p.giveTurn()
	}
}

// setSlice takes or gives back the short slice, or learns that this cannot be done.
func (p *poller) setSlice(short bool) {
	const self = 0
	p.called(3)
	now, err := unix.SchedGetAttr(self, 0)
	if err != nil || now.Policy != unix.SCHED_NORMAL { // somebody has decided otherwise
		p.fixed = true
		return
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: now.Policy, Nice: now.Nice}
	if short {
		attr.Runtime = uint64(slice) // else the scheduler's own
	}
	if err := unix.SchedSetAttr(self, &attr, 0); err != nil {
		p.fixed = true
		return
	}
	now, err = unix.SchedGetAttr(self, 0)
	p.short = err == nil && now.Runtime == uint64(slice)
	p.fixed = p.short != short
}

func (p *poller) called(n uint64) { p.calls.Store(p.calls.Load() + n) }

// Wait implements engine.Poller. A descriptor with an error counts as ready:
// reading tells what is wrong.
func (p *poller) Wait(spin bool) (ready uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed.Load() {
		n, err := p.wait(spin)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("wait in epoll: %w", err)
		}
		for i := range max(n, 0) {
			if bit := p.events[i].Fd; bit != woken {
				ready |= 1 << bit
			}
		}
		if ready != 0 {
			return ready, nil
		}
	}
	return 0, tunnel.ErrClosed
}

// wait is epoll_wait, after a spin if it may and that is worth it.
func (p *poller) wait(spin bool) (n int, err error) {
	if !spin || p.spin.length == 0 {
		return p.look(-1)
	}
	start := time.Now()
	for now := start; p.spin.worthwhile(now) && now.Sub(start) < p.spin.length; {
		if n, err = p.look(0); n != 0 || err != nil {
			p.spin.hit()
			return n, err
		}
		p.giveTurn()
		before := now
		now = time.Now()
		if !p.spin.yielded(now, now.Sub(before)) {
			break
		}
	}
	start = time.Now()
	n, err = p.look(-1)
	p.spin.slept(time.Since(start))
	return n, err
}

// look is one epoll_wait of so many milliseconds, below 0 until there is something.
func (p *poller) look(timeout int) (n int, err error) {
	p.called(1)
	return unix.EpollWait(p.epoll, p.events, timeout)
}

// giveTurn lets others run that wait for this processor, if any do.
func (p *poller) giveTurn() {
	p.called(1)
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it does not fail
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
