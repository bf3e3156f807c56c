// Package vxlan reads and writes the 22 bytes in front of an inner packet in a
// VXLAN datagram (RFC 7348): the VXLAN header and the inner Ethernet header.
// It must never import the OS or the clock, and never copy or keep a packet.
package vxlan

import (
	"encoding/binary"
	"errors"

	"github.com/weft-net/weft/tunnel"
)

// Sizes in bytes.
const (
	HeaderLen   = 8
	EthernetLen = 14
	Overhead    = HeaderLen + EthernetLen // in front of the inner IP packet
)

// EtherType is the type field of an Ethernet header.
type EtherType uint16

// The Ethernet types that Parse tells apart.
const (
	IPv4 EtherType = 0x0800
	IPv6 EtherType = 0x86dd
	arp  EtherType = 0x0806
	// Tags: customer (802.1Q), service (802.1ad), and the one used for stacking before it.
	vlan        EtherType = 0x8100
	vlanService EtherType = 0x88a8
	vlanStacked EtherType = 0x9100
	// minType is the smallest type; below it the field is an 802.3 length and an LLC header follows.
	minType EtherType = 0x0600
)

// Errors of Parse.
var (
	ErrTruncated = errors.New("shorter than its VXLAN and Ethernet headers")
	ErrHeader    = errors.New("VXLAN header without a VNI")
	ErrVLAN      = errors.New("inner frame has a VLAN tag")
	ErrARP       = errors.New("inner frame is ARP")
	ErrLLC       = errors.New("inner frame is LLC")
	ErrNotIP     = errors.New("inner frame is not IP")
)

// Bits of the VXLAN header.
const (
	hasVNI    = 0x08 // I, in the first byte: the VNI field is valid
	remote    = 0x20 // in the second: the last byte says which checksum is put off
	remoteUDP = 0x80 // in the last: a UDP checksum, else TCP; the rest is half of Remote.Start
)

// MaxRemoteStart is the largest start that fits the header.
const MaxRemoteStart = 0x7f << 1

// Remote is an inner transport checksum that its receiver is to finish, as
// kernel VXLAN devices with remcsumtx do (draft-herbert-vxlan-rco-00). The
// field holds the folded pseudo-header sum.
type Remote struct {
	// Start is where the sum starts, from the inner Ethernet header on: even and
	// at most MaxRemoteStart. 0 means that nothing is put off.
	Start int
	UDP   bool
}

// Offset is where the checksum lies from Start on.
func (r Remote) Offset() int {
	if r.UDP {
		return 6
	}
	return 16
}

// Frame is a VXLAN datagram taken apart.
type Frame struct {
	VNI      uint32
	Remote   Remote
	To, From tunnel.MAC // inner Ethernet destination and source
	Type     EtherType  // IPv4 or IPv6
	Packet   []byte     // what follows the Ethernet header, in the datagram's memory
}

// Parse takes a datagram apart. Reserved bits are ignored, as RFC 7348 section
// 5 demands. Only frames with an IPv4 or IPv6 type are accepted; whether they
// are for this host is for the caller to say.
func Parse(datagram []byte) (Frame, error) {
	if len(datagram) < Overhead {
		return Frame{}, ErrTruncated
	}
	if datagram[0]&hasVNI == 0 {
		return Frame{}, ErrHeader
	}
	ethernet := datagram[HeaderLen:Overhead]
	frame := Frame{
		VNI:    binary.BigEndian.Uint32(datagram[4:]) >> 8,
		To:     tunnel.MAC(ethernet[:6]),
		From:   tunnel.MAC(ethernet[6:12]),
		Type:   EtherType(binary.BigEndian.Uint16(ethernet[12:])),
		Packet: datagram[Overhead:],
	}
	if datagram[1]&remote != 0 {
		frame.Remote = Remote{Start: int(datagram[7]&^remoteUDP) << 1, UDP: datagram[7]&remoteUDP != 0}
	}
	switch {
	case frame.Type == IPv4 || frame.Type == IPv6:
		return frame, nil
	case frame.Type == vlan || frame.Type == vlanService || frame.Type == vlanStacked:
		return Frame{}, ErrVLAN
	case frame.Type == arp:
		return Frame{}, ErrARP
	case frame.Type < minType:
		return Frame{}, ErrLLC
	}
	return Frame{}, ErrNotIP
}

// Put writes the headers of a frame into the first Overhead bytes of b, which
// lie directly in front of the inner packet. Packet is not used.
func (f Frame) Put(b []byte) {
	_ = b[Overhead-1]
	flags, last := uint32(hasVNI<<24), uint32(0)
	if f.Remote.Start > 0 {
		flags, last = flags|remote<<16, uint32(f.Remote.Start>>1)
		if f.Remote.UDP {
			last |= remoteUDP
		}
	}
	binary.BigEndian.PutUint32(b, flags)
	binary.BigEndian.PutUint32(b[4:], f.VNI<<8|last)
	copy(b[8:14], f.To[:])
	copy(b[14:20], f.From[:])
	binary.BigEndian.PutUint16(b[20:], uint16(f.Type))
}
