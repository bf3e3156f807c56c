package wireguard

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

func wantSent(t *testing.T, tr *trace, e *end, kind byte, want int) {
	t.Helper()
	synctest.Wait()
	if got := tr.of(e, kind); got != want {
		t.Fatalf("%s has sent %d datagrams of type %d, want %d", e.at, got, kind, want)
	}
}

// TestRekey holds that the initiator, and it alone, begins the next handshake
// when it sends after two minutes, or hears after 165 seconds.
func TestRekey(t *testing.T) {
	for _, test := range []struct {
		name      string
		after     time.Duration
		byStarter bool // who sends then
		want      int  // initiations of the one who began
	}{
		{"initiator sends early", 119 * time.Second, true, 1},
		{"initiator sends", 121 * time.Second, true, 2},
		{"responder sends", 121 * time.Second, false, 1},
		{"responder sends late", 166 * time.Second, false, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWire()
				tr := w.watch(nil)
				a, b, toB, toA := pair(t, w)
				must(t, a.send(toB, []byte("one")))
				time.Sleep(test.after)
				if test.byStarter {
					must(t, a.send(toB, []byte("two")))
					wantReceived(t, b, "one", "two")
				} else {
					must(t, b.send(toA, []byte("two")))
					wantReceived(t, a, "two")
				}
				wantSent(t, tr, a, device.MessageInitiationType, test.want)
				wantSent(t, tr, b, device.MessageInitiationType, 0)
			})
		})
	}
}

// TestInitiationsAreApart holds that five seconds lie between one's initiations,
// however soon the next handshake is wanted, and that it is not forgotten.
func TestInitiationsAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tr := w.watch(nil)
		a, _, toB, _ := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		time.Sleep(2 * time.Second)
		toB.ask()
		wantSent(t, tr, a, device.MessageInitiationType, 1)
		time.Sleep(4 * time.Second)
		wantSent(t, tr, a, device.MessageInitiationType, 2)
	})
}

// TestExpiry holds that sessions end after three minutes, that nothing ticks any
// more then, and that the next packet begins anew.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		must(t, a.send(toB, []byte("one")))
		time.Sleep(device.RejectAfterTime - time.Second)
		if !toB.Status().Up || !toA.Status().Up {
			t.Fatal("the session is not up just before its end")
		}
		time.Sleep(time.Second)
		if toB.Status().Up || toA.Status().Up {
			t.Fatal("the session is up after its end")
		}
		time.Sleep(3 * time.Second)
		a.stop()
		b.stop()
		if a.host.slots.used != 0 || len(a.host.active) != 0 || toB.upkeep != nil {
			t.Fatalf("%d slots in use, %d peers active", a.host.slots.used, len(a.host.active))
		}
		if toB.Session(time.Now()) != nil || !toB.asked.Load() {
			t.Fatal("there is a session after the end, or none is asked for")
		}
	})
}

// TestRetry holds that a handshake is tried for ninety seconds, its packets are
// dropped then, and the next packet begins anew.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		blocked := true
		tr := w.watch(func(_ netip.AddrPort, kind byte) bool { return blocked })
		a, b, toB, _ := pair(t, w)
		must(t, a.send(toB, []byte("lost")))
		wantSent(t, tr, a, device.MessageInitiationType, 1)
		time.Sleep(device.RekeyTimeout - time.Millisecond)
		wantSent(t, tr, a, device.MessageInitiationType, 1)
		time.Sleep(time.Second)
		wantSent(t, tr, a, device.MessageInitiationType, 2)
		time.Sleep(100 * time.Second)
		sent := tr.of(a, device.MessageInitiationType)
		if sent < 16 || sent > 19 {
			t.Fatalf("%d initiations within ninety seconds", sent)
		}
		time.Sleep(time.Minute)
		wantSent(t, tr, a, device.MessageInitiationType, sent)
		if a.host.staged.Load() != 0 {
			t.Fatal("packets stay staged")
		}
		synctest.Wait()
		blocked = false
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
	})
}

// TestPassiveKeepalive holds that data is answered by an empty packet when ten
// seconds bring no other, and an empty packet by nothing.
func TestPassiveKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		must(t, b.send(toA, []byte("two")))
		tr := w.watch(nil)
		time.Sleep(9 * time.Second)
		wantSent(t, tr, a, keepaliveType, 0)
		time.Sleep(2 * time.Second)
		wantSent(t, tr, a, keepaliveType, 1)
		wantSent(t, tr, b, keepaliveType, 0)
		time.Sleep(30 * time.Second)
		wantSent(t, tr, a, keepaliveType, 1)
		wantSent(t, tr, b, keepaliveType, 0)
		wantSent(t, tr, a, device.MessageInitiationType, 0)
	})
}

// TestUnanswered holds that data nobody answers for fifteen seconds begins a
// handshake.
func TestUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		must(t, b.send(toA, []byte("two")))
		time.Sleep(time.Minute)
		tr := w.watch(func(netip.AddrPort, byte) bool { return true })
		must(t, a.send(toB, []byte("lost")))
		time.Sleep(14 * time.Second)
		wantSent(t, tr, a, device.MessageInitiationType, 0)
		time.Sleep(2 * time.Second)
		wantSent(t, tr, a, device.MessageInitiationType, 1)
		w.setPass(nil)
		time.Sleep(6 * time.Second)
		must(t, a.send(toB, []byte("three")))
		wantReceived(t, b, "one", "three")
	})
}

func TestPersistentKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tr := w.watch(nil)
		a, b := newEnd(t, w, 1, placeA, Config{}), newEnd(t, w, 2, placeB, Config{})
		b.setPeers(b.peer(a))
		config := a.peer(b)
		config.Keepalive = 25 * time.Second
		a.setPeers(config)
		wantSent(t, tr, a, device.MessageInitiationType, 1)
		time.Sleep(10 * time.Minute)
		if kept := tr.of(a, keepaliveType); kept < 20 || kept > 30 {
			t.Fatalf("%d keepalives in ten minutes", kept)
		}
		synctest.Wait()
		if !a.host.peers[0].Status().Up {
			t.Fatal("no session is up")
		}
	})
}

// TestResponderWaits holds that the responder does not send by a session before
// its initiator did, and then sends what has waited.
func TestResponderWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		blocked := true
		w.watch(func(from netip.AddrPort, kind byte) bool {
			return blocked && (kind == 4 || kind == keepaliveType)
		})
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("lost")))
		synctest.Wait()
		if toB.Session(time.Now()) == nil {
			t.Fatal("the initiator has no session")
		}
		if toA.Session(time.Now()) != nil {
			t.Fatal("the responder sends before it heard the initiator")
		}
		must(t, b.send(toA, []byte("waited")))
		synctest.Wait()
		blocked = false
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		wantReceived(t, a, "waited")
		if toA.Session(time.Now()) == nil {
			t.Fatal("the responder has no session after it heard the initiator")
		}
	})
}

// TestCrossing holds that handshakes which both begin at once both succeed, lose
// nothing, and do not cross for ever.
func TestCrossing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		var mu sync.Mutex
		var held []func()
		holding := true
		w.setPass(func(_, _ netip.AddrPort, datagram []byte, deliver func()) {
			mu.Lock()
			defer mu.Unlock()
			if holding {
				held = append(held, deliver)
			} else {
				time.AfterFunc(50*time.Millisecond, deliver)
			}
		})
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("a0")))
		must(t, b.send(toA, []byte("b0")))
		for range 4 {
			// Initiations cross, then answers, then data.
			synctest.Wait()
			mu.Lock()
			now := held
			held = nil
			mu.Unlock()
			for _, deliver := range now {
				deliver()
			}
		}
		mu.Lock()
		holding = false
		mu.Unlock()
		wantReceived(t, a, "b0")
		wantReceived(t, b, "a0")
		want := 1
		for i := range 400 {
			time.Sleep(time.Second)
			must(t, a.send(toB, fmt.Appendf(nil, "a%d", i+1)))
			must(t, b.send(toA, fmt.Appendf(nil, "b%d", i+1)))
			want++
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if len(a.received()) != want || len(b.received()) != want {
			t.Fatalf("%d and %d of %d packets came", len(a.received()), len(b.received()), want)
		}
		if initiators := toB.current.Load().initiator != toA.current.Load().initiator; !initiators {
			t.Error("both sides still are initiators")
		}
	})
}

// TestComesHome holds that a peer which is silent where it was heard last is
// looked for where it is configured, and before long there too.
func TestComesHome(t *testing.T) {
	for _, test := range []struct {
		name  string
		back  string        // where the peer is from then on
		after time.Duration // until the next packet to it
		send  int           // packets to it, one a second
		want  int           // that come, at least
	}{
		{"returned", placeA, 5 * time.Second, 25, 9},
		{"returned long ago", placeA, 4 * time.Minute, 5, 5},
		{"still there", placeC, 4 * time.Minute, 15, 9},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, toB, toA := pair(t, newWire())
				a.roam(placeC)
				must(t, a.send(toB, []byte("one")))
				synctest.Wait()
				must(t, b.send(toA, []byte("two")))
				synctest.Wait()
				if toA.Endpoint() != a.place() {
					t.Fatalf("the peer is at %s", toA.Endpoint())
				}
				time.Sleep(15 * time.Second) // so that it owes no keepalive
				a.roam(test.back)
				time.Sleep(test.after)
				for range test.send {
					must(t, b.send(toA, []byte("more")))
					time.Sleep(time.Second)
				}
				if got := len(a.received()) - 1; got < test.want {
					t.Errorf("%d of %d packets came, want %d", got, test.send, test.want)
				}
				if toA.Endpoint() != a.place() {
					t.Errorf("the peer is at %s, want %s", toA.Endpoint(), a.place())
				}
			})
		})
	}
}

// TestComesHomeAfterAll holds that nothing is sent for ever to where a peer was once.
func TestComesHomeAfterAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, toA := pair(t, w)
		a.roam(placeC)
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		a.roam("192.0.2.99:1")
		var mu sync.Mutex
		to := map[netip.AddrPort]int{}
		w.setPass(func(from, at netip.AddrPort, _ []byte, deliver func()) {
			mu.Lock()
			defer mu.Unlock()
			if from == b.place() {
				to[at]++
			}
		})
		must(t, b.send(toA, []byte("lost")))
		time.Sleep(2 * time.Minute)
		home, once := netip.MustParseAddrPort(placeA), netip.MustParseAddrPort(placeC)
		mu.Lock()
		if toA.Endpoint() != home || to[home] < 5 || to[once] < 5 {
			t.Errorf("the peer is at %s after datagrams to %v", toA.Endpoint(), to)
		}
		clear(to)
		mu.Unlock()
		must(t, b.send(toA, []byte("lost")))
		time.Sleep(2 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if to[home] < 10 || to[once] != 0 {
			t.Errorf("later datagrams went to %v", to)
		}
	})
}
