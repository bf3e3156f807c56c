package datapath

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The thread that enters has short turns where the scheduler offers that, its
// nice value and policy as they were, and gives turns away only then.
func TestPollerEnter(t *testing.T) {
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
			p := &poller{}
			p.Enter()
			after, err := unix.SchedGetAttr(0, 0)
			if err != nil {
				t.Error(err)
				return
			}
			if after.Policy != test.policy || after.Nice != test.nice {
				t.Errorf("policy %d, nice %d have become %d, %d", test.policy, test.nice, after.Policy, after.Nice)
			}
			short := after.Runtime == uint64(slice)
			if short != p.yields || short && test.policy != unix.SCHED_NORMAL {
				t.Errorf("policy %d: slice %d ns, yields %v", test.policy, after.Runtime, p.yields)
			}
			p.Yield()
			if yielded := p.Calls() == 1; yielded != p.yields {
				t.Errorf("%d system calls, yields %v", p.Calls(), p.yields)
			}
		}()
		<-done
	}
}
