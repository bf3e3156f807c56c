package packet

import (
	"encoding/binary"
	"net/netip"
)

// MaxTooBig is the length of the longest packet that TooBig makes.
const MaxTooBig = 1280

// maxQuoting4 is the length of an ICMPv4 error with all it may quote (RFC 1812, 4.3.2.3).
const maxQuoting4 = 576

// internetControl is the traffic class of ICMP errors (RFC 1812, 4.3.2.5).
const internetControl = 0xc0

// TooBig writes into reply, which has at least MaxTooBig bytes, the ICMP error
// that tells the sender of v to send no more than mtu bytes: for IPv4
// "fragmentation needed" (RFC 792, with the next-hop MTU of RFC 1191), for
// IPv6 "packet too big" (RFC 4443, 3.2). from is its source. It returns the
// error's length, or 0 where none may be sent (RFC 1122 3.2.2, RFC 4443 2.4):
// in reply to an ICMP error, to a fragment other than the first, or to a packet
// whose addresses do not each name one host.
func TooBig(reply []byte, v View, from netip.Addr, mtu int) int {
	source, destination := v.Source(), v.Destination()
	if from.Is4() != v.Is4() || !host(source) || !host(destination) || v.Place == Later || v.isICMPError() {
		return 0
	}
	if v.Is4() {
		return tooBig4(reply, v, from.As4(), mtu)
	}
	return tooBig6(reply, v, from.As16(), mtu)
}

func tooBig4(reply []byte, v View, from [4]byte, mtu int) int {
	const headers = ipv4Len + icmpLen
	quoted := copy(reply[headers:maxQuoting4], v.Data)
	reply = reply[:headers+quoted]
	clear(reply[:headers])
	reply[0], reply[1], reply[8], reply[9] = 0x45, internetControl, 64, ICMPv4
	binary.BigEndian.PutUint16(reply[2:], uint16(len(reply)))
	binary.BigEndian.PutUint16(reply[6:], dontFragment)
	copy(reply[12:], from[:])
	copy(reply[16:20], v.Data[12:16])
	binary.BigEndian.PutUint16(reply[10:], ^Fold(Sum(reply[:ipv4Len], 0)))
	icmp := reply[ipv4Len:]
	icmp[0], icmp[1] = 3, 4
	binary.BigEndian.PutUint16(icmp[6:], uint16(min(mtu, maxTotal)))
	binary.BigEndian.PutUint16(icmp[2:], ^Fold(Sum(icmp, 0)))
	return len(reply)
}

func tooBig6(reply []byte, v View, from [16]byte, mtu int) int {
	const headers = ipv6Len + icmpLen
	quoted := copy(reply[headers:MaxTooBig], v.Data)
	reply = reply[:headers+quoted]
	clear(reply[:headers])
	reply[0], reply[6], reply[7] = 0x60, ICMPv6, 64
	binary.BigEndian.PutUint16(reply[4:], uint16(icmpLen+quoted))
	copy(reply[8:], from[:])
	copy(reply[24:40], v.Data[8:24])
	icmp := reply[ipv6Len:]
	icmp[0] = 2
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	sum := View{Data: reply, Protocol: ICMPv6}.PseudoSum(len(icmp))
	binary.BigEndian.PutUint16(icmp[2:], ^Fold(Sum(icmp, sum)))
	return len(reply)
}

// host reports whether an address names one host.
func host(a netip.Addr) bool {
	const classE = 240
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && (!a.Is4() || a.As4()[0] < classE && a.As4()[0] > 0)
}

// isICMPError reports whether the packet is an ICMP error, or a redirect, or
// an ICMP message whose type cannot be seen.
func (v View) isICMPError() bool {
	if v.Protocol != ICMPv4 && v.Protocol != ICMPv6 {
		return false
	}
	if v.Transport == 0 {
		return true
	}
	kind := v.Data[v.Transport]
	if v.Is4() {
		// Unreachable, quench, redirect, time exceeded, parameter problem.
		return v.Protocol == ICMPv4 && (kind == 3 || kind == 4 || kind == 5 || kind == 11 || kind == 12)
	}
	return v.Protocol == ICMPv6 && (kind < 128 || kind == 137)
}

// plateaus are the MTUs worth trying when a path's is not known (RFC 1191,
// section 7), with those common since.
var plateaus = [...]int{32000, 17914, 9000, 8166, 4352, 2002, 1492, 1400, 1280, 1006, 508, 296, 68}

// LowerMTU guesses the MTU of a path that did not let a packet of size bytes
// through: the next plateau below it, for IPv6 no less than its minimum.
func LowerMTU(size int, is4 bool) int {
	for _, mtu := range plateaus {
		if mtu < size && (is4 || mtu >= 1280) {
			return mtu
		}
	}
	if is4 {
		return 68
	}
	return 1280
}
