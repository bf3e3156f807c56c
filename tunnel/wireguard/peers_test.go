package wireguard

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
)

func TestSetPeersRefuses(t *testing.T) {
	good := PeerConfig{Name: "good", Keys: tunnel.WireGuardKeys{secretKey(2).Public()}, Endpoint: netip.MustParseAddrPort(placeB)}
	other := secretKey(3).Public()
	change := func(f func(*PeerConfig)) PeerConfig {
		c := good
		c.Name, c.Keys[0] = "bad", other
		f(&c)
		return c
	}
	for name, test := range map[string]struct {
		config PeerConfig
		err    string // empty: it is good
	}{
		"zero key":       {change(func(c *PeerConfig) { c.Keys[0] = tunnel.PublicKey{} }), "first key is zero"},
		"second alone":   {change(func(c *PeerConfig) { c.Keys = tunnel.WireGuardKeys{{}, other} }), "first key is zero"},
		"own key":        {change(func(c *PeerConfig) { c.Keys[0] = secretKey(1).Public() }), "this host's own"},
		"own next key":   {change(func(c *PeerConfig) { c.Keys[1] = secretKey(4).Public() }), "this host's own"},
		"same key":       {change(func(c *PeerConfig) { c.Keys[0] = good.Keys[0] }), "also that of good"},
		"same other key": {change(func(c *PeerConfig) { c.Keys[1] = good.Keys[0] }), "also that of good"},
		"no address":     {change(func(c *PeerConfig) { c.Endpoint = netip.AddrPort{} }), "endpoint"},
		"no port":        {change(func(c *PeerConfig) { c.Endpoint = netip.MustParseAddrPort("192.0.2.9:0") }), "endpoint"},
		"multicast":      {change(func(c *PeerConfig) { c.Endpoint = netip.MustParseAddrPort("[ff02::1]:51820") }), "endpoint"},
		"unspecified":    {change(func(c *PeerConfig) { c.Endpoint = netip.MustParseAddrPort("0.0.0.0:51820") }), "endpoint"},
		"keepalive":      {change(func(c *PeerConfig) { c.Keepalive = -1 }), "keepalive"},
		"other family": {change(func(c *PeerConfig) {
			c.Keys[0], c.Endpoint = good.Keys[0], netip.MustParseAddrPort("[2001:db8::1]:51820")
		}), ""},
		"mapped": {change(func(c *PeerConfig) { c.Endpoint = netip.MustParseAddrPort("[::ffff:192.0.2.9]:51820") }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnd(t, newWire(), 1, placeA, Config{Next: secretKey(4)})
			peers, err := e.host.SetPeers([]PeerConfig{good, test.config})
			if len(peers) != 2 || peers[0] == nil || (peers[1] == nil) != (test.err != "") {
				t.Fatalf("peers are %v", peers)
			}
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), "peer bad: ") || !strings.Contains(err.Error(), test.err)) {
				t.Fatalf("error is %v, want %q", err, test.err)
			}
		})
	}
}

func TestSetPeersKeeps(t *testing.T) {
	w := newWire()
	e := newEnd(t, w, 1, placeA, Config{})
	x, y, z := secretKey(2).Public(), secretKey(3).Public(), secretKey(4).Public()
	at, elsewhere := netip.MustParseAddrPort(placeB), netip.MustParseAddrPort(placeC)
	at6 := netip.MustParseAddrPort("[2001:db8::2]:51820")
	peer := func(place netip.AddrPort, keys ...tunnel.PublicKey) PeerConfig {
		c := PeerConfig{Name: "peer", Endpoint: place}
		copy(c.Keys[:], keys)
		return c
	}
	first := e.setPeers(peer(at, x), peer(at6, x))
	p, p6 := first[0], first[1]
	if p == p6 {
		t.Fatal("one peer for two families")
	}
	p.bars[0].past[0] = 1 // told by key x
	p.move(elsewhere)
	for _, step := range []struct {
		what     string
		config   PeerConfig
		same     bool
		endpoint netip.AddrPort
		bar      int // where that of x is, -1: nowhere
	}{
		{"the same", peer(at, x), true, elsewhere, 0},
		{"a key more", peer(at, x, y), true, elsewhere, 0},
		{"keys swapped", peer(at, y, x), true, elsewhere, 1},
		{"another endpoint", peer(netip.MustParseAddrPort("192.0.2.77:1"), y, x), true, netip.MustParseAddrPort("192.0.2.77:1"), 1},
		{"a key less", peer(at, y), true, at, -1},
		{"another key", peer(at, z), false, at, -1},
	} {
		peers := e.setPeers(step.config, peer(at6, x))
		if peers[1] != p6 {
			t.Errorf("%s: the peer of the other family is another one", step.what)
		}
		if same := peers[0] == p; same != step.same || peers[0].Endpoint() != step.endpoint {
			t.Errorf("%s: the same peer is %t at %s", step.what, same, peers[0].Endpoint())
		}
		for i := range peers[0].bars {
			if got := peers[0].bars[i].past[0] == 1; got != (i == step.bar) {
				t.Errorf("%s: bar %d is %v", step.what, i, peers[0].bars[i])
			}
		}
	}
	if !p.gone || p.Session(time.Now()) != nil {
		t.Error("the peer that left is still there")
	}
}

// TestPeerLeaves holds that a peer taken away is neither sent to nor heard.
func TestPeerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		b.setPeers()
		must(t, a.send(toB, []byte("two")))
		must(t, b.send(toA, []byte("three")))
		time.Sleep(time.Minute)
		wantReceived(t, b, "one")
		wantReceived(t, a)
		a.setPeers() // with a handshake in flight
		time.Sleep(time.Second)
		for _, e := range []*end{a, b} {
			e.stop()
			if len(e.host.active) != 0 || e.host.slots.used != 0 || len(e.host.byAddr) != 0 {
				t.Fatalf("%s: %d active, %d slots", e.at, len(e.host.active), e.host.slots.used)
			}
		}
	})
}

// TestNewEndpointAtOnce holds that a handshake in flight to a place that turns
// out to be wrong goes to the right one without waiting.
func TestNewEndpointAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _ := pair(t, newWire())
		wrong, right := a.peer(b), a.peer(b)
		wrong.Endpoint = netip.MustParseAddrPort(placeC)
		toB := a.setPeers(wrong)[0]
		must(t, a.send(toB, []byte("one")))
		synctest.Wait()
		a.setPeers(right)
		wantReceived(t, b, "one")
	})
}

func TestRoaming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		a.roam(placeC)
		must(t, a.send(toB, []byte("two")))
		must(t, b.send(toA, []byte("three")))
		wantReceived(t, b, "one", "two")
		wantReceived(t, a, "three")
		b.setPeers(PeerConfig{Name: "a", Keys: tunnel.WireGuardKeys{a.key.Public()}, Endpoint: netip.MustParseAddrPort(placeA)})
		if toA.Endpoint() != a.place() {
			t.Errorf("the same config undoes roaming: %s", toA.Endpoint())
		}
		a.roam("[2001:db8::9]:51820")
		must(t, a.send(toB, []byte("four")))
		wantReceived(t, b, "one", "two", "four")
		if !toA.Endpoint().Addr().Is4() {
			t.Errorf("the peer has left its family: %s", toA.Endpoint())
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no error without Send")
	}
	e := newEnd(t, newWire(), 1, placeA, Config{})
	if err := e.host.SetKeys(tunnel.SecretKey{}, secretKey(1)); err == nil {
		t.Error("no error without a key")
	}
}
