package differential

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// size is how long a packet is to be, of those up to most.
func (g generator) size(most int) int {
	switch g.IntN(6) {
	case 0:
		return 0 // headers alone
	case 1:
		return 40 + g.IntN(160)
	case 2:
		return most
	case 3:
		return most - 1
	}
	return g.IntN(most + 1)
}

func (g generator) port() uint16 { return pick(g, uint16(g.Uint32()), 53, 80, port) }

// protocol is mostly one that somebody along the way knows.
func (g generator) protocol(is4 bool) uint8 {
	icmp := uint8(tunneltest.ICMPv6)
	if is4 {
		icmp = tunneltest.ICMPv4
	}
	switch n := g.IntN(100); {
	case n < 38:
		return tunneltest.TCP
	case n < 72:
		return tunneltest.UDP
	case n < 84:
		return icmp
	case n < 92:
		return pick[uint8](g, 2, 4, 41, 46, 47, 50, 89, 103, 132, noNext, tunneltest.ICMPv4, tunneltest.ICMPv6)
	}
	return uint8(g.Uint32())
}

// packet is a sound packet of about so many bytes.
func (g generator) packet(source, destination netip.Addr, protocol uint8, size int) tunneltest.Packet {
	p := tunneltest.Packet{
		Source: netip.AddrPortFrom(source, g.port()), Destination: netip.AddrPortFrom(destination, g.port()),
		Protocol: protocol, TOS: uint8(g.Uint32()), ID: uint16(g.Uint32()), DontFragment: g.chance(50),
		Sequence: g.Uint32(), Acknowledgment: g.Uint32(), Flags: uint8(g.Uint32()),
	}
	if g.chance(30) {
		p.Flags = tunneltest.ACK
	}
	if g.chance(40) {
		p.TCPOptions = g.tcpOptions()
	}
	if source.Is4() && g.chance(12) {
		p.Options = g.ipv4Options()
		p.Options = append(p.Options, make([]byte, -len(p.Options)&3)...)
	}
	if !source.Is4() && g.chance(25) {
		g.addExtensions(&p)
	}
	p.Payload = g.bytes(max(0, size-len(p.Bytes())))
	if (protocol == tunneltest.ICMPv4 || protocol == tunneltest.ICMPv6) && len(p.Payload) > 0 {
		p.Payload[0] = pick[byte](g, 0, 3, 8, 11, 128, 129, 1, 2, byte(g.Uint32()))
	}
	return p
}

// simple is a TCP or UDP packet without anything unusual.
func (g generator) simple(source, destination netip.Addr, payload int) tunneltest.Packet {
	return tunneltest.Packet{
		Source: netip.AddrPortFrom(source, g.port()), Destination: netip.AddrPortFrom(destination, g.port()),
		Protocol: pick[uint8](g, tunneltest.TCP, tunneltest.UDP), ID: uint16(g.Uint32()), Flags: tunneltest.ACK,
		Sequence: g.Uint32(), Payload: g.bytes(payload),
	}
}

// transportOf is where p's transport header begins.
func transportOf(p tunneltest.Packet) int {
	if p.Source.Addr().Is4() {
		return 20 + len(p.Options)
	}
	return 40 + len(p.Extensions)
}

// checksumOf is the TCP or UDP checksum field of a packet made from p, or nil.
func checksumOf(p tunneltest.Packet, b []byte) []byte {
	at := transportOf(p)
	switch p.Protocol {
	case tunneltest.TCP:
		return b[at+16 : at+18]
	case tunneltest.UDP:
		return b[at+6 : at+8]
	}
	return nil
}

// wild is a packet of any kind, also such as nobody may send. most bounds its
// length. partial says that its checksum looks as if put off.
func (g generator) wild(source, destination netip.Addr, most int) (b []byte, partial bool) {
	is4 := source.Is4()
	p := g.packet(source, destination, g.protocol(is4), g.size(most))
	b = p.Bytes()
	whole := len(p.Extensions) == 0
	if g.chance(30) {
		partial = g.spoilChecksum(p, b)
	}
	if g.chance(40) {
		setTTL(b, pick(g, 0, 1, 2, 255, uint8(g.Uint32())))
	}
	if !is4 {
		b[1] = b[1]&0xf0 | byte(g.IntN(16))
		binary.BigEndian.PutUint16(b[2:], uint16(g.Uint32()))
	} else if g.chance(15) {
		position := pick[uint16](g, 0x2000, 0x8000, 1, 0x2001, 0x1fff, uint16(g.Uint32()))
		binary.BigEndian.PutUint16(b[6:], position)
		sumHeader(b)
		whole = position&0x3fff == 0
	}
	if partial && !whole {
		// Whether anybody sees it depends on the headers before it.
		copy(checksumOf(p, b), []byte{0x12, 0x34})
		partial = false
	}
	if p.Protocol == tunneltest.UDP && !partial && g.chance(8) {
		at := transportOf(p) + 4
		binary.BigEndian.PutUint16(b[at:], pick(g, 0, 7, uint16(len(b)-at+5), uint16(len(b)-at+3), uint16(g.Uint32())))
	}
	if p.Protocol == tunneltest.TCP && !partial && g.chance(6) {
		b[transportOf(p)+12] = byte(g.Uint32()) // how long the header says it is
	}
	if !partial && g.chance(15) {
		b = g.damage(b)
	} else if !partial && len(p.Extensions) > 0 && p.FirstExtension == hopByHop && g.chance(15) {
		clear(b[4:6]) // as if the length were in an option there
	}
	return b, partial
}

// spoilChecksum gives a TCP or UDP packet another checksum, right or wrong, and
// reports whether it is the one that says "to be finished".
func (g generator) spoilChecksum(p tunneltest.Packet, b []byte) (partial bool) {
	check := checksumOf(p, b)
	if check == nil {
		return false
	}
	data, _ := p.Partial()
	put := checksumOf(p, data)
	switch g.IntN(5) {
	case 0:
		copy(check, put)
		return true
	case 1:
		clear(check)
	case 2:
		copy(check, []byte{0xff, 0xff})
	case 3:
		g.sumToZero(p, b)
	default:
		check[g.IntN(2)] ^= 1 << g.IntN(8)
	}
	if string(check) == string(put) {
		check[0] ^= 0x55
	}
	return false
}

// sumToZero changes the payload such that the right checksum is zero, and
// writes it in either of its two forms.
func (g generator) sumToZero(p tunneltest.Packet, b []byte) {
	check, at := checksumOf(p, b), len(b)-len(p.Payload)
	if len(p.Payload) < 2 {
		return // nothing to make it zero with
	}
	addTo(b[at:], check)
	copy(check, pick(g, []byte{0, 0}, []byte{0xff, 0xff}))
}

// addTo adds a checksum to the first word of a payload, if it has one: the
// checksum becomes zero.
func addTo(payload, check []byte) {
	if len(payload) >= 2 {
		sum := uint64(binary.BigEndian.Uint16(payload)) + uint64(binary.BigEndian.Uint16(check))
		binary.BigEndian.PutUint16(payload, packet.Fold(sum))
	}
}

// damage breaks the IP header, or lengthens or shortens the packet.
func (g generator) damage(b []byte) []byte {
	b = append([]byte(nil), b...)
	switch g.IntN(4) {
	case 0:
		return append(b, g.bytes(1+g.IntN(60))...)
	case 1:
		return b[:g.IntN(len(b))]
	}
	length, header := 4, 40
	if b[0]>>4 == 4 {
		length, header = 2, 20
	}
	field := b[length : length+2]
	value := binary.BigEndian.Uint16(field)
	switch g.IntN(7) {
	case 0:
		b[0] = b[0]&0x0f | byte(g.IntN(16))<<4 // version
	case 1:
		b[0] = b[0]&0xf0 | byte(g.IntN(16)) // IPv4 header length, IPv6 traffic class
	case 2:
		binary.BigEndian.PutUint16(field, uint16(g.Uint32()))
	case 3:
		binary.BigEndian.PutUint16(field, value+1+uint16(g.IntN(8)))
	case 4:
		binary.BigEndian.PutUint16(field, value-1-uint16(g.IntN(8)))
	case 5:
		clear(field)
	case 6:
		b[g.IntN(header-8)] ^= 1 << g.IntN(8) // anything before the destination
		if b[0]>>4 == 4 && g.chance(50) {
			return b // with the checksum of what was
		}
	}
	if b[0]>>4 == 4 {
		sumHeader(b)
	}
	return b
}

// sound reports whether a packet is one that may leave a router.
func sound(b []byte, is4 bool) bool {
	if !is4 {
		return len(b) >= 40 && b[0]>>4 == 6 && 40+int(binary.BigEndian.Uint16(b[4:])) <= len(b)
	}
	if len(b) < 20 || b[0]>>4 != 4 {
		return false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	return header >= 20 && header <= total && total <= len(b)
}
