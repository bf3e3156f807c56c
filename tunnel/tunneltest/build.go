package tunneltest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

// Protocol numbers.
const (
	ICMPv4 = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
)

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
	URG = 0x20
	ECE = 0x40
	CWR = 0x80
)

// Packet describes an inner packet. Both addresses are of one family.
type Packet struct {
	Source, Destination netip.AddrPort // ports are for TCP and UDP
	Protocol            uint8
	Payload             []byte // of TCP and UDP; for other protocols everything after the IP header

	TOS          uint8
	ID           uint16 // IPv4
	DontFragment bool   // IPv4
	Options      []byte // IPv4, a multiple of 4 bytes

	// Extensions are whole IPv6 extension headers, of which the first has the
	// type FirstExtension, and the last says what Protocol says.
	Extensions     []byte
	FirstExtension uint8

	Sequence, Acknowledgment uint32
	Flags                    uint8
	TCPOptions               []byte // a multiple of 4 bytes
}

// Bytes builds the packet with every checksum right. Of ICMP only the checksum is filled in.
func (p Packet) Bytes() []byte {
	b, start, offset := p.build()
	if offset >= 0 {
		field := b[start+offset : start+offset+2]
		clear(field)
		sum := ^ones(append(p.pseudo(len(b)-start), b[start:]...))
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(field, sum)
	}
	return b
}

// Partial builds the packet with the TCP or UDP checksum left as the folded
// pseudo-header sum, and describes it.
func (p Packet) Partial() ([]byte, tunnel.Offload) {
	b, start, offset := p.build()
	binary.BigEndian.PutUint16(b[start+offset:], ones(p.pseudo(len(b)-start)))
	return b, tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(start), ChecksumOffset: uint16(offset)}
}

// Super builds the packet as a super-packet with so many payload bytes per segment.
func (p Packet) Super(size int) ([]byte, tunnel.Offload) {
	b, offload := p.Partial()
	offload.SegmentSize = uint16(size)
	switch {
	case p.Protocol == UDP:
		offload.GSO = tunnel.GSOUDP
	case p.Source.Addr().Is4():
		offload.GSO = tunnel.GSOTCP4
	default:
		offload.GSO = tunnel.GSOTCP6
	}
	offload.ECN = p.Flags&CWR != 0
	return b, offload
}

// build builds everything but the transport checksum, which lies at
// start+offset. The offset is -1 if there is none.
func (p Packet) build() (b []byte, start, offset int) {
	transport, offset := p.transport()
	if p.Source.Addr().Is4() {
		b = make([]byte, 20, 20+len(p.Options)+len(transport))
		b = append(b, p.Options...)
		b[0], b[1], b[8], b[9] = 0x40|uint8(len(b)/4), p.TOS, 64, p.Protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(transport)))
		binary.BigEndian.PutUint16(b[4:], p.ID)
		if p.DontFragment {
			b[6] = 0x40
		}
		copy(b[12:], p.Source.Addr().AsSlice())
		copy(b[16:], p.Destination.Addr().AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^ones(b))
		return append(b, transport...), len(b), offset
	}
	b = make([]byte, 40, 40+len(p.Extensions)+len(transport))
	b = append(b, p.Extensions...)
	b[0], b[1], b[6], b[7] = 0x60|p.TOS>>4, p.TOS<<4, p.Protocol, 64
	if len(p.Extensions) > 0 {
		b[6] = p.FirstExtension
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40+len(transport)))
	copy(b[8:], p.Source.Addr().AsSlice())
	copy(b[24:], p.Destination.Addr().AsSlice())
	return append(b, transport...), len(b), offset
}

func (p Packet) transport() (b []byte, checksumOffset int) {
	switch p.Protocol {
	case TCP:
		b, checksumOffset = make([]byte, 20), 16
		b = append(b, p.TCPOptions...)
		binary.BigEndian.PutUint32(b[4:], p.Sequence)
		binary.BigEndian.PutUint32(b[8:], p.Acknowledgment)
		b[12], b[13] = uint8(len(b)/4)<<4, p.Flags
		binary.BigEndian.PutUint16(b[14:], 512)
	case UDP:
		b, checksumOffset = make([]byte, 8), 6
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(p.Payload)))
	case ICMPv4, ICMPv6:
		if len(p.Payload) < 8 {
			return append([]byte(nil), p.Payload...), -1
		}
		return append([]byte(nil), p.Payload...), 2
	default:
		return append([]byte(nil), p.Payload...), -1
	}
	binary.BigEndian.PutUint16(b, p.Source.Port())
	binary.BigEndian.PutUint16(b[2:], p.Destination.Port())
	return append(b, p.Payload...), checksumOffset
}

// pseudo is the pseudo-header; ICMPv4 has none.
func (p Packet) pseudo(length int) []byte {
	return pseudo(p.Source.Addr(), p.Destination.Addr(), p.Protocol, length)
}

func pseudo(source, destination netip.Addr, protocol uint8, length int) []byte {
	if protocol == ICMPv4 {
		return nil
	}
	b := append(source.AsSlice(), destination.AsSlice()...)
	b = append(b, 0, protocol)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// ones is the ones' complement sum, the slow and obvious way.
func ones(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		if i%2 == 0 {
			sum += uint32(v) << 8
		} else {
			sum += uint32(v)
		}
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// Echo is the ICMP part of a ping with size bytes of data.
func Echo(is4 bool, size int) []byte {
	b := make([]byte, 8+size)
	if b[0] = 8; !is4 {
		b[0] = 128
	}
	return b
}

// Random fills a payload.
func Random(random *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// Frame puts an inner packet into a VXLAN datagram.
func Frame(vni uint32, to, from tunnel.MAC, etherType uint16, packet []byte) []byte {
	b := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	return append(b, packet...)
}
