package differential

import (
	"encoding/binary"

	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// ipv4Options are options in many forms. None is one that the router fills in
// with the time.
func (g generator) ipv4Options() []byte {
	if g.chance(5) {
		return pick(g, make([]byte, 40), g.bytesWithout(40, 0x44)) // the longest header there is
	}
	return pick(g,
		[]byte{1, 1, 1, 1},
		[]byte{0, 1, 2, 3},                                       // something after the end
		[]byte{7, 7, 4, 0, 0, 0, 0, 0},                           // record route with room
		[]byte{7, 7, 8, 1, 2, 3, 4, 0},                           // and full
		[]byte{7, 3, 4, 0},                                       // and without any
		[]byte{7, 7, 6, 0, 0, 0, 0, 0},                           // and with a pointer that is wrong
		[]byte{0x94, 4, 0, 0},                                    // router alert
		[]byte{0x44, 8, 9, 0x00, 1, 2, 3, 4},                     // timestamp, full: overflow is counted
		[]byte{0x44, 8, 9, 0xf0, 1, 2, 3, 4},                     // and the count full too
		[]byte{0x83, 7, 4, 10, 0, 0, 1, 0},                       // loose source route
		[]byte{0x89, 7, 4, 10, 0, 0, 1, 0},                       // strict
		[]byte{0x83, 7, 8, 10, 0, 0, 1, 0},                       // used up
		[]byte{0x82, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},           // security
		[]byte{0x88, 4, 0, 1},                                    // stream identifier
		[]byte{0x9e, 4, 1, 2, 1, 1, 1, 1},                        // unknown
		[]byte{30, 0, 0, 0}, []byte{30, 41, 0, 0}, []byte{30, 1}, // lengths that are wrong
	)
}

// bytesWithout are random bytes, none of one value.
func (g generator) bytesWithout(n int, value byte) []byte {
	b := g.bytes(n)
	for i := range b {
		if b[i] == value {
			b[i] = 1
		}
	}
	return b
}

// tcpOptions are options as senders have them, or nonsense.
func (g generator) tcpOptions() []byte {
	return pick(g,
		[]byte{1, 1, 8, 10, byte(g.Uint32()), 0, 0, 1, 0, 0, 0, 2},
		[]byte{2, 4, 5, 0xb4, 4, 2, 1, 3},
		[]byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9},
		g.bytes(4*(1+g.IntN(10))),
	)
}

// ethernet is the length of a link header, and overhead what a VXLAN datagram
// has in front of the inner packet.
const (
	ethernet = 14
	overhead = 8 + ethernet
)

// Numbers of IPv6 extension headers.
const (
	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	noNext      = 59
	destination = 60
)

// addExtensions puts a chain of extension headers in front of p's transport header.
func (g generator) addExtensions(p *tunneltest.Packet) {
	count := 1 + g.IntN(3)
	if g.chance(5) {
		count = 7 + g.IntN(4)
	}
	var last int // offset of the last header, whose first byte is the type of the next
	for i := range count {
		kind := pick[uint8](g, routing, fragment, authHeader, destination, destination)
		if i == 0 && g.chance(40) || g.chance(2) {
			kind = hopByHop
		}
		if i == 0 {
			p.FirstExtension = kind
		} else {
			p.Extensions[last] = kind
		}
		last = len(p.Extensions)
		p.Extensions = append(p.Extensions, g.extension(kind)...)
	}
	p.Extensions[last] = p.Protocol
}

// extension is one header without the type of the next.
func (g generator) extension(kind uint8) []byte {
	switch kind {
	case fragment:
		id := g.Uint32()
		position := pick[uint16](g, 0, 1, 8, 9, uint16(g.Uint32())&^6)
		b := binary.BigEndian.AppendUint16([]byte{0, 0}, position)
		return binary.BigEndian.AppendUint32(b, id)
	case routing:
		// Types: source route (deprecated), mobility, RPL, segment routing, an experiment.
		return []byte{0, 0, pick[byte](g, 0, 2, 3, 4, 253), byte(g.IntN(2)), 0, 0, 0, 0}
	case authHeader:
		return append([]byte{0, 4}, g.bytes(22)...)
	}
	return pick(g,
		[]byte{0, 0, 1, 4, 0, 0, 0, 0},                              // padding
		[]byte{0, 0, 5, 2, 0, 0, 1, 0},                              // router alert
		[]byte{0, 0, 0x1e, 4, 0, 0, 0, 0},                           // unknown: to be skipped
		[]byte{0, 0, 0x5e, 4, 0, 0, 0, 0},                           // unknown: to be dropped
		[]byte{0, 0, 0x9e, 4, 0, 0, 0, 0},                           // unknown: to be dropped, with an error
		[]byte{0, 0, 0xc2, 4, 0, 1, 0, 0},                           // jumbo payload
		[]byte{0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},     // longer padding
		[]byte{0, 200, 1, 4, 0, 0, 0, 0}, []byte{0, 0, 1, 99, 0, 0}, // lengths that are wrong
	)
}

// setTTL sets the TTL or hop limit of a sound packet.
func setTTL(b []byte, ttl uint8) {
	if b[0]>>4 == 6 {
		b[7] = ttl
		return
	}
	b[8] = ttl
	sumHeader(b)
}

// sumHeader makes the checksum of an IPv4 header right, as far as it goes.
func sumHeader(b []byte) {
	header := b[:min(int(b[0]&15)*4, len(b))]
	if len(header) < 20 {
		return
	}
	clear(header[10:12])
	binary.BigEndian.PutUint16(header[10:], ^packet.Fold(packet.Sum(header, 0)))
}

// routed is what a router makes of a sound packet without options.
func routed(b []byte) []byte {
	b = append([]byte(nil), b...)
	if b[0]>>4 == 6 {
		setTTL(b, b[7]-1)
	} else {
		setTTL(b, b[8]-1)
	}
	return b
}
