package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func empty() *world { return newWorld() }
func full() *world  { return newWorld(all...) }

func TestCreatesInOrderAndDeletesInReverse(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		synctest.Wait()
		if r.world.count() != 0 {
			t.Error("looked before anything was wanted")
		}
		r.SetWant(wants(all...), true)
		r.expect(t, "apply 1 link=a, apply 2 route a=a, apply 2 route b=b", "1 link done, 2 route a done, 2 route b done", true)
		r.SetWant(nil, true)
		r.expect(t, "delete 2 route b, delete 2 route a, delete 1 link", "", true)
		r.logged(t)
	})
}

func TestNotSettledBeforeItLooked(t *testing.T) {
	l := New(empty().config(&bytes.Buffer{}))
	if l.Status().Settled {
		t.Error("settled before anything was wanted")
	}
	l.SetWant(nil, true)
	if l.Status().Settled {
		t.Error("settled although nobody has looked for what is surplus")
	}
}

func TestPutsUpWithWhatIsThere(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.SetWant(wants(all...), true)
		r.expect(t, "", "1 link done, 2 route a done, 2 route b done", true)
	})
}

// TestDeletesNothingBeforeComplete is the in-sync gate: a restarted agent
// finds its old things and does not know yet which of them are stale.
func TestDeletesNothingBeforeComplete(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.SetWant(wants(link), false)
		r.expect(t, "", "1 link done", true)
		time.Sleep(time.Hour)
		r.expect(t, "", "1 link done", true)
		r.SetWant(wants(link, routeB), true)
		r.expect(t, "delete 2 route a", "1 link done, 2 route b done", true)
		r.SetWant(wants(link), false)
		r.expect(t, "", "1 link done", true)
	})
}

// TestGateClosesAgain holds that a removal which is failing ends with the gate.
func TestGateClosesAgain(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.world.before = func(string) error { return errRefused }
		r.SetWant(wants(link, routeA), true)
		r.expect(t, "", "1 link done, 2 route a done, 2 route b failed removing", true)
		r.SetWant(wants(link, routeA), false)
		r.world.change(func() { r.world.before = nil })
		time.Sleep(time.Hour)
		r.expect(t, "", "1 link done, 2 route a done", true)
	})
}

func TestOneFailureHoldsUpNobody(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		var tries []time.Duration
		began := time.Now()
		r.world.before = func(effect string) error {
			if strings.Contains(effect, "route a") {
				tries = append(tries, time.Since(began))
				return errRefused
			}
			return nil
		}
		r.SetWant(wants(all...), true)
		r.expect(t, "apply 1 link=a, apply 2 route b=b", "1 link done, 2 route a failed, 2 route b done", true)
		if item := r.Status().Items["2 route a"]; item.Error != "refused" || item.Attempts != 1 || !item.Since.Equal(began) {
			t.Errorf("status of the failed item: %+v", item)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		wait := 100 * time.Millisecond
		for i := 1; i < len(tries); i++ {
			if got := tries[i] - tries[i-1]; got < wait/2 || got > wait {
				t.Errorf("try %d came after %v, want %v to %v", i, got, wait/2, wait)
			}
			wait = min(2*wait, 30*time.Second)
		}
		if n := r.Status().Items["2 route a"].Attempts; n != len(tries) || n < 20 {
			t.Errorf("%d attempts in status, %d made", n, len(tries))
		}
		r.world.change(func() { r.world.before = nil })
		time.Sleep(30 * time.Second)
		r.expect(t, "apply 2 route a=a", "1 link done, 2 route a done, 2 route b done", true)
		r.logged(t, `item="2 route a" removing=false err=refused`, `recovered`)
	})
}

// TestRetriesDependentsAtOnce holds that what could not be made for want of a
// link does not sit out its own backoff once the link is there.
func TestRetriesDependentsAtOnce(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		broken := true
		r.world.before = func(effect string) error {
			if broken && strings.Contains(effect, "1 link") {
				return errRefused
			}
			if _, there := r.world.things["1 link"]; !there && strings.Contains(effect, "2 route") {
				return errors.New("no such device")
			}
			return nil
		}
		r.SetWant(wants(all...), true)
		time.Sleep(time.Hour)
		r.expect(t, "", "1 link failed, 2 route a failed, 2 route b failed", true)
		r.world.change(func() { broken = false })
		began := time.Now()
		for r.world.takeEffects() == "" {
			<-r.Changed()
			synctest.Wait()
		}
		if took := time.Since(began); took > 30*time.Second {
			t.Errorf("recovered after %v", took)
		}
		r.expect(t, "", "1 link done, 2 route a done, 2 route b done", true)
	})
}

func TestObserveFailureChangesNothing(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.world.lookErr = errRefused
		r.SetWant(wants(link), true)
		r.expect(t, "", "1 link pending", false)
		if got := r.Status().Error; got != "refused" {
			t.Errorf("status error %q", got)
		}
		time.Sleep(time.Hour)
		if n := r.world.count(); n < 100 || n > 300 {
			t.Errorf("%d looks in an hour of failures", n)
		}
		r.world.change(func() { r.world.lookErr = nil })
		time.Sleep(30 * time.Second)
		r.expect(t, "delete 2 route b, delete 2 route a", "1 link done", true)
		r.world.change(func() { r.world.lookErr = errRefused })
		time.Sleep(time.Hour)
		r.SetWant(wants(link, routeA), true)
		r.expect(t, "", "1 link done, 2 route a pending", false)
		r.logged(t, "item=observe", "recovered", "item=observe")
	})
}

// TestLooksAgainAfterItsOwnEffects holds that what a link that is made anew
// takes with it is back at once, without any hint.
func TestLooksAgainAfterItsOwnEffects(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.SetWant(wants(all...), true)
		r.expect(t, "", "1 link done, 2 route a done, 2 route b done", true)
		r.SetWant(wants(thing{"1 link", "new"}, routeA, routeB), true)
		r.expect(t, "apply 1 link=new, apply 2 route a=a, apply 2 route b=b", "1 link done, 2 route a done, 2 route b done", true)
	})
}

func TestRepairsDrift(t *testing.T) {
	for _, hinted := range []bool{true, false} {
		t.Run(fmt.Sprintf("hinted %t", hinted), func(t *testing.T) {
			inBubble(t, func() *world {
				w := full()
				w.hints = make(chan struct{}, 1)
				return w
			}, func(t *testing.T, r run) {
				r.SetWant(wants(all...), true)
				r.expect(t, "", "1 link done, 2 route a done, 2 route b done", true)
				time.Sleep(time.Second)
				r.world.change(func() {
					delete(r.world.things, "2 route a")
					r.world.things["2 route b"] = thing{"2 route b", "changed"}
					r.world.things["2 route c"] = thing{"2 route c", "surplus"}
				})
				if hinted {
					r.world.hints <- struct{}{}
				} else {
					time.Sleep(30 * time.Second)
				}
				r.expect(t, "apply 2 route a=a, apply 2 route b=b, delete 2 route c", "1 link done, 2 route a done, 2 route b done", true)
				r.logged(t, "items=2")
			})
		})
	}
}

func TestStormOfHints(t *testing.T) {
	inBubble(t, func() *world {
		w := full()
		w.hints = make(chan struct{})
		return w
	}, func(t *testing.T, r run) {
		r.SetWant(wants(all...), true)
		synctest.Wait()
		before := r.world.count()
		for began := time.Now(); time.Since(began) < time.Second; time.Sleep(time.Millisecond) {
			select {
			case r.world.hints <- struct{}{}:
			default:
			}
		}
		if n := r.world.count() - before; n < 30 || n > 51 {
			t.Errorf("%d looks in a second of hints, want one in 20 ms", n)
		}
		close(r.world.hints)
		time.Sleep(time.Second)
		before = r.world.count()
		time.Sleep(time.Hour)
		if n := r.world.count() - before; n < 119 || n > 121 {
			t.Errorf("%d looks in an hour without hints, want one in 30 s", n)
		}
		r.expect(t, "", "1 link done, 2 route a done, 2 route b done", true)
	})
}

// TestOwnEffectsEndInSilence holds that hints about our own effects do not
// keep the loop going.
func TestOwnEffectsEndInSilence(t *testing.T) {
	inBubble(t, func() *world {
		w := empty()
		w.hints = make(chan struct{}, 1)
		return w
	}, func(t *testing.T, r run) {
		r.SetWant(wants(all...), true)
		time.Sleep(10 * time.Second)
		r.expect(t, "apply 1 link=a, apply 2 route a=a, apply 2 route b=b", "1 link done, 2 route a done, 2 route b done", true)
		if n := r.world.count(); n > 4 {
			t.Errorf("%d looks", n)
		}
	})
}

// TestLooksTakeAShare holds that where looking is slow, a stream of wants is
// acted on at once and looked at from time to time.
func TestLooksTakeAShare(t *testing.T) {
	inBubble(t, func() *world {
		w := empty()
		w.lookTime = 50 * time.Millisecond
		return w
	}, func(t *testing.T, r run) {
		want := wants(link)
		r.SetWant(want, true)
		time.Sleep(10 * time.Second)
		r.world.takeEffects()
		before := r.world.count()
		for i := range 200 {
			th := thing{fmt.Sprintf("2 route %03d", i), "x"}
			want[th.name] = th
			r.SetWant(want, true)
			time.Sleep(60 * time.Millisecond)
			if got := r.world.takeEffects(); got != "apply "+th.name+"=x" {
				t.Fatalf("want %d: effects %q", i, got)
			}
		}
		if n := r.world.count() - before; n < 12 || n > 30 {
			t.Errorf("%d looks of 50 ms in 12 s, want a tenth of the time", n)
		}
		time.Sleep(2 * time.Second)
		if s := r.Status(); !s.Settled || len(s.Items) != 201 {
			t.Errorf("settled %t with %d items", s.Settled, len(s.Items))
		}
	})
}

// TestBelievesOnlyWhatItSees holds that an effect without an error counts as
// failed if the next look does not show it.
func TestBelievesOnlyWhatItSees(t *testing.T) {
	inBubble(t, full, func(t *testing.T, r run) {
		r.world.after = func(effect string) {
			switch {
			case strings.HasPrefix(effect, "apply"):
				delete(r.world.things, "2 route c")
			case strings.HasPrefix(effect, "delete"):
				r.world.things["2 route b"] = routeB
			}
		}
		r.SetWant(wants(link, routeA, thing{"2 route c", "c"}), true)
		r.expect(t, "apply 2 route c=c, delete 2 route b", "1 link done, 2 route a done, 2 route b failed removing, 2 route c failed", true)
		for key, text := range map[string]string{"2 route b": errStillThere.Error(), "2 route c": errNotInPlace.Error()} {
			if got := r.Status().Items[key].Error; got != text {
				t.Errorf("%s: error %q, want %q", key, got, text)
			}
		}
	})
}

// TestSaysWhatDiffers holds that a want the world bends is reported with both.
func TestSaysWhatDiffers(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		r.world.after = func(string) { r.world.things["1 link"] = thing{"1 link", "capped"} }
		r.SetWant(wants(link), true)
		synctest.Wait()
		want := "applied without an error, but not in place: want {name:1 link value:a}, have {name:1 link value:capped}"
		if got := r.Status().Items["1 link"].Error; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
	})
}

func TestFightsWithBackoff(t *testing.T) {
	inBubble(t, func() *world {
		w := full()
		w.hints = make(chan struct{}, 1)
		return w
	}, func(t *testing.T, r run) {
		r.SetWant(wants(all...), true)
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(10 * time.Millisecond) {
			r.world.change(func() { delete(r.world.things, "2 route a") })
			select {
			case r.world.hints <- struct{}{}:
			default:
			}
		}
		if n := strings.Count(r.world.takeEffects(), "apply"); n < 100 || n > 300 {
			t.Errorf("put right %d times in an hour, want about once in 30 s", n)
		}
		if item := r.Status().Items["2 route a"]; item.State != Failed {
			t.Errorf("a contested item is %v", item)
		}
		time.Sleep(2 * time.Minute)
		r.world.takeEffects()
		r.world.change(func() { delete(r.world.things, "2 route a") })
		r.world.hints <- struct{}{}
		r.expect(t, "apply 2 route a=a", "1 link done, 2 route a done, 2 route b done", true)
	})
}

// TestWantChangesDuringAnEffect holds that the outcome of an effect for an old
// want is not taken for that of the new one.
func TestWantChangesDuringAnEffect(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		changed := false
		r.world.after = func(effect string) {
			if !changed {
				changed = true
				r.SetWant(wants(thing{"1 link", "b"}), true)
			}
		}
		r.SetWant(wants(all...), true)
		r.expect(t, "apply 1 link=a, apply 1 link=b", "1 link done", true)
	})
}

// TestNewWantEndsTheBackoff holds that a changed want is tried at once, and an
// unchanged one is not.
func TestNewWantEndsTheBackoff(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		r.world.before = func(effect string) error {
			if strings.HasSuffix(effect, "=a") {
				return errRefused
			}
			return nil
		}
		r.SetWant(wants(routeA, routeB), true)
		time.Sleep(time.Hour)
		r.world.takeEffects()
		attempts := r.Status().Items["2 route a"].Attempts
		r.SetWant(wants(routeA, routeB), true)
		r.expect(t, "", "2 route a failed, 2 route b done", true)
		if got := r.Status().Items["2 route a"].Attempts; got != attempts {
			t.Errorf("an unchanged want was tried again: %d attempts, then %d", attempts, got)
		}
		r.SetWant(wants(thing{"2 route a", "z"}, routeB), true)
		r.expect(t, "apply 2 route a=z", "2 route a done, 2 route b done", true)
	})
}

func TestChangedMissesNothing(t *testing.T) {
	inBubble(t, empty, func(t *testing.T, r run) {
		settled := make(chan struct{})
		go func() {
			defer close(settled)
			for {
				changed := r.Changed()
				if r.Status().Settled {
					return
				}
				<-changed
			}
		}()
		time.Sleep(time.Second)
		r.SetWant(wants(all...), true)
		<-settled
		quiet := r.Changed()
		time.Sleep(time.Hour)
		select {
		case <-quiet:
			t.Error("status was said to change while nothing happened")
		default:
		}
	})
}

func TestRunEndsInEveryState(t *testing.T) {
	for name, prepare := range map[string]func(r run){
		"before any want": func(r run) {},
		"settled":         func(r run) { r.SetWant(wants(all...), true) },
		"failing":         func(r run) { r.world.lookErr = errRefused; r.SetWant(wants(all...), true) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, empty, func(t *testing.T, r run) {
				prepare(r)
				synctest.Wait()
			})
		})
	}
}

// TestKillAtEveryEffect cuts the loop off before and after every one of its
// effects, starts another one with no memory, and demands the same end.
func TestKillAtEveryEffect(t *testing.T) {
	start := []thing{{"1 old link", "x"}, {"1 link", "old"}, {"2 route a", "a"}, {"2 route stale", "s"}}
	want := wants(link, routeA, routeB, thing{"2 route c", "c"})
	for kill := 0; ; kill++ {
		killed := false
		for _, refuse := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(start...)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				effects := 0
				cut := func() {
					if effects++; effects == kill+1 {
						killed = true
						cancel()
					}
				}
				if refuse {
					w.before = func(string) error { cut(); return ctx.Err() }
				} else {
					w.after = func(string) { cut() }
				}
				log := &bytes.Buffer{}
				first := New(w.config(log))
				first.SetWant(want, true)
				done := make(chan error, 1)
				go func() { done <- first.Run(ctx) }()
				synctest.Wait()
				cancel()
				<-done
				w.before, w.after = nil, nil

				ctx, cancel = context.WithCancel(t.Context())
				defer cancel()
				second := New(w.config(log))
				second.SetWant(want, true)
				go func() { done <- second.Run(ctx) }()
				synctest.Wait()
				if !maps.Equal(w.things, want) || !second.Status().Settled {
					t.Errorf("killed at effect %d: %v, want %v", kill, w.things, want)
				}
				if strings.Contains(log.String(), "failed") {
					t.Errorf("killed at effect %d: an end is logged as a fault: %s", kill, log)
				}
				cancel()
				<-done
			})
		}
		if !killed {
			if kill < 6 {
				t.Fatalf("only %d effects: the test proves nothing", kill)
			}
			return
		}
	}
}
