package datapath

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
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
			p := &turns{}
			p.Yield()
			if got := runtimeOf(); got != own || p.calls.Load() != 0 {
				t.Errorf("after one turn: slice %d ns, %d calls; before %d ns", got, p.calls.Load(), own)
			}
			p.yielded = time.Now().Add(time.Hour) // however slow the machine is
			p.Yield()
			if short := runtimeOf() == uint64(slice); short != offered || p.short != short || p.fixed == short {
				t.Errorf("policy %d, often: slice %d ns, offered %v, %+v", test.policy, runtimeOf(), offered, p)
			}
			p.yielded = time.Now().Add(-crowd)
			calls := p.calls.Load()
			p.Yield()
			if got := runtimeOf(); got != own || p.short || !offered && p.calls.Load() != calls {
				t.Errorf("policy %d, seldom: slice %d ns, before %d, %+v", test.policy, got, own, p)
			}
		}()
		<-done
	}
}

// newEvents is a poller of two descriptors of one source and one of another.
func newEvents(t *testing.T, busyPoll time.Duration) (p *poller, events [3]int) {
	t.Helper()
	for i := range events {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		events[i] = fd
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	p, err := newPoller([][]int{{events[0], events[1]}, {events[2]}}, busyPoll)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, events
}

func raise(t *testing.T, event int) {
	t.Helper()
	if _, err := unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Error(err)
	}
}

func TestPollerReady(t *testing.T) {
	p, events := newEvents(t, 0)
	for _, test := range []struct {
		raised []int
		ready  uint64
	}{{[]int{1}, 1}, {[]int{2}, 2}, {[]int{0, 1, 2}, 3}} {
		for _, i := range test.raised {
			raise(t, events[i])
		}
		for range 2 { // it is as long as it was not read
			if ready, err := p.Wait(true); ready != test.ready || err != nil {
				t.Errorf("%v are raised: ready %b, %v, want %b", test.raised, ready, err, test.ready)
			}
		}
		for _, i := range test.raised {
			if _, err := unix.Read(events[i], make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if calls := p.Calls(); calls != 6 {
		t.Errorf("%d calls, want one for each Wait", calls)
	}
}

// Where it may and the last sleep was short, a poller stays awake for a time.
func TestPollerSpins(t *testing.T) {
	p, events := newEvents(t, time.Hour)
	p.spin.patience = time.Hour // however busy the machine is
	// wait counts the calls of a Wait that ends after so many, if it makes them.
	wait := func(spin bool, most uint64) (calls uint64) {
		before := p.Calls()
		go func() {
			for end := time.Now().Add(5 * time.Second); p.Calls()-before < most && time.Now().Before(end); {
				time.Sleep(100 * time.Microsecond)
			}
			time.Sleep(time.Millisecond)
			raise(t, events[2])
		}()
		if ready, err := p.Wait(spin); ready != 2 || err != nil {
			t.Errorf("ready %b, %v, want 10", ready, err)
		}
		if _, err := unix.Read(events[2], make([]byte, 8)); err != nil {
			t.Error(err)
		}
		return p.Calls() - before
	}
	if calls := wait(true, 1); calls != 1 || !p.spin.soon {
		t.Errorf("first wait: %d calls, %+v, want 1 and a sleep that was short", calls, p.spin)
	}
	if calls := wait(true, 10); calls < 10 {
		t.Errorf("%d calls, want a spin", calls)
	}
	if calls := wait(false, 1); calls != 1 {
		t.Errorf("%d calls without leave to spin, want 1", calls)
	}
	p.spin.length = time.Nanosecond
	if calls := wait(true, 3); calls != 3 {
		t.Errorf("%d calls, want a spin that is over at once, and a sleep", calls)
	}
}

func TestPollerClosed(t *testing.T) {
	for _, spin := range []bool{true, false} {
		p, _ := newEvents(t, time.Hour)
		p.spin.soon = spin
		time.AfterFunc(5*time.Millisecond, func() { _ = p.Close() })
		for range 2 {
			if _, err := p.Wait(spin); !errors.Is(err, tunnel.ErrClosed) {
				t.Errorf("after Close: %v, want ErrClosed", err)
			}
		}
	}
}
