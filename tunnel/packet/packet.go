// Package packet reads, checks, cuts and joins inner IP packets: views of IPv4,
// IPv6, TCP and UDP, checksums, segmentation of super-packets, coalescing of
// segments, IPv4 fragmentation and "packet too big" replies. It must never
// import the OS or the clock, allocate, or copy payload.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Protocol numbers (IANA). Those in the second group are IPv6 extension headers.
const (
	ICMPv4 = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58

	hopByHop    = 0
	routing     = 43
	fragment    = 44
	authHeader  = 51
	noNext      = 59
	destination = 60
)

// Header sizes in bytes.
const (
	ipv4Len = 20
	ipv6Len = 40
	tcpLen  = 20
	udpLen  = 8
	icmpLen = 8
)

// maxExtensions bounds the walk along IPv6 extension headers. Longer chains
// are carried, but their transport header is not looked at.
const maxExtensions = 8

// Errors of Parse.
var (
	ErrTruncated = errors.New("shorter than an IP header")
	ErrVersion   = errors.New("IP version is neither 4 nor 6")
	ErrHeader    = errors.New("IPv4 header length is wrong")
	ErrLength    = errors.New("IP length is larger than the packet")
)

// Place is where a packet stands in a fragmented one.
type Place uint8

// The places.
const (
	Whole Place = iota // not fragmented
	First
	Later // a fragment without transport header
)

// View is an IP packet in someone else's memory.
type View struct {
	// Data is the packet; bytes after its IP length are cut off.
	Data  []byte
	Place Place
	// Protocol is that of the header at Transport, an offset in Data. Transport
	// is 0 where there is none to be seen: in later fragments, after an
	// extension chain that is broken or too long, or with nothing following.
	Protocol  uint8
	Transport int
	// rerouted: a routing header stands between, so the destination in the IP
	// header is not the one in the transport checksum.
	rerouted bool
}

// Parse finds the parts of the IP packet at the start of b. It demands what a
// router would: a whole IP header and no less data than the IP length says.
// Faults further in only hide the transport header.
func Parse(b []byte) (View, error) {
	if len(b) == 0 {
		return View{}, ErrTruncated
	}
	switch b[0] >> 4 {
	case 4:
		return parse4(b)
	case 6:
		return parse6(b)
	}
	return View{}, ErrVersion
}

// RFC 791, section 3.1.
func parse4(b []byte) (View, error) {
	if len(b) < ipv4Len {
		return View{}, ErrTruncated
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case header < ipv4Len || header > total:
		return View{}, ErrHeader
	case total > len(b):
		return View{}, ErrLength
	}
	v := View{Data: b[:total], Protocol: b[9]}
	switch position := binary.BigEndian.Uint16(b[6:]); {
	case position&0x1fff != 0:
		v.Place = Later
		return v, nil
	case position&moreFragments != 0:
		v.Place = First
	}
	if header < total {
		v.Transport = header
	}
	return v, nil
}

// Flags in the IPv4 fragment field.
const (
	dontFragment  = 0x4000
	moreFragments = 0x2000
)

// RFC 8200, sections 3 and 4.
func parse6(b []byte) (View, error) {
	if len(b) < ipv6Len {
		return View{}, ErrTruncated
	}
	total := ipv6Len + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return View{}, ErrLength
	}
	v := View{Data: b[:total], Protocol: b[6]}
	at := ipv6Len
	for range maxExtensions {
		rest := v.Data[at:]
		var length int
		switch v.Protocol {
		case hopByHop, routing, destination, fragment, authHeader:
			if len(rest) < 8 {
				return v, nil
			}
			length = extensionLen(v.Protocol, rest)
		case noNext:
			return v, nil
		default:
			if len(rest) > 0 {
				v.Transport = at
			}
			return v, nil
		}
		switch v.Protocol {
		case routing:
			v.rerouted = v.rerouted || rest[3] != 0 // segments left
		case fragment:
			switch position := binary.BigEndian.Uint16(rest[2:]); {
			case position&^7 != 0:
				v.Place, v.Protocol = Later, rest[0]
				return v, nil
			case position&1 != 0:
				v.Place = First
			}
		}
		if length > len(rest) {
			return v, nil
		}
		v.Protocol = rest[0]
		at += length
	}
	return v, nil
}

// extensionLen is the length of the extension header at the start of b.
func extensionLen(protocol uint8, b []byte) int {
	switch protocol {
	case fragment:
		return 8
	case authHeader:
		return (int(b[1]) + 2) * 4 // RFC 4302
	}
	return (int(b[1]) + 1) * 8
}

// Addresses peeks at the source and destination of the IP packet at the start
// of b, without looking at anything else.
func Addresses(b []byte) (source, destination netip.Addr, ok bool) {
	switch {
	case len(b) >= ipv4Len && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), true
	case len(b) >= ipv6Len && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), true
	}
	return netip.Addr{}, netip.Addr{}, false
}

// Is4 reports whether the packet is IPv4; it is IPv6 otherwise.
func (v View) Is4() bool { return v.Data[0]>>4 == 4 }

// Source is the source in the IP header.
func (v View) Source() netip.Addr {
	source, _, _ := Addresses(v.Data)
	return source
}

// Destination is the destination in the IP header.
func (v View) Destination() netip.Addr {
	_, destination, _ := Addresses(v.Data)
	return destination
}

// headerLen is the length of the IPv4 header, or of the fixed IPv6 header.
func (v View) headerLen() int {
	if v.Is4() {
		return int(v.Data[0]&0x0f) * 4
	}
	return ipv6Len
}

// DontFragment reports whether a router may not fragment the packet.
func (v View) DontFragment() bool {
	return !v.Is4() || binary.BigEndian.Uint16(v.Data[6:])&dontFragment != 0
}

// The ECN codepoints (RFC 3168).
const (
	NotECT uint8 = 0
	ECT1   uint8 = 1
	ECT0   uint8 = 2
	CE     uint8 = 3
)

// ECN returns the two ECN bits of the IP header.
func (v View) ECN() uint8 {
	if v.Is4() {
		return v.Data[1] & 3
	}
	return v.Data[1] >> 4 & 3
}

// SetECN changes the two ECN bits and keeps the IPv4 header checksum right.
func (v View) SetECN(ecn uint8) {
	if !v.Is4() {
		v.Data[1] = v.Data[1]&^0x30 | ecn<<4
		return
	}
	before := binary.BigEndian.Uint16(v.Data)
	v.Data[1] = v.Data[1]&^3 | ecn
	after := binary.BigEndian.Uint16(v.Data)
	check := v.Data[10:12]
	binary.BigEndian.PutUint16(check, Update(binary.BigEndian.Uint16(check), before, after))
}

// PayloadOffset is the length of all headers up to the payload of TCP or UDP,
// where the packet is not fragmented and they are there in full.
func (v View) PayloadOffset() (headers int, ok bool) {
	if v.Transport == 0 || v.Place != Whole {
		return 0, false
	}
	b := v.Data[v.Transport:]
	switch {
	case v.Protocol == UDP && len(b) >= udpLen:
		return v.Transport + udpLen, true
	case v.Protocol == TCP && len(b) >= tcpLen:
		length := int(b[12]>>4) * 4
		return v.Transport + length, length >= tcpLen && length <= len(b)
	}
	return 0, false
}

// Flow is a hash of what keeps a flow together: the addresses, the protocol
// and, where all packets of the flow show them, the ports. The fragments of
// one packet have one Flow.
func (v View) Flow() uint32 {
	const prime = 0x9e3779b97f4a7c15
	addresses := v.Data[12:20]
	if !v.Is4() {
		addresses = v.Data[8:40]
	}
	hash := uint64(v.Protocol)
	for ; len(addresses) > 0; addresses = addresses[8:] {
		hash = (hash ^ binary.BigEndian.Uint64(addresses)) * prime
		hash ^= hash >> 29
	}
	if _, ok := v.PayloadOffset(); ok {
		hash = (hash ^ uint64(binary.BigEndian.Uint32(v.Data[v.Transport:]))) * prime
	}
	hash = (hash ^ hash>>32) * prime
	return uint32(hash >> 32)
}

// CWR reports whether a TCP packet has its "congestion window reduced" flag set.
func (v View) CWR() bool {
	_, ok := v.PayloadOffset()
	return ok && v.Protocol == TCP && v.Data[v.Transport+13]&flagCWR != 0
}
