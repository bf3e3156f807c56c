package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// spoken is h as a peer that speaks both encapsulations and gets one.
func (h host) spoken(encap tunnel.Encap) []tunnel.Peer {
	peers := h.sealedPeers()
	for i := range peers {
		peers[i].VXLAN = h.outer
		if peers[i].Encap = encap; encap == tunnel.EncapVXLAN {
			peers[i].Endpoint, peers[i].VXLAN = h.outer, netip.AddrPort{}
		}
	}
	return peers
}

// TestProbeWay holds that a probe goes by the way it is of, whatever the peer
// gets otherwise, that the peer's host is the one to answer it, and that the
// answer may come by either way.
func TestProbeWay(t *testing.T) {
	both := []tunnel.Encap{tunnel.EncapVXLAN, tunnel.EncapWireGuard}
	for _, used := range both {
		for _, back := range both {
			t.Run(fmt.Sprintf("used %s, back %s", used, back), func(t *testing.T) {
				a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
				join(t, a, b)
				a.setPeers(far.spoken(used))
				b.setPeers(here.spoken(back))
				bothFamilies(t, func(t *testing.T, is4 bool) {
					for i, encap := range both {
						a.answered = nil
						token := uint64(1)<<40 + uint64(i)
						if err := a.engine.ProbeWay(far.subnet(is4), encap, 100, token); err != nil {
							t.Fatal(err)
						}
						b.takeFrom(t, encap)
						requests, _ := b.delivered()
						if len(requests) != 1 || len(requests[0]) != 100 {
							t.Fatalf("%d packets delivered, want one of 100 bytes", len(requests))
						}
						if err := tunneltest.Check(requests[0]); err != nil {
							t.Fatal(err)
						}
						b.send(finished(replyTo(requests[0]))...)
						a.takeFrom(t, back)
						if !slices.Equal(a.answered, []uint64{token}) {
							t.Errorf("by %s: answered %v, want %v", encap, a.answered, token)
						}
						if rest, _ := a.delivered(); len(rest) != 0 {
							t.Error("the answer was delivered")
						}
					}
				})
			})
		}
	}
}

// takeFrom has the rx worker process what is on one of the sockets alone.
func (e *end) takeFrom(t *testing.T, encap tunnel.Encap) {
	t.Helper()
	socket, sealed := e.socket, encap == tunnel.EncapWireGuard
	if sealed {
		socket = e.sealed
	}
	rx := e.engine.workers[0].rx[0]
	n, err := socket.TryReceive(rx.batch, rx.arena)
	if err != nil || n == 0 {
		t.Fatalf("nothing came by %s: %v", encap, err)
	}
	rx.process(rx.batch[:n], sealed)
}

// TestProbeWayBeginsHandshake holds that the first probe by WireGuard brings keys.
func TestProbeWayBeginsHandshake(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	probe := func() error { return a.engine.ProbeWay(far.subnet(true), tunnel.EncapWireGuard, 100, 1) }
	if err := probe(); !errors.Is(err, errNoKeys) {
		t.Fatalf("without keys: %v", err)
	}
	exchange(t, a, b, func() bool { return probe() == nil })
}

// TestProbeWayLarge holds that large probes leave by sockets for them, and not at
// all without.
func TestProbeWayLarge(t *testing.T) {
	a, _ := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	a.setPeers(far.spoken(tunnel.EncapVXLAN))
	if err := a.engine.ProbeWay(far.subnet(true), tunnel.EncapVXLAN, largestPlain+1, 1); !errors.Is(err, ErrProbeSize) {
		t.Errorf("large without a socket for it: %v", err)
	}
	u := &underlay{t: t, local: hereOuter.Addr(), limit: 1500, silent: true, count: map[netip.AddrPort]int{}}
	e, err := New(Config{
		Workers: []Worker{{Device: a.device, Sockets: []tunnel.Socket{a.socket}, Probes: []ProbeSocket{u}}},
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.SetLocals(here.locals()), e.SetPeers(far.peers()), e.ProbeWay(far.subnet(false), tunnel.EncapVXLAN, testMTU, 1)); err != nil {
		t.Fatal(err)
	}
	if u.probes(farOuter) != 1 {
		t.Error("no probe left by the socket for it")
	}
}

func TestProbeWayErrors(t *testing.T) {
	a, _ := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	for _, test := range []struct {
		peers  []tunnel.Peer
		prefix string
		encap  tunnel.Encap
		size   int
		want   string
	}{
		{far.spoken(tunnel.EncapVXLAN), "10.244.9.0/24", tunnel.EncapVXLAN, 100, "no peer has the prefix"},
		{far.spoken(tunnel.EncapVXLAN), "10.244.2.0/25", tunnel.EncapVXLAN, 100, "no peer has the prefix"},
		{far.spoken(tunnel.EncapVXLAN), "10.244.2.0/24", tunnel.EncapDirect, 100, "not a way of the engine"},
		{far.spoken(tunnel.EncapVXLAN), "10.244.2.0/24", tunnel.EncapVXLAN, 10, "does not suit"},
		{far.spoken(tunnel.EncapVXLAN), "10.244.2.0/24", tunnel.EncapVXLAN, -1, "want at most"},
		{far.peers(), "10.244.2.0/24", tunnel.EncapWireGuard, 100, "no WireGuard"},
		{far.sealedPeers(), "10.244.2.0/24", tunnel.EncapVXLAN, 100, "no VXLAN"},
	} {
		a.setPeers(test.peers)
		err := a.engine.ProbeWay(netip.MustParsePrefix(test.prefix), test.encap, test.size, 1)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.prefix) {
			t.Errorf("%s by %s: %v, want %q", test.prefix, test.encap, err, test.want)
		}
	}
	if n := a.engine.Stats().Value(Probes); n != 0 {
		t.Errorf("%d probes sent", n)
	}
}

// TestForgedAnswers holds that a peer answers neither for another nor for a probe
// of another token.
func TestForgedAnswers(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	a.setPeers(append(far.spoken(tunnel.EncapVXLAN), thrd.spoken(tunnel.EncapVXLAN)...))
	b.setPeers(here.spoken(tunnel.EncapVXLAN))
	const token = 5<<32 | 1
	if err := a.engine.ProbeWay(far.subnet(true), tunnel.EncapVXLAN, 100, token); err != nil {
		t.Fatal(err)
	}
	b.takeFrom(t, tunnel.EncapVXLAN)
	requests, _ := b.delivered()
	reply := replyTo(requests[0])
	// change makes a sound packet of the reply with another source or token.
	change := func(source netip.Addr, token uint64) []byte {
		echo := bytes.Clone(reply)
		binary.BigEndian.PutUint64(echo[28+8:], token)
		p := tunneltest.Packet{
			Source: netip.AddrPortFrom(source, 0), Destination: netip.AddrPortFrom(here.subnet(true).Addr(), 0),
			Protocol: tunneltest.ICMPv4, Payload: echo[20:],
		}
		return p.Bytes()
	}
	own, other := far.subnet(true).Addr(), thrd.subnet(true).Addr()
	for _, forged := range []struct {
		from host
		data []byte
		want int
	}{
		{thrd, change(other, token), 0},
		{far, change(own, token+1), 0},
		{far, change(own.Next(), token), 0},
		{far, change(own, token), 1},
	} {
		a.answered = nil
		a.wire.Inject(forged.from.outer, hereOuter, 0, forged.from.frame(forged.data))
		a.takeFrom(t, tunnel.EncapVXLAN)
		if len(a.answered) != forged.want {
			t.Errorf("%d answers taken, want %d", len(a.answered), forged.want)
		}
	}
}
