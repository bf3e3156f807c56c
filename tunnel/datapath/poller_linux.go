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
	yields bool       // of the thread that has entered
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

// slice is how long the thread runs while others want the processor, as the
// scheduler has it (sched_setattr(2), from 6.12 on). Turns are as many as before, and
// shorter: between two of them a receiver's buffer does not overflow.
const slice = 300 * time.Microsecond

// Enter implements engine.Poller. Where the scheduler does not take the slice, a
// turn given away would be a long one, and none is.
func (p *poller) Enter() {
	const self = 0
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Runtime: uint64(slice)}
	if now, err := unix.SchedGetAttr(self, 0); err == nil {
		if now.Policy != unix.SCHED_NORMAL {
			return // somebody has decided otherwise
		}
		attr.Nice = now.Nice
	}
	if unix.SchedSetAttr(self, &attr, 0) != nil {
		return
	}
	now, err := unix.SchedGetAttr(self, 0)
	p.yields = err == nil && now.Runtime == uint64(slice)
}

// Yield implements engine.Poller.
func (p *poller) Yield() {
	if !p.yields {
		return
	}
	p.calls.Store(p.calls.Load() + 1)
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it does not fail
}

// Wait implements engine.Poller. A descriptor with an error counts as ready:
// reading tells what is wrong.
func (p *poller) Wait() (ready uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.closed.Load() {
		p.calls.Store(p.calls.Load() + 1)
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
