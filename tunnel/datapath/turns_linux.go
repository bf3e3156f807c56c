package datapath

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// turns is how the thread of a worker lets others have the processor.
type turns struct {
	calls   atomic.Uint64
	yielded time.Time // last
	short   bool      // the thread's slice is
	fixed   bool      // the slice cannot be changed
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
func (p *turns) Yield() {
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
func (p *turns) setSlice(short bool) {
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

func (p *turns) called(n uint64) { p.calls.Store(p.calls.Load() + n) }

// giveTurn lets others run that wait for this processor, if any do.
func (p *turns) giveTurn() {
	p.called(1)
	_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // it does not fail
}
