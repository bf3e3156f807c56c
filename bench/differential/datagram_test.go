package differential

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// datagram is a VXLAN datagram on its way to both hosts.
type datagram struct {
	payload []byte
	from    netip.AddrPort // its outer source
	tos     uint8
	check   outerCheck
}

// outerCheck says what the outer UDP checksum is like.
type outerCheck uint8

const (
	checkRight outerCheck = iota
	checkNone
	checkWrong
)

// Ethernet types.
const (
	typeIPv4    = 0x0800
	typeIPv6    = 0x86dd
	typeARP     = 0x0806
	typeVLAN    = 0x8100
	typeService = 0x88a8
)

// Bits of the VXLAN header's second and last byte (draft-herbert-vxlan-rco-00).
// The rest of the last is half the offset of the transport header.
const (
	remoteChecksum = 0x20
	remoteUDP      = 0x80
)

func typeOf(is4 bool) uint16 {
	if is4 {
		return typeIPv4
	}
	return typeIPv6
}

// frame is the VXLAN datagram that the peer makes of an inner packet.
func frame(packet []byte, is4 bool) []byte {
	return tunneltest.Frame(vni, ownMAC, peerMAC, typeOf(is4), packet)
}

// arrival makes what the peer sends under one number: its marks in c, and the
// datagrams. outerPeer is the peer's outer address.
func (g generator) arrival(c *testCase, outerPeer netip.Addr) []datagram {
	source, destination := peer.random(g, c.is4), own.address(c.number, c.is4)
	d := datagram{from: netip.AddrPortFrom(outerPeer, g.outerPort()), tos: uint8(g.Uint32())}
	switch n := g.IntN(100); {
	case n < 50:
		var partial bool
		c.kind = "packet"
		c.sent = make([][]byte, 1)
		c.sent[0], partial = g.wild(source, destination, g.mtu)
		c.partial = []bool{partial}
		// What is broken may be the source.
		c.forged = !peer.prefix(c.is4).Contains(sourceOf(c.sent[0], c.is4))
	case n < 62:
		c.kind = "train"
		d.tos = 0
		if g.chance(20) {
			d.tos = uint8(g.Uint32())
		}
		c.putOff = g.remote && g.chance(70)
		g.train(c, source, destination)
	case n < 70:
		c.kind = "forged source"
		c.forged = true
		var from subnet
		if from = pick(g, own, third, alien, peer); from == peer {
			d.from = netip.AddrPortFrom(outerPeer.Next(), d.from.Port())
		}
		p := g.simple(from.random(g, c.is4), destination, g.IntN(200))
		c.sent = [][]byte{p.Bytes()}
	case n < 74:
		c.kind = "foreign destination"
		c.stray = true
		c.sent = [][]byte{g.simple(source, alien.address(c.number, c.is4), g.IntN(200)).Bytes()}
	case n < 76:
		c.kind = "larger than the device's MTU"
		g.large(c, source, destination)
		d.tos = 0
	default:
		p := g.simple(source, destination, g.IntN(400))
		c.sent = [][]byte{p.Bytes()}
		d.tos = 0
		d.payload = g.oddFrame(c, &d)
		return []datagram{d}
	}
	var datagrams []datagram
	change := -1 // where the outer header of a train changes
	if len(c.sent) > 1 && g.chance(30) {
		change = 1 + g.IntN(len(c.sent)-1)
	}
	for i, b := range c.sent {
		d.payload = frame(b, c.is4)
		switch {
		case i == change && g.chance(20):
			d.payload[pick(g, 5, 9)]++ // VNI, inner destination MAC: not for us
		case i == change && g.changeOuter(&d):
			c.genuine = i
		}
		if c.putOff {
			putOffChecksum(d.payload)
		}
		datagrams = append(datagrams, d)
	}
	return datagrams
}

// changeOuter makes an outer header that goes with the same inner packets all
// the same, or one of another host, as it reports.
func (g generator) changeOuter(d *datagram) (forged bool) {
	switch g.IntN(4) {
	case 0:
		d.tos ^= 1 + uint8(g.IntN(3)) // ECN
	case 1:
		d.tos = uint8(g.Uint32())
	case 2:
		d.from = netip.AddrPortFrom(d.from.Addr(), g.outerPort())
	case 3:
		d.from = netip.AddrPortFrom(d.from.Addr().Next(), d.from.Port())
		return true
	}
	return false
}

// putOffChecksum leaves the checksum of the TCP or UDP packet in a datagram to
// the receiver (draft-herbert-vxlan-rco-00).
func putOffChecksum(datagram []byte) {
	v, err := packet.Parse(datagram[overhead:])
	offset, ok := v.ChecksumOffset()
	if err != nil || !ok {
		return
	}
	binary.BigEndian.PutUint16(v.Data[v.Transport+offset:], packet.Fold(v.PseudoSum(len(v.Data)-v.Transport)))
	datagram[1] |= remoteChecksum
	datagram[7] = uint8(ethernet+v.Transport) / 2
	if v.Protocol == tunneltest.UDP {
		datagram[7] |= remoteUDP
	}
}

// sourceOf reads the source at the place where a packet of the family has it.
func sourceOf(packet []byte, is4 bool) (source netip.Addr) {
	at, size := 8, 16
	if is4 {
		at, size = 12, 4
	}
	if len(packet) >= at+size {
		source, _ = netip.AddrFromSlice(packet[at : at+size])
	}
	return source
}

// outerPort is as a kernel picks it by flow, or the port that is listened on.
func (g generator) outerPort() uint16 { return pick(g, port, 32768+uint16(g.IntN(28000))) }

// large is a packet that no peer with our MTU would send, in outer fragments.
func (g generator) large(c *testCase, source, destination netip.Addr) {
	p := g.simple(source, destination, g.mtu+g.IntN(podMTU-g.mtu-100))
	c.sent = [][]byte{p.Bytes()}
	c.plain = [][]byte{routed(c.sent[0])}
	if p.Protocol == tunneltest.TCP {
		c.large, c.largeSize = &p, g.mtu-(len(c.sent[0])-len(p.Payload))
	}
}

// oddFrame puts the packet of c into a datagram that is not quite right. A tenth
// of them are right.
func (g generator) oddFrame(c *testCase, d *datagram) []byte {
	inner := c.sent[0]
	b := frame(inner, c.is4)
	switch g.IntN(12) {
	case 0:
		c.kind = "VXLAN flags"
		b[0] = uint8(g.Uint32()) &^ 8
	case 1:
		c.kind = "reserved VXLAN bits"
		c.reserved, c.plain = true, [][]byte{routed(inner)}
		g.reserve(b)
	case 2:
		c.kind = "VNI"
		binary.BigEndian.PutUint32(b[4:], pick[uint32](g, 0, vni+1, vni^1<<g.IntN(24))<<8)
	case 3:
		c.kind = "inner destination MAC"
		to := pick(g, tunnel.MAC{}, peerMAC, tunnel.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
			tunnel.MAC{1, 0, 0x5e, 0, 0, 1}, tunnel.MAC{0x33, 0x33, 0, 0, 0, 1}, tunnel.MAC(g.bytes(6)))
		copy(b[8:], to[:])
	case 4:
		c.kind = "inner source MAC"
		from := pick(g, tunnel.MAC{}, ownMAC, tunnel.MAC{1, 0, 0x5e, 0, 0, 1}, tunnel.MAC(g.bytes(6)))
		if copy(b[14:], from[:]); from == ownMAC {
			c.loop, c.plain = true, [][]byte{routed(inner)}
		}
	case 5:
		c.kind = "VLAN tag"
		b = g.tagged(c, b)
	case 6:
		c.kind = "inner type"
		binary.BigEndian.PutUint16(b[20:], pick[uint16](g, typeOf(!c.is4), typeARP, 0x8847, 0x8864, 0x88cc, 0x22f3, 0x6558, 0, uint16(g.Uint32())))
		c.is4 = binary.BigEndian.Uint16(b[20:]) == typeIPv4
	case 7:
		c.kind = "ARP"
		b = tunneltest.Frame(vni, ownMAC, peerMAC, typeARP, g.arp())
	case 8:
		c.kind = "LLC"
		binary.BigEndian.PutUint16(b[20:], pick(g, uint16(len(inner)), uint16(g.IntN(1536))))
		copy(b[22:], pick(g, []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, []byte{0x42, 0x42, 3}, []byte{0xff, 0xff}))
	case 9:
		c.kind = "cut off"
		b = b[:g.IntN(42)]
	case 10:
		c.kind = "outer checksum"
		d.check = pick(g, checkNone, checkWrong)
		if d.check == checkNone && d.from.Addr().Is6() {
			c.unsummed, c.plain = true, [][]byte{routed(inner)}
		}
	case 11:
		if g.remote {
			c.kind = "checksum put off"
			putOffChecksum(b)
		}
	}
	return b
}

// reserve sets bits of the VXLAN header that RFC 7348 reserves.
func (g generator) reserve(b []byte) {
	switch g.IntN(3) {
	case 0:
		b[7] = 1 + uint8(g.IntN(255)) // says something only with remote checksums
	case 1:
		b[0] |= 0x80 // group policy
	case 2:
		b[2+g.IntN(2)] |= 1 << g.IntN(8)
	}
}

// tagged puts VLAN tags into the frame.
func (g generator) tagged(c *testCase, b []byte) []byte {
	var tags []byte
	for range 1 + g.IntN(2) {
		c.tags = append(c.tags, pick[uint16](g, 0, 0, 5, 4095)|uint16(g.IntN(8))<<13)
		tags = binary.BigEndian.AppendUint16(tags, pick[uint16](g, typeVLAN, typeVLAN, typeService, 0x9100))
		tags = binary.BigEndian.AppendUint16(tags, c.tags[len(c.tags)-1])
	}
	return append(append(append([]byte(nil), b[:20]...), tags...), b[20:]...)
}

// arp asks who has an address, or says so.
func (g generator) arp() []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, pick[byte](g, 1, 2)}
	b = append(b, peerMAC[:]...)
	b = append(b, peer.random(g, true).AsSlice()...)
	b = append(b, ownMAC[:]...)
	return append(b, own.v4.Addr().AsSlice()...)
}
