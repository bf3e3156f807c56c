package datapath

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

// poller waits in poll, outside Go's netpoller: the thread that is woken is the
// one that does the work, and nothing is allocated.
type poller struct {
	fds    []unix.PollFd // the first is the waker's
	source []int         // of each descriptor, the bit it sets
	waker  *linux.Waker
	calls  atomic.Uint64
	closed atomic.Bool
	mu     sync.Mutex // held while waiting

	yielded time.Time // last
	short   bool      // the thread's slice is
	fixed   bool      // the slice cannot be changed
}

// newPoller waits for groups of descriptors, the first group being bit 0.
func newPoller(groups [][]int) (*poller, error) {
	waker, err := linux.NewWaker()
	if err != nil {
		return nil, err
	}
	p := &poller{waker: waker}
	add := func(fd, source int) {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		p.source = append(p.source, source)
	}
	add(waker.Descriptor(), 0)
	for i, group := range groups {
		for _, fd := range group {
			add(fd, i)
		}
	}
	return p, nil
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
		p.called(1)
		_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it does not fail
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
func (p *poller) Wait() (ready uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed.Load() {
		p.called(1)
		if _, err := unix.Poll(p.fds, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return 0, fmt.Errorf("poll: %w", err)
		}
		for i := range p.fds[1:] {
			if p.fds[1+i].Revents != 0 {
				ready |= 1 << p.source[1+i]
			}
		}
		if ready != 0 {
			return ready, nil
		}
	}
	return 0, tunnel.ErrClosed
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
	if err := p.waker.Close(); err != nil {
		return fmt.Errorf("close eventfd: %w", err)
	}
	return nil
}
