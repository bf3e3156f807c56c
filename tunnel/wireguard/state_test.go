package wireguard

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/weft-net/weft/tunnel"
)

// TestRestart holds that a host that lost its sessions is reached again in one
// round trip, though only the other sends.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		time.Sleep(30 * time.Second)
		b.stop()
		again := newEnd(t, w, 2, placeB, Config{})
		again.setPeers(again.peer(a))
		tr := w.watch(nil)
		must(t, a.send(toB, []byte("lost")))
		synctest.Wait()
		must(t, a.send(toB, []byte("two")))
		wantReceived(t, again, "two")
		wantSent(t, tr, again, device.MessageInitiationType, 1)
		wantSent(t, tr, a, device.MessageInitiationType, 0)
	})
}

// TestUnknown holds what datagrams of unknown sessions may bring about: at most a
// handshake per second, and none with strangers.
func TestUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tr := w.watch(func(netip.AddrPort, byte) bool { return true })
		a, b, _, _ := pair(t, w)
		a.host.Unknown(netip.MustParseAddrPort(placeC))
		wantSent(t, tr, a, device.MessageInitiationType, 0)
		for range 40 {
			a.host.Unknown(b.at)
			a.host.Unknown(netip.AddrPortFrom(b.at.Addr(), 1024)) // by a translator
			time.Sleep(100 * time.Millisecond)
		}
		wantSent(t, tr, a, device.MessageInitiationType, 4)
	})
	// With a session, a young one is confirmed again and an old one replaced.
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		tr := w.watch(func(netip.AddrPort, byte) bool { return true })
		for range 100 {
			synctest.Wait()
			a.host.Unknown(b.at)
			time.Sleep(100 * time.Millisecond)
		}
		wantSent(t, tr, a, keepaliveType, 5)
		wantSent(t, tr, a, device.MessageInitiationType, 1)
	})
}

// TestConfirmationLost holds that a peer which still sends by a session we lost,
// because our first packet did not reach it, hears from us again.
func TestConfirmationLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		time.Sleep(30 * time.Second)
		b.stop()
		again := newEnd(t, w, 2, placeB, Config{})
		again.setPeers(again.peer(a))
		w.watch(func(from netip.AddrPort, kind byte) bool { return from == again.at && kind == keepaliveType })
		must(t, a.send(toB, []byte("lost")))
		time.Sleep(2 * time.Second)
		w.setPass(nil)
		must(t, a.send(toB, []byte("lost")))
		synctest.Wait()
		must(t, a.send(toB, []byte("two")))
		wantReceived(t, again, "two")
	})
}

// TestGreet holds that a host which comes back reaches those it was in touch with
// where they were, or else where they are configured to be.
func TestGreet(t *testing.T) {
	for _, moved := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			a, b, toB, toA := pair(t, w)
			configured := b.peer(a)
			a.roam(placeC)
			must(t, a.send(toB, []byte("one")))
			wantReceived(t, b, "one")
			if toA.Endpoint() != a.place() {
				t.Fatalf("the endpoint is %s, want %s", toA.Endpoint(), a.place())
			}
			active := b.host.Active()
			if len(active) != 1 || active[0].Endpoint != a.place() || active[0].Key != a.key.Public() {
				t.Fatalf("active is %v", active)
			}
			b.stop()
			if moved {
				a.roam(placeA)
			}
			again := newEnd(t, w, 2, placeB, Config{})
			toA = again.setPeers(configured)[0]
			stranger := Contact{Key: secretKey(50).Public(), Endpoint: a.place()}
			again.host.Greet(append(active, stranger)...)
			synctest.Wait()
			if !moved && !toA.Status().Up {
				t.Fatal("no session at once")
			}
			time.Sleep(6 * time.Second)
			if !toA.Status().Up || toA.Endpoint() != a.place() {
				t.Fatalf("status is %+v", toA.Status())
			}
		})
	}
}

// TestRotation holds that both hosts may change their keys while packets flow,
// and lose none.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		key, next := a.key, secretKey(200)
		config := b.peer(a)
		both := func(first, second tunnel.SecretKey) {
			must(t, a.host.SetKeys(first, second))
			config.Keys = tunnel.WireGuardKeys{first.Public()}
			if second != (tunnel.SecretKey{}) {
				config.Keys[1] = second.Public()
			}
			if peers := b.setPeers(config); peers[0] != toA {
				t.Fatal("the peer is another one")
			}
		}
		for i := range 1000 {
			switch i {
			case 200:
				both(key, next)
			case 400:
				both(next, key)
			case 600:
				both(next, tunnel.SecretKey{})
			}
			must(t, a.send(toB, fmt.Appendf(nil, "a%d", i)))
			must(t, b.send(toA, fmt.Appendf(nil, "b%d", i)))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if len(a.received()) != 1000 || len(b.received()) != 1000 {
			t.Fatalf("%d and %d of 1000 packets came", len(a.received()), len(b.received()))
		}
		if age := time.Since(toB.Status().LastHandshake); age > 4*time.Minute {
			t.Fatalf("the last handshake was %s ago", age)
		}
	})
}

// TestKeysOfPeer holds that a handshake may come from either key of a peer and go
// to either of ours, and from no other.
func TestKeysOfPeer(t *testing.T) {
	ours, next, strange := secretKey(2), secretKey(20), secretKey(40)
	for _, test := range []struct {
		from tunnel.SecretKey
		to   tunnel.SecretKey
		want bool
	}{{secretKey(1), ours, true}, {secretKey(10), ours, true}, {secretKey(1), next, true}, {secretKey(10), next, true}, {strange, ours, false}, {secretKey(1), strange, false}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			a, b := newEnd(t, w, 1, placeA, Config{}), newEnd(t, w, 2, placeB, Config{Next: next})
			must(t, a.host.SetKeys(test.from, tunnel.SecretKey{}))
			config := a.peer(b)
			config.Keys[0] = test.to.Public()
			toB := a.setPeers(config)[0]
			config = b.peer(a)
			config.Keys[1] = secretKey(10).Public()
			b.setPeers(config)
			must(t, a.send(toB, []byte("one")))
			synctest.Wait()
			if got := len(b.received()) == 1; got != test.want {
				t.Errorf("received is %t, want %t", got, test.want)
			}
		})
	}
}

// TestCookie holds that a host under load asks for a cookie first, also of those
// that answer it.
func TestCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		synctest.Wait()
		b.host.loadedUntil = b.host.now() + time.Hour
		tr := w.watch(nil)
		must(t, a.send(toB, []byte("one")))
		wantSent(t, tr, b, device.MessageCookieReplyType, 1)
		wantSent(t, tr, b, device.MessageResponseType, 0)
		time.Sleep(6 * time.Second)
		wantReceived(t, b, "one")
		wantSent(t, tr, b, device.MessageCookieReplyType, 1)
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		synctest.Wait()
		a.host.loadedUntil = a.host.now() + time.Hour
		tr := w.watch(nil)
		must(t, a.send(toB, []byte("one")))
		wantSent(t, tr, a, device.MessageCookieReplyType, 1)
		time.Sleep(6 * time.Second)
		wantReceived(t, b, "one")
	})
}

// TestLoad holds that a full queue makes for load, and that it passes.
func TestLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newEnd(t, newWire(), 1, placeA, Config{})
		a.stop()
		for i := range queueLen + 10 {
			if a.host.loaded() != (i >= queueLen/8) {
				t.Fatalf("loaded at length %d", i)
			}
			a.host.Handshake(make([]byte, 3), a.at)
			a.host.Handshake(append([]byte{1, 0, 0, 0}, make([]byte, 144)...), a.at)
		}
		if len(a.host.queue) != queueLen {
			t.Fatalf("%d messages wait", len(a.host.queue))
		}
		for len(a.host.queue) > 0 {
			<-a.host.queue
		}
		time.Sleep(device.UnderLoadAfterTime)
		if a.host.loaded() {
			t.Fatal("still loaded")
		}
	})
}

// TestForgedResponse holds that an answer which is not the peer's does not end
// the attempt, also one with a point of low order.
func TestForgedResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, _ := pair(t, w)
		w.setPass(func(from, to netip.AddrPort, datagram []byte, deliver func()) {
			if datagram[0] == device.MessageResponseType {
				for _, spoil := range []func([]byte){
					func(d []byte) { clear(d[12:44]) },
					func(d []byte) { d[20] ^= 1 },
					func(d []byte) { d[50] ^= 1 },
				} {
					forged := append([]byte(nil), datagram...)
					spoil(forged)
					var macs device.CookieGenerator
					macs.Init(device.NoisePublicKey(a.key.Public()))
					macs.AddMacs(forged)
					a.host.Handshake(forged, from)
				}
			}
			deliver()
		})
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
	})
}

// TestFirstCode holds that no message is taken whose first code is wrong.
func TestFirstCode(t *testing.T) {
	for _, kind := range []byte{device.MessageInitiationType, device.MessageResponseType} {
		synctest.Test(t, func(t *testing.T) {
			w := newWire()
			a, _, toB, toA := pair(t, w)
			w.setPass(func(_, _ netip.AddrPort, datagram []byte, deliver func()) {
				if datagram[0] == kind {
					datagram[len(datagram)-macs] ^= 1
				}
				deliver()
			})
			must(t, a.send(toB, []byte("lost")))
			synctest.Wait()
			if toB.Status().Up || toA.Status().LastReceived.IsZero() != (kind == device.MessageInitiationType) {
				t.Errorf("type %d was taken", kind)
			}
		})
	}
}

// TestFlood holds that a peer's initiations are answered at some distance only.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tr := w.watch(nil)
		a, b, toB, _ := pair(t, w)
		a.stop()
		for range 10 {
			a.host.initiate(toB, a.host.now())
			synctest.Wait()
			time.Sleep(device.HandshakeInitationRate / 4)
		}
		wantSent(t, tr, b, device.MessageResponseType, 3)
		if used := b.host.slots.used; used != 1 {
			t.Errorf("%d sessions of which one can be confirmed", used)
		}
	})
}

// TestRateLimit holds that one address does not get all there is under load.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		e := newEnd(t, w, 1, placeA, Config{})
		synctest.Wait()
		h, own := e.host, e.host.own[0]
		h.loadedUntil = h.now() + time.Hour
		var macs device.CookieGenerator
		macs.Init(device.NoisePublicKey(own.public))
		m := message{from: netip.MustParseAddrPort(placeC), size: device.MessageInitiationSize}
		w.connect(m.from, func(datagram []byte, _ netip.AddrPort) {
			var reply device.MessageCookieReply
			_, err := binary.Decode(datagram, binary.LittleEndian, &reply)
			must(t, err)
			if !macs.ConsumeReply(&reply) {
				t.Error("not a cookie for this")
			}
		})
		admitted := 0
		for range 50 {
			macs.AddMacs(m.bytes())
			if h.admit(&m, own) {
				admitted++
			}
		}
		if admitted < 3 || admitted > 5 {
			t.Errorf("%d messages were admitted at once", admitted)
		}
		m.from = netip.MustParseAddrPort(placeB)
		if h.admit(&m, own) {
			t.Error("a cookie is good for another address")
		}
	})
}

func TestBar(t *testing.T) {
	start := tai64n.Now()
	at := func(d time.Duration) tai64n.Timestamp { return later(start, d) }
	for name, steps := range map[string][]struct {
		now, stamp time.Duration
		want       bool
	}{
		"increases":           {{0, 0, true}, {0, 1, false}, {1e9, 1e9, true}, {2e9, 0, false}},
		"a little ahead":      {{0, 30e9, true}, {1e9, 1e9, false}, {31e9, 31e9, true}},
		"far ahead, then not": {{0, 9999 * time.Hour, true}, {1e9, 9999 * time.Hour, false}, {2e9, 2e9, true}, {3e9, 3e9, true}, {4e9, 3e9, false}},
		"always far ahead":    {{0, 5 * time.Hour, true}, {60e9, 5*time.Hour + 60e9, true}, {61e9, 5*time.Hour + 50e9, false}},
		"reached":             {{0, time.Hour, true}, {time.Hour, time.Hour, false}, {time.Hour + 1e9, time.Hour + 1e9, true}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bar
			for i, step := range steps {
				if got := b.pass(at(step.stamp), later(at(step.now), futureLeeway)); got != step.want {
					t.Errorf("step %d: %t, want %t", i, got, step.want)
				}
			}
		})
	}
}

// TestStamp holds that our timestamps increase whatever the clock does.
func TestStamp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newEnd(t, newWire(), 1, placeA, Config{}).host
		last := h.stamp()
		for range 300 {
			next := h.stamp()
			if !next.After(last) {
				t.Fatalf("%x is not after %x", next, last)
			}
			last = next
		}
		h.stamped = later(last, time.Hour) // the clock was set back
		if ahead := h.stamped; !h.stamp().After(ahead) {
			t.Fatal("went back with the clock")
		}
	})
}

// TestReplayedInitiation holds that a copy of an initiation does nothing.
func TestReplayedInitiation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, toA := pair(t, w)
		var initiation []byte
		w.setPass(func(_, _ netip.AddrPort, datagram []byte, deliver func()) {
			if datagram[0] == device.MessageInitiationType {
				initiation = datagram
			}
			deliver()
		})
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		tr := w.watch(nil)
		time.Sleep(time.Second)
		b.host.Handshake(initiation, netip.MustParseAddrPort(placeC))
		wantSent(t, tr, b, device.MessageResponseType, 0)
		if toA.Endpoint() != a.at {
			t.Fatal("a copy moved the endpoint")
		}
	})
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, _, toB, _ := pair(t, w)
		for range 200 {
			must(t, a.send(toB, []byte("one")))
			time.Sleep(time.Second)
		}
		w.watch(func(netip.AddrPort, byte) bool { return true })
		for range 400 {
			_ = a.send(toB, []byte("lost"))
			time.Sleep(time.Second)
		}
		w.setPass(nil)
		for range 20 {
			_ = a.send(toB, []byte("two"))
			time.Sleep(time.Second)
		}
		a.stop()
		log := a.log.String()
		if strings.Count(log, "\n") != 3 || strings.Count(log, "session up") != 2 || strings.Count(log, "silent") != 1 {
			t.Fatalf("log is\n%s", log)
		}
	})
}
