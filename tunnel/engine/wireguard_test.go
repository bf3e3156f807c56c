package engine

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// secret is a host's private key in tests.
func (h host) secret() (key tunnel.SecretKey) {
	copy(key[:], h.outer.String())
	return key
}

// sealedOuter is where a host has its WireGuard.
func (h host) sealedOuter() netip.AddrPort { return netip.AddrPortFrom(h.outer.Addr(), 51820) }

// sealedPeers is h as a peer that gets WireGuard.
func (h host) sealedPeers() []tunnel.Peer {
	peers := h.peers()
	for i := range peers {
		peers[i].Encap, peers[i].Endpoint, peers[i].WireGuard = tunnel.EncapWireGuard, h.sealedOuter(), h.sealedOuter()
		peers[i].Keys = tunnel.WireGuardKeys{h.secret().Public()}
		peers[i].MTU = sealedMTU
	}
	return peers
}

const sealedMTU = 1440

// end is one of two engines whose workers the test drives, and whose handshakes
// run by themselves.
type end struct {
	rig
	host
	sealed *tunneltest.Socket

	answered []uint64 // tokens of probes
}

func newEnd(t testing.TB, wire *tunneltest.Wire, h host, device, socket tunnel.Offloads) *end {
	t.Helper()
	e := &end{host: h, rig: rig{t: t, wire: wire}}
	e.device, e.rig.host = tunneltest.NewDevices(testMTU, device)
	e.socket, e.sealed = wire.Socket(h.outer, socket), wire.Socket(h.sealedOuter(), socket)
	var err error
	e.engine, err = New(Config{
		Workers:   []Worker{{Device: e.device, Sockets: []tunnel.Socket{e.socket}, Sealed: []tunnel.Socket{e.sealed}}},
		WireGuard: wireguard.Config{Key: h.secret()}, Logger: discard,
		Answered: func(token uint64) { e.answered = append(e.answered, token) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.engine.SetLocals(h.locals()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = e.engine.wireguard.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return e
}

// take has the rx worker process what is on the socket for WireGuard, if anything is.
func (e *end) take() {
	e.t.Helper()
	rx := e.engine.workers[0].rx[0]
	for {
		n, err := e.sealed.TryReceive(rx.batch, rx.arena)
		if err != nil {
			e.t.Fatal(err)
		}
		if n == 0 {
			return
		}
		rx.process(rx.batch[:n], true)
	}
}

// exchange lets the two ends answer each other until done.
func exchange(t testing.TB, a, b *end, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the ends do not come to an end")
		}
		a.take()
		b.take()
	}
}

// newEnds are two ends that know each other.
func newEnds(t testing.TB, device, socket tunnel.Offloads) (a, b *end) {
	t.Helper()
	wire := tunneltest.NewWire(tunneltest.WireConfig{})
	a, b = newEnd(t, wire, here, device, socket), newEnd(t, wire, far, device, socket)
	a.setPeers(append(far.sealedPeers(), thrd.sealedPeers()...))
	b.setPeers(here.sealedPeers())
	return a, b
}

// join has the ends make sessions for both inner families, which share them.
func join(t testing.TB, a, b *end) {
	t.Helper()
	a.send(finished(toFar(true, []byte("first")).Bytes())...)
	exchange(t, a, b, func() bool { return b.engine.Stats().Value(RxPackets) > 0 })
	b.delivered()
}

// TestSealedCarries holds that what one host's Device hands over arrives at the
// other's as the same packets, whatever either side can take, and that what was
// cut is joined again.
func TestSealedCarries(t *testing.T) {
	for name, offloads := range map[string][2]tunnel.Offloads{
		"everything": {tunneltest.AllOffloads(), tunneltest.AllOffloads()},
		"no runs":    {tunneltest.AllOffloads(), {}},
		"nothing":    {},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newEnds(t, offloads[0], offloads[1])
			join(t, a, b)
			bothFamilies(t, func(t *testing.T, is4 bool) {
				var sent []tunnel.Outgoing
				var want [][]byte
				add := func(data []byte, offload tunnel.Offload) {
					whole, err := tunneltest.Finish(data, offload)
					if err != nil {
						t.Fatal(err)
					}
					sent, want = append(sent, out(data, offload)), append(want, whole...)
				}
				add(asPing(toFar(is4, nil), 33).Bytes(), tunnel.Offload{})
				add(toFar(is4, pattern(17)).Partial())
				if offloads[0].TCP {
					add(toFar(is4, pattern(20*1300+77)).Super(1300)) // a last one that is shorter
					add(toFar(is4, pattern(5*1299)).Super(1299))     // a size that needs padding
					add(toFar(is4, pattern(50)).Super(7))            // payloads shorter than their headers
					add(asUDP(toFar(is4, pattern(30*500))).Super(500))
				}
				a.send(sent...)
				b.take()
				got, _ := b.delivered()
				b.equal(got, want)
			})
			if stats := b.engine.Stats(); offloads[0].TCP && offloads[1].UDP && stats.Value(RxSuperPackets) == 0 {
				t.Error("nothing was joined")
			}
			b.want(nil)
			a.want(nil)
		})
	}
}

// TestSealedFragments holds that packets too large for the path are cut where
// they may be, and refused with word to their sender where not.
func TestSealedFragments(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	join(t, a, b)
	large := asUDP(toFar(true, pattern(1420)))
	whole := large
	whole.DontFragment = true
	large.DontFragment = false
	a.send(finished(large.Bytes(), whole.Bytes())...)
	b.take()
	got, _ := b.delivered()
	if len(got) != 2 || len(got[0]) > sealedMTU || len(got[1]) > sealedMTU {
		t.Fatalf("%d packets arrived of one to be cut into two, and one that may not be", len(got))
	}
	a.want(map[Counter]uint64{TxFragmented: 1, TxICMP: 1, TxDropTooBig: 1})
}

// TestSealedSuperTooLarge holds that TCP is cut smaller for a path by WireGuard
// than its sender believes it could be.
func TestSealedSuperTooLarge(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	join(t, a, b)
	bothFamilies(t, func(t *testing.T, is4 bool) {
		payload := pattern(30 * (testMTU - 52))
		a.send(out(toFar(is4, payload).Super(testMTU - 52)))
		b.take()
		got, _ := b.delivered()
		var arrived []byte
		for _, p := range got {
			if len(p) > sealedMTU {
				t.Fatalf("a packet of %d bytes arrived", len(p))
			}
			headers := 20 + 32
			if !is4 {
				headers = 40 + 32
			}
			arrived = append(arrived, p[headers:]...)
		}
		b.equal([][]byte{arrived}, [][]byte{payload})
	})
}

// TestSealedWaitsForKeys holds that packets for a peer that there is no session
// with are kept until there is, in their order, and that a peer that answers
// nothing gets no more than there is room for.
func TestSealedWaitsForKeys(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	data, offload := toFar(true, pattern(5*1300)).Super(1300)
	want, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	a.send(out(data, offload))
	if staged := a.engine.Stats().Value(TxStaged); staged != 5 {
		t.Fatalf("%d packets wait for keys, want 5", staged)
	}
	exchange(t, a, b, func() bool { return b.engine.Stats().Value(RxPackets) == 5 })
	got, _ := b.delivered()
	b.equal(got, want)
	for range 100 {
		a.send(finished(between(here, thrd, true, nil).Bytes())...) // nobody is there
	}
	if dropped := a.engine.Stats().Value(TxDropNoKeys); dropped == 0 || dropped == 100 {
		t.Errorf("%d of 100 packets for a silent peer were dropped", dropped)
	}
}

// TestSealedRefuses holds what is not let in: copies, what was changed or sealed
// for others, and what is not the peer's to send.
func TestSealedRefuses(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	join(t, a, b)
	a.sealed.Refuse(a.record)
	a.send(finished(toFar(true, []byte("data")).Bytes())...)
	a.sealed.Refuse(nil)
	good := a.datagrams()[0]
	inject := func(from host, data []byte) {
		b.wire.Inject(from.sealedOuter(), b.sealedOuter(), 0, append([]byte(nil), data...))
		b.take()
	}
	changed := append([]byte(nil), good...)
	changed[len(changed)-1] ^= 1
	inject(here, changed)
	inject(here, good)
	inject(thrd, good)      // a copy, from elsewhere
	inject(here, good[:31]) // less than a header and a tag
	stranger := append([]byte(nil), good...)
	stranger[4] ^= 1 // a session that is not there
	inject(here, stranger)
	if endpoint := b.engine.peers.Load().sessions[0].Endpoint(); endpoint != here.sealedOuter() {
		t.Errorf("a copy has moved the endpoint to %v", endpoint)
	}
	// The third host's address, by the first one's session; and one not of b's.
	a.setPeers(append(far.sealedPeers(), thrd.peers()...))
	a.send(finished(between(thrd, far, true, []byte("forged")).Bytes())...)
	b.take()
	peers := far.sealedPeers()
	peers[0].Prefixes = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	a.setPeers(peers[:1])
	a.send(finished(between(here, host{pod4: netip.MustParseAddrPort("10.244.9.9:1")}, true, nil).Bytes())...)
	b.take()
	b.want(map[Counter]uint64{
		RxDropForged: 1, RxDropReplayed: 2, RxDropTruncated: 1, RxDropSession: 1, RxDropSource: 1, RxDropDestination: 1, RxPackets: 2,
	})
}

// TestSealedPeersInClear holds that the plain packets of a peer are let in while
// two hosts change from one encapsulation to the other, and never where they are
// to be sealed; and that what it sends sealed is, whichever way we send.
func TestSealedPeersInClear(t *testing.T) {
	for _, must := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%v", must), func(t *testing.T) {
			a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
			peers := here.sealedPeers()
			for i := range peers {
				peers[i].Sealed = must
			}
			b.setPeers(peers)
			frame := tunneltest.Frame(testVNI, far.mac, here.mac, 0x0800, toFar(true, []byte("plain")).Bytes())
			b.wire.Inject(here.outer, far.outer, 0, frame)
			b.receive()
			got, _ := b.delivered()
			if want := map[bool]int{false: 1, true: 0}[must]; len(got) != want {
				t.Errorf("%d plain packets were let in, want %d", len(got), want)
			}
			plain := here.peers()
			for i := range plain {
				plain[i].WireGuard, plain[i].Keys = here.sealedOuter(), peers[i].Keys
			}
			b.setPeers(plain)
			join(t, a, b)
		})
	}
}

// TestSealedRunRefused holds that a run which the system does not take is sent
// in single datagrams, none lost or changed.
func TestSealedRunRefused(t *testing.T) {
	a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
	join(t, a, b)
	a.sealed.Refuse(func(run tunnel.Datagrams) error {
		if run.SegmentSize > 0 {
			return tunnel.ErrOffload
		}
		return nil
	})
	data, offload := toFar(true, pattern(20*1300+3)).Super(1300)
	want, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	a.send(out(data, offload))
	b.take()
	got, _ := b.delivered()
	b.equal(got, want)
	if a.engine.Stats().Value(TxFallbacks) != 1 {
		t.Error("no run was refused")
	}
}

// TestSealedDoesNotAllocate holds that neither direction allocates.
func TestSealedDoesNotAllocate(t *testing.T) {
	const batches = 21
	for _, l := range loads(t) {
		if l.name == "mixed" {
			continue // part of it is not the far host's
		}
		a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
		join(t, a, b)
		send := l.tx(a.engine)
		a.sealed.Refuse(a.record)
		var received [][]tunnel.Datagrams
		for range batches {
			a.sent = nil
			send()
			for i := range a.sent {
				a.sent[i].Addr = a.sealedOuter()
			}
			received = append(received, a.sent)
		}
		tx := a.engine.workers[0].tx
		tx.sealed.boxes[0].socket, tx.device = &sink{}, &sink{}
		if n := testing.AllocsPerRun(batches-1, send); n != 0 {
			t.Errorf("tx %s: %v allocations per batch", l.name, n)
		}
		rx := b.engine.workers[0].rx[0]
		rx.device = &sink{}
		if n := testing.AllocsPerRun(batches-1, func() {
			rx.process(received[0], true)
			received = received[1:]
		}); n != 0 {
			t.Errorf("rx %s: %v allocations per batch", l.name, n)
		}
		if got := b.engine.Stats().Value(RxPackets); got < batches {
			t.Errorf("rx %s: %d packets were let in", l.name, got)
		}
	}
}

// FuzzUnseal holds that whatever an authentic peer seals does no harm.
func FuzzUnseal(f *testing.F) {
	f.Add(toFar(true, []byte("data")).Bytes(), uint8(0))
	f.Add(asUDP(toFar(false, []byte("data"))).Bytes(), uint8(3))
	f.Add([]byte{}, uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, ecn uint8) {
		if len(data) > tunnel.MaxPacket-wireguard.Overhead {
			return
		}
		a, b := newEnds(t, tunneltest.AllOffloads(), tunneltest.AllOffloads())
		join(t, a, b)
		session := a.engine.peers.Load().sessions[0].Session(time.Now())
		counter, _ := session.Reserve(1)
		datagram := make([]byte, len(data)+wireguard.Overhead)
		session.Seal(datagram, data, counter, &wireguard.Scratch{})
		b.wire.Inject(a.sealedOuter(), b.sealedOuter(), ecn&3, datagram)
		b.take()
		got, _ := b.delivered()
		for _, p := range got {
			if len(p) > len(data) {
				t.Fatalf("%d bytes became %d", len(data), len(p))
			}
		}
		if b.engine.Stats().Value(RxDropDevice) != 0 {
			t.Fatal("a packet broke the Device's rules")
		}
	})
}

// pattern is a payload no two parts of which are alike.
func pattern(size int) []byte {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(i*7 + i>>8)
	}
	return payload
}
