package differential

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// TestReceive: what arrives from the peer comes out of either host's tunnel
// alike, and in the same order.
func TestReceive(t *testing.T) {
	j := newJudge(t, receive)
	for _, n := range networks {
		t.Run(n.String(), func(t *testing.T) {
			w := newWorld(t, n, lab.OffloadNone)
			x := newReception(t, w, j)
			g := newGenerator(j.seed, receive, n)
			for done := 0; done < packets/len(networks); {
				done += x.one(g)
			}
			x.settle()
			x.check(w.hosts[engineHost].engine.Stats())
			j.done++
		})
	}
	j.report(t)
}

// reception is a run from the peer to the hosts.
type reception struct {
	*run
	w    *world
	wire *tap
	mac  tunnel.MAC // of the peer's eth0
}

func newReception(t *testing.T, w *world, j *judge) *reception {
	t.Helper()
	x := &reception{run: newRun(t, j, w.network), w: w, wire: openTap(t, w.peer.Namespace, "eth0", true)}
	x.mac = macOf(t, w.peer.Namespace, "eth0")
	for _, h := range w.hosts {
		x.taps = append(x.taps, openTap(t, h.Namespace, podDevice, false))
	}
	x.run.read = x.read
	x.run.fence = func(number uint32) {
		p := tunneltest.Packet{
			Source:      netip.AddrPortFrom(peer.address(3, true), 9),
			Destination: netip.AddrPortFrom(own.address(number, true), 9), Protocol: tunneltest.UDP,
		}
		x.send([]datagram{{payload: frame(p.Bytes(), true), from: netip.AddrPortFrom(w.outer, port)}})
	}
	return x
}

// one sends one case, or two whose packets alternate, and says of how many
// packets they are.
func (x *reception) one(g generator) (count int) {
	x.t.Helper()
	cases := []*testCase{x.nextCase(g.chance(50))}
	datagrams := g.arrival(cases[0], x.w.outer)
	if g.chance(20) {
		second := x.nextCase(cases[0].is4)
		cases = append(cases, second)
		datagrams = g.shuffled(datagrams, g.arrival(second, x.w.outer))
	}
	x.send(datagrams)
	for _, c := range cases {
		count += len(c.sent)
	}
	x.sent(count, cases...)
	return count
}

// shuffled brings two lists together, each in its order.
func (g generator) shuffled(a, b []datagram) (both []datagram) {
	if len(a) > 1 && len(b) > 1 {
		first := b[0]
		for i := range b { // so that they can be one run
			if b[i].from == first.from {
				b[i].from = a[0].from
			}
			if b[i].tos == first.tos {
				b[i].tos = a[0].tos
			}
		}
	}
	for len(a) > 0 && len(b) > 0 {
		n, from := 1+g.IntN(3), &a
		if g.chance(50) {
			from = &b
		}
		n = min(n, len(*from))
		both, *from = append(both, (*from)[:n]...), (*from)[n:]
	}
	return append(append(both, a...), b...)
}

// maxRun bounds the datagrams of one send, and maxRunBytes their bytes.
const (
	maxRun      = 60
	maxRunBytes = 60000
)

// send sends datagrams to both hosts, those that can be in one go: the peer's
// kernel cuts them, and they arrive with nothing between them.
func (x *reception) send(datagrams []datagram) {
	x.t.Helper()
	for len(datagrams) > 0 {
		n := x.runLength(datagrams)
		for _, h := range x.w.hosts {
			if err := x.sendRun(h, datagrams[:n]); err != nil {
				x.t.Fatalf("send %d datagrams to %s: %v", n, h.name, err)
			}
		}
		datagrams = datagrams[n:]
	}
}

// fits reports whether a datagram with such a payload need not be fragmented.
func (x *reception) fits(payload []byte) bool { return len(payload) <= x.w.mtu()+overhead }

// runLength is how many datagrams can be sent in one go.
func (x *reception) runLength(datagrams []datagram) int {
	first, bytes := datagrams[0], len(datagrams[0].payload)
	if first.check != checkRight || bytes == 0 || !x.fits(first.payload) {
		return 1
	}
	for n, d := range datagrams[1:min(len(datagrams), maxRun)] {
		previous := datagrams[n]
		bytes += len(d.payload)
		if d.from != first.from || d.tos != first.tos || d.check != first.check || bytes > maxRunBytes ||
			len(previous.payload) < len(first.payload) || len(d.payload) > len(first.payload) || len(d.payload) == 0 {
			return n + 1
		}
	}
	return min(len(datagrams), maxRun)
}

// sendRun sends a run of datagrams to one host.
func (x *reception) sendRun(h *host, run []datagram) error {
	first := run[0]
	if !x.fits(first.payload) {
		return x.w.sendFragmented(h.outer, first.payload)
	}
	p := tunneltest.Packet{
		Source: first.from, Destination: netip.AddrPortFrom(h.outer, port), Protocol: tunneltest.UDP, TOS: first.tos,
	}
	for _, d := range run {
		p.Payload = append(p.Payload, d.payload...)
	}
	b, offload := p.Bytes(), tunnel.Offload{}
	if len(run) > 1 {
		b, offload = p.Super(len(first.payload))
	}
	switch check := checksumOf(p, b); first.check {
	case checkNone:
		clear(check)
	case checkWrong:
		check[0] ^= 0x10
	}
	etherType := typeOf(h.outer.Is4())
	return x.wire.send(ethernetFrame(h.address, x.mac, etherType, b), ethernet, etherType, offload)
}

// read takes a packet that a host has forwarded to its pod.
func (x *reception) read(tap int, frame []byte, outgoing bool) (host int, number uint32, o output, ok bool) {
	etherType := binary.BigEndian.Uint16(frame[12:])
	if !outgoing || etherType != typeIPv4 && etherType != typeIPv6 {
		return 0, 0, o, false
	}
	o.packet = frame[ethernet:]
	number, ok = numberOf(o.packet, etherType == typeIPv4)
	return tap, number, o, ok
}

// check demands that what is to be tested has happened.
func (x *reception) check(stats engine.Stats) {
	x.t.Helper()
	stats.Each(func(name string, value uint64) {
		if value > 0 {
			x.t.Logf("%8d %s", value, name)
		}
	})
	if stats.Value(engine.RxSuperPackets) == 0 {
		x.t.Error("the engine has joined no packets")
	}
}
