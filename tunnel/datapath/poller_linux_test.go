package datapath

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Threads that yield often have short turns where the scheduler offers that, and
// what they had before when they no longer do; nice value and policy stay.
func TestPollerYield(t *testing.T) {
	for _, test := range []struct {
		policy uint32
		nice   int32
	}{{unix.SCHED_NORMAL, 0}, {unix.SCHED_NORMAL, 5}, {unix.SCHED_BATCH, 0}} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: it is not a thread for others
			before := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: test.policy, Nice: test.nice}
			if err := unix.SchedSetAttr(0, &before, 0); err != nil {
				t.Error(err)
				return
			}
			runtimeOf := func() uint64 {
				now, err := unix.SchedGetAttr(0, 0)
				if err != nil {
					t.Error(err)
					return 0
				}
				if now.Policy != test.policy || now.Nice != test.nice {
					t.Errorf("policy %d, nice %d have become %d, %d", test.policy, test.nice, now.Policy, now.Nice)
				}
				return now.Runtime
			}
			own := runtimeOf()
			t.Logf("policy %d: slice %d ns", test.policy, own)
			offered := own != 0 && test.policy == unix.SCHED_NORMAL // before 6.12 it is not told
			p := &poller{}
			p.Yield()
			if got := runtimeOf(); got != own || p.Calls() != 0 {
				t.Errorf("after one turn: slice %d ns, %d calls; before %d ns", got, p.Calls(), own)
			}
			p.yielded = time.Now().Add(time.Hour) // however slow the machine is
			p.Yield()
			if short := runtimeOf() == uint64(slice); short != offered || p.short != short || p.fixed == short {
				t.Errorf("policy %d, often: slice %d ns, offered %v, %+v", test.policy, runtimeOf(), offered, p)
			}
			p.yielded = time.Now().Add(-crowd)
			calls := p.Calls()
			p.Yield()
			if got := runtimeOf(); got != own || p.short || !offered && p.Calls() != calls {
				t.Errorf("policy %d, seldom: slice %d ns, before %d, %+v", test.policy, got, own, p)
			}
		}()
		<-done
	}
}
