package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Types of ICMP echo messages (RFC 792; RFC 4443, section 4).
const (
	echoRequest4 = 8
	echoReply4   = 0
	echoRequest6 = 128
	echoReply6   = 129
)

// Echo is an ICMP echo request or the reply to one.
type Echo struct {
	Source, Destination  netip.Addr // of one family
	Identifier, Sequence uint16
	// Data is what the request begins with and the reply brings back.
	Data []byte
}

// ErrEcho means that an echo request cannot be written as it is wanted.
var ErrEcho = errors.New("echo request: addresses are not of one family, or the packet's length does not suit")

// PutEchoRequest writes an echo request that fills b: after e.Data come zeros.
// Routers may not fragment it.
func PutEchoRequest(b []byte, e Echo) error {
	headers, is4 := ipv6Len, e.Source.Is4()
	if is4 {
		headers = ipv4Len
	}
	if !e.Source.IsValid() || e.Source.Is4In6() || e.Source.BitLen() != e.Destination.BitLen() ||
		len(b) < headers+icmpLen+len(e.Data) || len(b) > maxTotal {
		return ErrEcho
	}
	clear(b)
	if is4 {
		b[0], b[8], b[9] = 0x45, 64, ICMPv4
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], dontFragment)
		copy(b[12:], e.Source.AsSlice())
		copy(b[16:], e.Destination.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^Fold(Sum(b[:ipv4Len], 0)))
	} else {
		b[0], b[6], b[7] = 0x60, ICMPv6, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ipv6Len))
		copy(b[8:], e.Source.AsSlice())
		copy(b[24:], e.Destination.AsSlice())
	}
	icmp, sum := b[headers:], uint64(0)
	if icmp[0] = echoRequest4; !is4 {
		icmp[0] = echoRequest6
		sum = View{Data: b, Protocol: ICMPv6}.PseudoSum(len(icmp))
	}
	binary.BigEndian.PutUint16(icmp[4:], e.Identifier)
	binary.BigEndian.PutUint16(icmp[6:], e.Sequence)
	copy(icmp[icmpLen:], e.Data)
	binary.BigEndian.PutUint16(icmp[2:], ^Fold(Sum(icmp, sum)))
	return nil
}

// ParseEchoReply takes an echo reply apart; Data stays in v's memory. Of one
// that comes in fragments the first will do, with what it holds of Data and
// its checksum unseen; one that comes whole has to have a right one.
func ParseEchoReply(v View) (e Echo, ok bool) {
	protocol, kind := uint8(ICMPv6), byte(echoReply6)
	if v.Is4() {
		protocol, kind = ICMPv4, echoReply4
	}
	if v.Transport == 0 || v.Place == Later || v.Protocol != protocol {
		return Echo{}, false
	}
	icmp := v.Data[v.Transport:]
	if len(icmp) < icmpLen || icmp[0] != kind || icmp[1] != 0 || v.Place == Whole && !v.icmpValid(icmp) {
		return Echo{}, false
	}
	return Echo{
		Source: v.Source(), Destination: v.Destination(),
		Identifier: binary.BigEndian.Uint16(icmp[4:]), Sequence: binary.BigEndian.Uint16(icmp[6:]),
		Data: icmp[icmpLen:],
	}, true
}

func (v View) icmpValid(icmp []byte) bool {
	if v.Is4() {
		return Fold(Sum(icmp, 0)) == 0xffff
	}
	return !v.rerouted && Fold(Sum(icmp, v.PseudoSum(len(icmp)))) == 0xffff
}
