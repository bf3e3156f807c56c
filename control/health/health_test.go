package health

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
)

const (
	vxlan     = tunnel.EncapVXLAN
	wireguard = tunnel.EncapWireGuard
	direct    = tunnel.EncapDirect
)

// TestPortClosed holds that both ends leave a way within 3 s of its end, at
// whatever moment between two probes that comes, and take it back after it heals.
func TestPortClosed(t *testing.T) {
	for _, moment := range []time.Duration{0, 2 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond, 999 * time.Millisecond} {
		for _, begun := range []time.Duration{0, 500 * time.Millisecond} {
			t.Run(fmt.Sprint(moment, begun), func(t *testing.T) {
				run(t, func(w *world) {
					a := w.add("a", map[string][]tunnel.Encap{"b": vxlanFirst})
					time.Sleep(begun)
					b := w.add("b", map[string][]tunnel.Encap{"a": vxlanFirst})
					time.Sleep(20*time.Second + moment)
					a.want("b", vxlan, "well")
					w.closeWay(vxlan, true)
					time.Sleep(3*time.Second - 1)
					a.want("b", wireguard, "closed")
					b.want("a", wireguard, "closed")
					if got, want := a.monitor.Failed()[id("b", vxlan)], "no answer by vxlan (UDP 8472): sent 5, got 0"; got != want {
						t.Errorf("reason %q, want %q", got, want)
					}
					time.Sleep(time.Minute)
					if a.switches("b") != 1 || b.switches("a") != 1 {
						t.Errorf("choices %v and %v", a.choices, b.choices)
					}
					w.closeWay(vxlan, false)
					w.set(func() { w.probes = nil })
					a.monitor.Wake()
					b.monitor.Wake()
					time.Sleep(time.Second)
					a.want("b", vxlan, "healed")
					b.want("a", vxlan, "healed")
					if n := w.count(path{"a", "b", vxlan}, 0); n < 4 {
						t.Errorf("taken back after %d probes, want 4", n)
					}
					if failed := a.monitor.Failed(); len(failed) != 0 {
						t.Errorf("healed: failed are %v", failed)
					}
				})
			})
		}
	}
}

// TestOneDirection holds that only the host whose packets are lost stays away.
func TestOneDirection(t *testing.T) {
	run(t, func(w *world) {
		a, b := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.set(func() { w.closed[path{"a", "b", vxlan}] = true })
		time.Sleep(3 * time.Second)
		a.want("b", wireguard, "closed")
		time.Sleep(time.Minute)
		a.want("b", wireguard, "later")
		b.want("a", vxlan, "later")
		if a.switches("b") != 1 || b.switches("a") > 2 {
			t.Errorf("choices %v and %v", a.choices, b.choices)
		}
	})
}

// TestClosedFromTheStart holds the same of a way that never worked, also where one
// end comes late.
func TestClosedFromTheStart(t *testing.T) {
	for _, late := range []time.Duration{0, 700 * time.Millisecond, 5 * time.Minute} {
		t.Run(late.String(), func(t *testing.T) {
			run(t, func(w *world) {
				w.closeWay(vxlan, true)
				a := w.add("a", map[string][]tunnel.Encap{"b": vxlanFirst})
				time.Sleep(late)
				b := w.add("b", map[string][]tunnel.Encap{"a": vxlanFirst})
				time.Sleep(8 * time.Second)
				a.want("b", wireguard, "after eight seconds")
				b.want("a", wireguard, "after eight seconds")
				before := a.switches("b")
				time.Sleep(10 * time.Minute)
				if a.switches("b") != before {
					t.Errorf("choices %v", a.choices)
				}
			})
		})
	}
}

// TestLastOfThree holds that ways are tried one after the other.
func TestLastOfThree(t *testing.T) {
	run(t, func(w *world) {
		a, b := w.pair(allWays)
		time.Sleep(20 * time.Second)
		a.want("b", direct, "well")
		w.closeWay(direct, true)
		w.closeWay(vxlan, true)
		time.Sleep(12 * time.Second)
		a.want("b", wireguard, "both closed")
		b.want("a", wireguard, "both closed")
		w.closeWay(vxlan, false)
		time.Sleep(40 * time.Second)
		a.want("b", vxlan, "one healed")
		w.closeWay(direct, false)
		time.Sleep(10 * time.Minute)
		a.want("b", direct, "all healed")
		b.want("a", direct, "all healed")
	})
}

// TestPeerDown holds that a host that is down is not a reason to switch back and
// forth, and that the first choice is what it finds when it is back.
func TestPeerDown(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.set(func() { w.down["b"] = true })
		time.Sleep(15 * time.Second)
		a.want("b", vxlan, "down")
		if failed := a.monitor.Failed(); len(failed) != 0 {
			t.Errorf("down: failed are %v", failed)
		}
		if got := a.health("b", vxlan).Trouble; got != noWay {
			t.Errorf("trouble %q, want %q", got, noWay)
		}
		if n := a.switches("b"); n != 2 {
			t.Errorf("%d switches: %v", n, a.choices)
		}
		time.Sleep(time.Hour)
		if n := a.switches("b"); n > 2+2*10 {
			t.Errorf("%d switches in an hour", n)
		}
		w.set(func() { w.down["b"] = false })
		time.Sleep(10 * time.Second)
		a.want("b", vxlan, "back")
		if h := a.health("b", vxlan); h.Trouble != "" || time.Since(h.LastHeard) > 2*time.Second {
			t.Errorf("back: %+v", h)
		}
	})
}

// TestHealsByOneWayOnly holds that two hosts which gave up find the one way that
// is left after a long time apart.
func TestHealsByOneWayOnly(t *testing.T) {
	run(t, func(w *world) {
		a, b := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.closeWay(vxlan, true)
		w.closeWay(wireguard, true)
		time.Sleep(47 * time.Minute)
		w.closeWay(wireguard, false)
		time.Sleep(maxBackoff + chance)
		a.want("b", wireguard, "healed by one way")
		b.want("a", wireguard, "healed by one way")
	})
}

// TestPeerRestarts holds that two seconds without a host do little harm.
func TestPeerRestarts(t *testing.T) {
	for moment := range 10 {
		run(t, func(w *world) {
			a, _ := w.pair(vxlanFirst)
			time.Sleep(20*time.Second + time.Duration(moment)*100*time.Millisecond)
			w.set(func() { w.down["b"] = true })
			time.Sleep(2 * time.Second)
			w.set(func() { w.down["b"] = false })
			time.Sleep(12 * time.Second)
			a.want("b", vxlan, "restarted")
			if n := a.switches("b"); n > 2 {
				t.Errorf("%d switches: %v", n, a.choices)
			}
		})
	}
}

// TestFlapping holds that a way which comes and goes is taken ever more rarely.
func TestFlapping(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		flap := func(d time.Duration) {
			for until := time.Now().Add(d); time.Now().Before(until); {
				w.closeWay(vxlan, true)
				time.Sleep(8 * time.Second)
				w.closeWay(vxlan, false)
				a.monitor.Wake()
				time.Sleep(12 * time.Second)
			}
		}
		flap(10 * time.Minute)
		before := a.switches("b")
		flap(50 * time.Minute)
		if n := a.switches("b"); before > 20 || n-before > 16 {
			t.Errorf("%d switches in ten minutes, %d in the next fifty: %v", before, n-before, a.choices)
		}
	})
}

// TestNeverAnswers holds that a host which answers no echo requests is reached as
// if nobody asked, but for one trial.
func TestNeverAnswers(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.mute["b"] = true })
		a, _ := w.pair(vxlanFirst)
		time.Sleep(10 * time.Second)
		a.want("b", vxlan, "after the trial")
		time.Sleep(5 * time.Hour)
		a.want("b", vxlan, "later")
		if n := a.switches("b"); n != 2 || len(a.monitor.Failed()) != 0 {
			t.Errorf("%d switches, failed are %v", n, a.monitor.Failed())
		}
	})
}

// TestNoTrialWithoutKeys holds that a way by which nothing can be sent is not
// tried.
func TestNoTrialWithoutKeys(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.mute["b"], w.refused[path{"a", "b", wireguard}] = true, errNoKeys })
		a, _ := w.pair(vxlanFirst)
		time.Sleep(time.Minute)
		if n := a.switches("b"); n != 0 {
			t.Errorf("choices %v", a.choices)
		}
		if failed := a.monitor.Failed(); len(failed) != 0 {
			t.Errorf("failed are %v", failed)
		}
		if got := a.health("b", wireguard).Trouble; got != errNoKeys.Error() {
			t.Errorf("trouble %q, want %q", got, errNoKeys)
		}
	})
}

// TestTrialWithLateKeys holds that such a way is tried as soon as it is ready.
func TestTrialWithLateKeys(t *testing.T) {
	run(t, func(w *world) {
		a, b := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		refuse := func(err error) {
			w.set(func() { w.refused[path{"a", "b", wireguard}], w.refused[path{"b", "a", wireguard}] = err, err })
		}
		refuse(errNoKeys)
		w.closeWay(vxlan, true)
		time.Sleep(10 * time.Second)
		a.want("b", vxlan, "no keys")
		refuse(nil)
		time.Sleep(2 * time.Second)
		a.want("b", wireguard, "keys")
		b.want("a", wireguard, "keys")
		time.Sleep(10 * time.Minute)
		if a.switches("b") != 1 {
			t.Errorf("choices %v", a.choices)
		}
	})
}

// TestSingleWay holds that what cannot be helped is only watched.
func TestSingleWay(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair([]tunnel.Encap{vxlan})
		time.Sleep(95 * time.Second)
		if n := w.count(path{"a", "b", vxlan}, 0); n < 10 || n > 12 {
			t.Errorf("%d probes in 95 seconds", n)
		}
		if h := a.health("b", vxlan); h.RTT != roundTrip || h.Loss > 0.2 || h.Trouble != "" {
			t.Errorf("well: %+v", h)
		}
		w.set(func() { w.down["b"] = true })
		time.Sleep(5 * time.Minute)
		if h := a.health("b", vxlan); h.Trouble != noWay || h.Failed != "" || h.Loss < 0.5 {
			t.Errorf("down: %+v", h)
		}
	})
}

// TestUnknown holds that a way nobody can probe is never failed, that another one
// is tried for want of a better, and counts as good again after a while.
func TestUnknown(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.refused[path{"a", "b", vxlan}] = unknown("no rights") })
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.closeWay(vxlan, true)
		time.Sleep(time.Minute)
		a.want("b", vxlan, "unknown")
		if h := a.health("b", vxlan); !strings.Contains(h.Trouble, "no rights") || h.Sent != 0 {
			t.Errorf("unknown: %+v", h)
		}
	})
	run(t, func(w *world) {
		a, b := w.pair([]tunnel.Encap{direct, vxlan})
		time.Sleep(20 * time.Second)
		w.closeWay(direct, true)
		time.Sleep(3 * time.Second)
		w.set(func() {
			w.refused[path{"a", "b", direct}], w.refused[path{"b", "a", direct}] = unknown("not in use"), unknown("not in use")
		})
		time.Sleep(minRetrial - 10*time.Second)
		a.want("b", vxlan, "closed")
		b.want("a", vxlan, "closed")
		w.closeWay(direct, false)
		time.Sleep(20 * time.Second)
		a.want("b", direct, "some time later")
	})
}

// TestFullSize holds that a path with a small MTU is told, and that only one that
// carries next to nothing is left.
func TestFullSize(t *testing.T) {
	for limit, want := range map[int]tunnel.Encap{1400: vxlan, 576: vxlan, 400: wireguard} {
		run(t, func(w *world) {
			a, _ := w.pair(vxlanFirst)
			time.Sleep(20 * time.Second)
			if h := a.health("b", vxlan); h.Full != FullPasses {
				t.Errorf("well: %+v", h)
			}
			w.set(func() { w.limit[path{"a", "b", vxlan}] = limit })
			time.Sleep(time.Minute)
			a.want("b", want, fmt.Sprint(limit))
			h := a.health("b", vxlan)
			if want == vxlan && (h.Full != FullLost || !strings.Contains(h.Trouble, "1450")) || want != vxlan && !strings.Contains(h.Failed, "packets of 576 bytes") {
				t.Errorf("%d: %+v", limit, h)
			}
			time.Sleep(20 * time.Minute)
			a.want("b", want, fmt.Sprint(limit, " later"))
			if n := a.switches("b"); n > 1 {
				t.Errorf("%d: choices %v", limit, a.choices)
			}
			w.set(func() { w.limit = map[path]int{} })
			time.Sleep(maxBackoff + time.Minute)
			a.want("b", vxlan, "healed")
			if h := a.health("b", vxlan); h.Full != FullPasses || h.Trouble != "" {
				t.Errorf("healed: %+v", h)
			}
		})
	}
}

// TestSmallOnly holds that a host which can send no large probes does without.
func TestSmallOnly(t *testing.T) {
	run(t, func(w *world) {
		w.set(func() { w.large = unknown("no large ones") })
		a, _ := w.pair(vxlanFirst)
		time.Sleep(time.Minute)
		if h := a.health("b", vxlan); h.Full != FullUnknown || h.Trouble != "" || h.Loss > 0.1 {
			t.Errorf("well: %+v", h)
		}
		w.closeWay(vxlan, true)
		time.Sleep(3 * time.Second)
		a.want("b", wireguard, "closed")
	})
}

// TestNewWay holds that a host which answers by no way is tried by one that is new.
func TestNewWay(t *testing.T) {
	run(t, func(w *world) {
		w.closeWay(vxlan, true)
		w.closeWay(direct, true)
		a, b := w.pair([]tunnel.Encap{direct, vxlan})
		time.Sleep(time.Hour)
		a.want("b", direct, "closed")
		w.set(func() { a.ways["b"], b.ways["a"] = allWays[1:], allWays[1:] })
		a.plan()
		b.plan()
		time.Sleep(10 * time.Second)
		a.want("b", wireguard, "a new way")
		b.want("a", wireguard, "a new way")
	})
}

// TestSlowAnswers holds that a way which has become slow at once is not failed.
func TestSlowAnswers(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.set(func() { w.rtt = 600 * time.Millisecond })
		time.Sleep(time.Minute)
		if n := a.switches("b"); n != 0 {
			t.Errorf("choices %v", a.choices)
		}
		if h := a.health("b", vxlan); h.RTT < 500*time.Millisecond || h.Loss > 0.1 {
			t.Errorf("slow: %+v", h)
		}
	})
}

// TestBackoff holds how often a failed way is probed.
func TestBackoff(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.closeWay(vxlan, true)
		time.Sleep(3 * time.Second)
		from := time.Since(start)
		time.Sleep(4 * time.Second)
		first := w.count(path{"a", "b", vxlan}, from)
		time.Sleep(10 * time.Second)
		if n := w.count(path{"a", "b", vxlan}, from); first != 1 || n != 2 {
			t.Errorf("%d and then %d probes after it failed, want 1 and 1 more", first, n-first)
		}
		from = time.Since(start)
		time.Sleep(6 * time.Hour)
		if n := w.count(path{"a", "b", vxlan}, from); n < 36 || n > 44 {
			t.Errorf("%d probes in six hours", n)
		}
		from = time.Since(start)
		for range 50 {
			a.monitor.Wake()
		}
		time.Sleep(100 * time.Millisecond)
		if n := w.count(path{"a", "b", vxlan}, from); n != 1 {
			t.Errorf("%d probes at once after an event, want 1", n)
		}
	})
}

// TestManyPeers holds that all probes together are bounded, and that every host
// gets its share.
func TestManyPeers(t *testing.T) {
	run(t, func(w *world) {
		ways := map[string][]tunnel.Encap{}
		for i := range 5000 {
			ways[fmt.Sprint("host", i)] = vxlanFirst
			if i%5 == 0 {
				ways[fmt.Sprint("host", i)] = vxlanFirst[:1]
			}
		}
		a := w.add("a", ways)
		time.Sleep(4 * time.Minute)
		seconds, probed := map[time.Duration]int{}, map[string]int{}
		w.mu.Lock()
		for _, s := range w.probes {
			seconds[s.at.Truncate(time.Second)]++
			probed[s.to]++
		}
		w.mu.Unlock()
		for at, n := range seconds {
			if n > 225 {
				t.Errorf("%d probes in the second from %v", n, at)
			}
		}
		for host := range ways {
			if probed[host] < 2 {
				t.Errorf("%s was probed %d times", host, probed[host])
			}
		}
		if failed := a.monitor.Failed(); len(failed) != 0 {
			t.Errorf("%d ways failed", len(failed))
		}
	})
}

// TestPeerGoes holds that nothing is left of a host that is no target any more.
func TestPeerGoes(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		w.closeWay(vxlan, true)
		time.Sleep(5 * time.Second)
		w.set(func() { delete(a.ways, "b") })
		a.plan()
		synctest.Wait()
		from := time.Since(start)
		time.Sleep(time.Hour)
		if n := w.count(path{"a", "b", vxlan}, from) + w.count(path{"a", "b", wireguard}, from); n != 0 {
			t.Errorf("%d probes to a host that is gone", n)
		}
		m := a.monitor
		if len(m.Failed()) != 0 || len(m.Report()) != 0 || len(m.numbers) != 0 || m.queue.Len() != 0 {
			t.Errorf("left: %v, %v, %d, %d", m.Failed(), m.Report(), len(m.numbers), m.queue.Len())
		}
	})
}

// TestTargetsKeepWhatIsKnown holds that setting the same targets again changes
// nothing.
func TestTargetsKeepWhatIsKnown(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		for range 100 {
			time.Sleep(150 * time.Millisecond)
			a.plan()
		}
		if n := w.count(path{"a", "b", vxlan}, 0); n > 20 {
			t.Errorf("%d probes in fifteen seconds", n)
		}
		w.closeWay(vxlan, true)
		for range 20 {
			time.Sleep(150 * time.Millisecond)
			a.plan()
		}
		a.want("b", wireguard, "closed")
	})
}
