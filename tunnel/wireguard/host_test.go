package wireguard

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
)

const (
	placeA = "192.0.2.1:51820"
	placeB = "192.0.2.2:51820"
	placeC = "192.0.2.3:4000"
)

// pair is two ends that know each other.
func pair(t *testing.T, w *wire) (a, b *end, toB, toA *Peer) {
	t.Helper()
	a, b = newEnd(t, w, 1, placeA, Config{}), newEnd(t, w, 2, placeB, Config{})
	return a, b, a.setPeers(a.peer(b))[0], b.setPeers(b.peer(a))[0]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReceived(t *testing.T, e *end, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := e.received(); !slices.Equal(got, want) {
		t.Fatalf("%s received %q, want %q", e.at, got, want)
	}
}

func TestDataBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		defer a.stop()
		defer b.stop()
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		must(t, b.send(toA, []byte("two")))
		wantReceived(t, a, "two")
	})
}

// TestTwoFamilies holds that a host is two peers by its two outer families, each
// with a session of its own.
func TestTwoFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, _, _ := pair(t, w)
		six := map[*end]netip.AddrPort{
			a: netip.MustParseAddrPort("[2001:db8::1]:51820"), b: netip.MustParseAddrPort("[2001:db8::2]:51820"),
		}
		sides := map[*end][]*Peer{}
		for e, other := range map[*end]*end{a: b, b: a} {
			w.connect(six[e], e.receive)
			e.host.send = func(to netip.AddrPort, datagram []byte) error {
				if to.Addr().Is6() {
					return w.send(six[e], to, datagram)
				}
				return w.send(e.at, to, datagram)
			}
			config := e.peer(other)
			config.Endpoint = six[other]
			sides[e] = e.setPeers(e.peer(other), config)
		}
		for _, p := range sides[a] {
			if !p.Stage([]byte("x")) {
				t.Fatal("not staged")
			}
		}
		wantReceived(t, b, "x", "x")
		for _, p := range slices.Concat(sides[a], sides[b]) {
			if !p.Status().Up {
				t.Errorf("no session by %s", p.Endpoint())
			}
		}
		if len(b.host.Active()) != 2 {
			t.Errorf("active is %v", b.host.Active())
		}
	})
}
