package packet

import (
	"bytes"
	"encoding/binary"
)

// MaxMerged bounds the packets of one Group, and maxTotal its bytes.
const (
	MaxMerged = 64
	maxTotal  = 1<<16 - 1
)

// Group joins packets that follow each other in one flow into a super-packet,
// such that cutting it again gives the same packets. The zero Group is empty.
type Group struct {
	first   View
	headers int // bytes of all headers, the same in every packet
	size    int // payload bytes of every packet but the last
	count   int
	total   int    // bytes of the super-packet
	pseudo  uint64 // pseudo-header sum without the length, the same in every packet
	pushed  bool
	closed  bool // nothing may follow
}

// Start empties the group and begins it with v. It returns false, and leaves
// the group empty, if no packet could ever follow v: only whole TCP packets with data and
// no flags but ACK and PSH, and UDP packets with data and a checksum, without
// IP options or extension headers, can be joined. The caller has seen that v's
// transport checksum is right or partial.
func (g *Group) Start(v View) bool {
	*g = Group{}
	headers, ok := v.PayloadOffset()
	if !ok || headers == len(v.Data) || !mergeable(v) {
		return false
	}
	*g = Group{
		first: v, headers: headers, size: len(v.Data) - headers, count: 1, total: len(v.Data), pseudo: v.pseudoSum(),
		pushed: v.Protocol == TCP && v.Data[v.Transport+13]&flagPSH != 0,
	}
	g.closed = g.pushed
	return true
}

func mergeable(v View) bool {
	if v.Is4() && (v.Transport != ipv4Len || !v.HeaderValid()) || !v.Is4() && v.Transport != ipv6Len {
		return false
	}
	b := v.Data[v.Transport:]
	if v.Protocol == TCP {
		return b[13]&^flagPSH == flagACK
	}
	return int(binary.BigEndian.Uint16(b[4:])) == len(b) && binary.BigEndian.Uint16(b[6:]) != 0
}

// Add appends v, whose transport checksum the caller has seen to be right or
// partial, and reports whether it could be: it must continue the group with
// headers that differ only where cutting sets them, and be no longer than the
// first packet. A shorter packet or a pushed one ends the group.
func (g *Group) Add(v View) bool {
	if g.count == 0 || g.closed || g.count == MaxMerged {
		return false
	}
	headers, ok := v.PayloadOffset()
	if !ok || headers != g.headers || !mergeable(v) || !g.sameHeaders(v) {
		return false
	}
	return g.take(v)
}

// take appends v, which continues the group if its size allows.
func (g *Group) take(v View) bool {
	size := len(v.Data) - g.headers
	if size <= 0 || size > g.size || g.total+size > maxTotal {
		return false
	}
	if v.Protocol == TCP {
		g.pushed = v.Data[v.Transport+13]&flagPSH != 0
	}
	g.count++
	g.total += size
	g.closed = g.pushed || size < g.size
	return true
}

// Next is Parse, the check of the checksums and Add in one, for the packet that
// fills b and plainly continues the group, as most do where there is one. With
// trusted the transport checksum need not be looked at. Partial is as
// View.Partial says. Where ok is false nothing is known of b.
func (g *Group) Next(b []byte, trusted bool) (v View, partial, ok bool) {
	if g.count == 0 || g.closed || g.count == MaxMerged || len(b) <= g.headers || len(b) > g.headers+g.size {
		return View{}, false, false
	}
	// The headers being the same but for lengths, all offsets are.
	v = View{Data: b, Protocol: g.first.Protocol, Transport: g.first.Transport}
	transport := b[v.Transport:]
	lengthAt, length := 4, len(b)-ipv6Len
	if g.first.Is4() {
		lengthAt, length = 2, len(b)
	}
	if int(binary.BigEndian.Uint16(b[lengthAt:])) != length || !g.sameHeaders(v) || !mergeable(v) {
		return View{}, false, false
	}
	pseudo, check := g.pseudo+uint64(len(transport)), v.checksum()
	partial = check == Fold(pseudo)
	if !partial && !trusted && Fold(Sum(transport, pseudo)) != 0xffff {
		return View{}, false, false
	}
	return v, partial, g.take(v)
}

func (g *Group) sameHeaders(v View) bool {
	a, b := g.first.Data[:g.headers], v.Data[:g.headers]
	if v.Is4() {
		// Not the length, the id and the checksum. The id counts up where it means anything (RFC 6864).
		id := binary.BigEndian.Uint16(a[4:]) + uint16(g.count)
		if !bytes.Equal(a[:2], b[:2]) || !bytes.Equal(a[6:10], b[6:10]) || !bytes.Equal(a[12:20], b[12:20]) ||
			!v.DontFragment() && binary.BigEndian.Uint16(b[4:]) != id {
			return false
		}
	} else if !bytes.Equal(a[:4], b[:4]) || !bytes.Equal(a[6:ipv6Len], b[6:ipv6Len]) {
		return false
	}
	protocol := g.first.Protocol
	a, b = a[g.first.Transport:], b[g.first.Transport:]
	if protocol != v.Protocol || !bytes.Equal(a[:4], b[:4]) {
		return false
	}
	if protocol == UDP {
		return true
	}
	// Not the sequence number, PSH and the checksum.
	sequence := binary.BigEndian.Uint32(a[4:]) + uint32(g.count*g.size)
	return binary.BigEndian.Uint32(b[4:]) == sequence && bytes.Equal(a[8:13], b[8:13]) &&
		a[13]|flagPSH == b[13]|flagPSH && bytes.Equal(a[14:16], b[14:16]) && bytes.Equal(a[18:], b[18:])
}

// Count is the number of packets in the group.
func (g *Group) Count() int { return g.count }

// First is the packet the group began with.
func (g *Group) First() View { return g.first }

// SegmentSize is the payload bytes per packet.
func (g *Group) SegmentSize() int { return g.size }

// HeaderLen is the length of the super-packet's headers.
func (g *Group) HeaderLen() int { return g.headers }

// Header writes the headers of the super-packet into header, which has at least
// HeaderLen bytes. Its transport checksum is partial. The payloads of the packets follow.
func (g *Group) Header(header []byte) {
	PutSuperHeader(header, g.first, g.total)
	if g.pushed {
		header[g.first.Transport+13] |= flagPSH
	}
}

// PutSuperHeader copies the headers of v, a TCP or UDP packet, into header and
// makes them those of a super-packet of total bytes with a partial checksum.
func PutSuperHeader(header []byte, v View, total int) {
	headers, _ := v.PayloadOffset()
	header = header[:headers]
	copy(header, v.Data)
	if v.Is4() {
		binary.BigEndian.PutUint16(header[2:], uint16(total))
		clear(header[10:12])
		binary.BigEndian.PutUint16(header[10:], ^Fold(Sum(header[:v.headerLen()], 0)))
	} else {
		binary.BigEndian.PutUint16(header[4:], uint16(total-ipv6Len))
	}
	length, at := total-v.Transport, v.Transport+16
	if v.Protocol == UDP {
		binary.BigEndian.PutUint16(header[v.Transport+4:], uint16(length))
		at = v.Transport + 6
	}
	binary.BigEndian.PutUint16(header[at:], Fold(v.PseudoSum(length)))
}
