package differential

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// departure is how a packet gets to the hosts.
type departure struct {
	offload tunnel.Offload
	tags    []byte // VLAN tags of the frame from the pod
	astray  bool   // the frame from the pod is not for the host
}

// TestTransmit: what pods send, and programs on the host write to the tunnel
// device, leaves either host in the same VXLAN datagrams.
func TestTransmit(t *testing.T) {
	j := newJudge(t, transmit)
	for _, n := range networks {
		t.Run(n.String(), func(t *testing.T) {
			w := newWorld(t, n, lab.OffloadFull)
			x := newTransmission(t, w, j)
			g := newGenerator(j.seed, transmit, n)
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

// transmission is a run from the hosts to the peer.
type transmission struct {
	*run
	w      *world
	pods   [2]*tap
	direct [2]*tap
}

func newTransmission(t *testing.T, w *world, j *judge) *transmission {
	t.Helper()
	x := &transmission{run: newRun(t, j, w.network), w: w}
	for i, h := range w.hosts {
		x.pods[i] = openTap(t, h.pod.Namespace, podDevice, true)
		x.direct[i] = openTap(t, h.Namespace, h.device, true)
	}
	x.taps = []*tap{openTap(t, w.peer.Namespace, "eth0", false)}
	x.run.read = x.read
	x.run.fence = func(number uint32) {
		p := tunneltest.Packet{
			Source:      netip.AddrPortFrom(own.address(3, true), 9),
			Destination: netip.AddrPortFrom(peer.address(number, true), 9), Protocol: tunneltest.UDP,
		}
		x.send(&testCase{is4: true}, p.Bytes(), departure{})
	}
	return x
}

// one sends one case and says of how many packets it is.
func (x *transmission) one(g generator) int {
	x.t.Helper()
	c := x.nextCase(g.chance(50))
	source, destination := g.source(c.is4), peer.address(c.number, c.is4)
	var how departure
	weight := 1
	switch n := g.IntN(100); {
	case n < 48:
		c.kind = "packet"
		most := g.mtu
		if g.chance(10) {
			most, weight = podMTU, 4
		}
		b, _ := g.wild(source, destination, most)
		c.sent = [][]byte{b}
		switch {
		case g.chance(4):
			c.kind, how.tags = "packet with VLAN tag", []byte{typeVLAN >> 8, typeVLAN & 0xff, byte(g.IntN(8) << 5), byte(g.IntN(3))}
		case g.chance(3):
			c.kind, how.astray = "packet for another MAC", true
		}
	case n < 62:
		c.kind, c.direct = "packet to the device", true
		for len(c.sent) == 0 || !numbered(c) {
			b, _ := g.wild(source, destination, g.mtu)
			c.sent = [][]byte{b}
		}
	case n < 72:
		c.kind, c.direct = "unfinished packet", g.chance(20)
		c.sent = make([][]byte, 1)
		c.sent[0], how.offload = g.unfinished(source, destination)
	case n < 84:
		c.kind, c.direct, weight = "super-packet", g.chance(20), maxTrain
		c.sent = make([][]byte, 1)
		c.sent[0], how.offload = g.super(source, destination)
		c.gso = how.offload.GSO
	default:
		c.kind, weight = "train", maxTrain
		g.train(c, source, destination)
	}
	for _, b := range c.sent {
		x.send(c, b, how)
	}
	x.sent(weight, c)
	return len(c.sent)
}

// source is an own address, or one that no packet has.
func (g generator) source(is4 bool) netip.Addr {
	if g.chance(96) {
		return own.random(g, is4)
	}
	odd := []string{"::", "::1", "fe80::1", "ff02::1", "::ffff:10.0.0.9", "2001:db8::1"}
	if is4 {
		odd = []string{"0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "10.0.0.1", "8.8.8.8"}
	}
	return netip.MustParseAddr(pick(g, odd...))
}

// numbered reports whether the packet of c shows its number.
func numbered(c *testCase) bool {
	_, ok := numberOf(c.sent[0], c.is4)
	return ok
}

// send gives a packet to both hosts in the same way.
func (x *transmission) send(c *testCase, b []byte, how departure) {
	x.t.Helper()
	var errs [2]error
	for i, h := range x.w.hosts {
		p, link, frame := x.pods[i], ethernet, ethernetFrame(h.router, peerMAC, typeOf(c.is4), b)
		switch {
		case c.direct && i == engineHost: // a TUN has no link header
			p, link, frame = x.direct[i], 0, b
		case c.direct:
			p, frame = x.direct[i], ethernetFrame(peerMAC, ownMAC, typeOf(c.is4), b)
		case how.astray:
			frame[5] ^= 1
		case how.tags != nil:
			frame = append(append(append([]byte(nil), frame[:12]...), how.tags...), frame[12:]...)
		}
		errs[i] = p.send(frame, link, typeOf(c.is4), how.offload)
	}
	if errs[kernelHost] != errs[engineHost] {
		x.t.Errorf("send to kernel: %v, to engine: %v\n%v", errs[kernelHost], errs[engineHost], c)
	}
}

// read takes a VXLAN datagram apart that the peer has got.
func (x *transmission) read(_ int, frame []byte, outgoing bool) (host int, number uint32, o output, ok bool) {
	x.t.Helper()
	is4 := x.w.outer.Is4()
	if outgoing || len(frame) < ethernet+48+overhead || binary.BigEndian.Uint16(frame[12:]) != typeOf(is4) {
		return 0, 0, o, false
	}
	b := frame[ethernet:]
	protocol, source, header := b[6], netip.AddrFrom16([16]byte(b[8:24])), 40
	o.outer = outer{tos: b[0]<<4 | b[1]>>4, ttl: b[7]}
	if is4 {
		protocol, source, header = b[9], netip.AddrFrom4([4]byte(b[12:16])), 20
		o.outer = outer{tos: b[1], ttl: b[8], dontFragment: b[6]&0x40 != 0}
	}
	if protocol != unix.IPPROTO_UDP || binary.BigEndian.Uint16(b[header+2:]) != port {
		return 0, 0, o, false
	}
	for host = range x.w.hosts {
		ok = ok || x.w.hosts[host].outer == source
		if ok {
			break
		}
	}
	if err := tunneltest.Check(b); err != nil || binary.BigEndian.Uint16(b[header+6:]) == 0 {
		x.t.Errorf("%s: outer packet %x: %v, or no checksum", x.w.hosts[host].name, b, err)
	}
	o.packet = b[header+8:]
	number, numbered := numberOf(o.packet[overhead:], binary.BigEndian.Uint16(o.packet[overhead-2:]) == typeIPv4)
	return host, number, o, ok && numbered
}

// check demands that what is to be tested has happened.
func (x *transmission) check(stats engine.Stats) {
	x.t.Helper()
	stats.Each(func(name string, value uint64) {
		if value > 0 {
			x.t.Logf("%8d %s", value, name)
		}
	})
	if stats.Value(engine.TxSuperPackets) == 0 {
		x.t.Error("the engine has got no super-packets")
	}
	for _, gso := range []tunnel.GSOType{tunnel.GSOTCP4, tunnel.GSOTCP6, tunnel.GSOUDP} {
		if x.cut[gso] == 0 {
			x.t.Errorf("no super-packet of type %d was cut", gso)
		}
	}
}
