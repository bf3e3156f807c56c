package packet

import (
	"encoding/binary"
	"errors"
)

// TCP flags (RFC 9293, section 3.1).
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagPSH = 0x08
	flagACK = 0x10
	flagECE = 0x40
	flagCWR = 0x80
)

// ErrSegment means that a super-packet cannot be cut.
var ErrSegment = errors.New("not a super-packet of TCP or UDP")

// Segments cuts a super-packet into packets of one size, one Next after the
// other. Payload is handed out by reference, headers are written anew.
type Segments struct {
	view    View
	headers int // bytes of all headers
	size    int // payload bytes per segment
	partial bool
	bare    bool   // UDP without checksum
	rest    []byte // payload to come
	index   int
	done    bool
	sumIP   uint64 // IPv4 header without length, id and checksum
	sumBase uint64 // pseudo-header without length
}

// Segment prepares the cutting of v, a whole TCP or UDP packet, into segments
// of size payload bytes, the last one shorter where it does not divide evenly.
// Checksums are finished, or with partial set left as the folded pseudo-header
// sum. The lengths and checksums in v's headers are not relied on, save that
// UDP over IPv4 without a checksum stays without, and that a packet on its way
// along a source route has the folded pseudo-header sum: it alone knows the
// destination at the route's end.
func Segment(v View, size int, partial bool) (Segments, error) {
	headers, ok := v.PayloadOffset()
	if !ok || size <= 0 {
		return Segments{}, ErrSegment
	}
	s := Segments{
		view: v, headers: headers, size: size, partial: partial,
		rest: v.Data[headers:], sumBase: v.pseudoSum(),
	}
	if v.rerouted {
		length := uint16(len(v.Data) - v.Transport)
		s.sumBase = uint64(v.checksum()) + uint64(^length)
	}
	if v.Is4() {
		b := v.Data[:v.headerLen()]
		s.sumIP = Sum(b[6:10], Sum(b[12:], uint64(binary.BigEndian.Uint16(b))))
		s.bare = v.Protocol == UDP && binary.BigEndian.Uint16(v.Data[v.Transport+6:]) == 0
	}
	return s, nil
}

// Divisible reports whether v, a packet that was not made to be cut, may be all
// the same: a whole TCP packet with data, not on its way along a source route,
// and no flags that concern it as a whole.
func (v View) Divisible() bool {
	headers, ok := v.PayloadOffset()
	const harmless = flagFIN | flagPSH | flagACK | flagECE | flagCWR
	return ok && v.Protocol == TCP && !v.rerouted && headers < len(v.Data) && v.Data[v.Transport+13]&^harmless == 0
}

// HeaderLen is the length of every segment's headers.
func (s *Segments) HeaderLen() int { return s.headers }

// Left is the number of segments to come.
func (s *Segments) Left() int {
	if s.done {
		return 0
	}
	return max((len(s.rest)+s.size-1)/s.size, 1)
}

// Next writes the headers of the next segment into header, which has at least
// HeaderLen bytes, and returns its payload in the super-packet's memory. It
// returns false when there are no more.
func (s *Segments) Next(header []byte) (payload []byte, ok bool) {
	if s.done {
		return nil, false
	}
	length := min(s.size, len(s.rest))
	payload, s.rest = s.rest[:length:length], s.rest[length:]
	s.done = len(s.rest) == 0
	header = header[:s.headers]
	copy(header, s.view.Data)
	s.putIP(header, s.headers+length)
	if s.view.Protocol == TCP {
		s.putTCP(header[s.view.Transport:], payload)
	} else {
		s.putUDP(header[s.view.Transport:], payload)
	}
	s.index++
	return payload, true
}

func (s *Segments) putIP(header []byte, total int) {
	if !s.view.Is4() {
		binary.BigEndian.PutUint16(header[4:], uint16(total-ipv6Len))
		return
	}
	id := binary.BigEndian.Uint16(header[4:]) + uint16(s.index)
	binary.BigEndian.PutUint16(header[2:], uint16(total))
	binary.BigEndian.PutUint16(header[4:], id)
	binary.BigEndian.PutUint16(header[10:], ^Fold(s.sumIP+uint64(total)+uint64(id)))
}

func (s *Segments) putTCP(header, payload []byte) {
	sequence := binary.BigEndian.Uint32(header[4:]) + uint32(s.index*s.size)
	binary.BigEndian.PutUint32(header[4:], sequence)
	if !s.done {
		header[13] &^= flagFIN | flagPSH
	}
	if s.index > 0 {
		header[13] &^= flagCWR
	}
	s.putChecksum(header, 16, payload)
}

func (s *Segments) putUDP(header, payload []byte) {
	binary.BigEndian.PutUint16(header[4:], uint16(udpLen+len(payload)))
	if !s.bare {
		s.putChecksum(header, 6, payload)
	}
}

func (s *Segments) putChecksum(header []byte, at int, payload []byte) {
	pseudo := s.sumBase + uint64(len(header)+len(payload))
	field := header[at : at+2]
	if s.partial {
		binary.BigEndian.PutUint16(field, Fold(pseudo))
		return
	}
	clear(field)
	binary.BigEndian.PutUint16(field, nonZero(^Fold(Sum(payload, Sum(header, pseudo)))))
}
