package tundev

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// vnetHeader is struct virtio_net_hdr in front of every packet, in the
// machine's byte order (virtio 1.2, 5.1.6; legacy form).
type vnetHeader [10]byte

// Offsets in a vnetHeader.
const (
	vnetFlags       = 0
	vnetGSOType     = 1
	vnetHeaderLen   = 2
	vnetGSOSize     = 4
	vnetCsumStart   = 6
	vnetCsumOffset  = 8
	tcpDataOffset   = 12 // offset of the byte whose upper half is the header's length in words
	udpHeaderLength = 8
)

var gsoTypes = [...]struct {
	gso  tunnel.GSOType
	wire byte
}{
	{tunnel.GSONone, unix.VIRTIO_NET_HDR_GSO_NONE},
	{tunnel.GSOTCP4, unix.VIRTIO_NET_HDR_GSO_TCPV4},
	{tunnel.GSOTCP6, unix.VIRTIO_NET_HDR_GSO_TCPV6},
	{tunnel.GSOUDP, unix.VIRTIO_NET_HDR_GSO_UDP_L4},
}

// decode reads the header of a packet of the given size. It is false where the
// header says what cannot be: such a packet cannot be finished by anybody. The
// header length is not looked at, because kernels are known to get it wrong.
func (h *vnetHeader) decode(size int) (o tunnel.Offload, ok bool) {
	wire := h[vnetGSOType] &^ unix.VIRTIO_NET_HDR_GSO_ECN
	for _, known := range gsoTypes {
		if known.wire == wire {
			o.GSO, ok = known.gso, true
		}
	}
	if !ok {
		return o, false
	}
	if o.GSO != tunnel.GSONone {
		o.ECN = h[vnetGSOType]&unix.VIRTIO_NET_HDR_GSO_ECN != 0
		if o.SegmentSize = binary.NativeEndian.Uint16(h[vnetGSOSize:]); o.SegmentSize == 0 {
			return o, false
		}
	}
	if h[vnetFlags]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
		o.NeedsChecksum = true
		o.ChecksumStart = binary.NativeEndian.Uint16(h[vnetCsumStart:])
		o.ChecksumOffset = binary.NativeEndian.Uint16(h[vnetCsumOffset:])
		if int(o.ChecksumStart)+int(o.ChecksumOffset)+2 > size {
			return o, false
		}
	}
	return o, true
}

// encode writes the header of p.
func (h *vnetHeader) encode(p *tunnel.Outgoing) {
	*h = vnetHeader{}
	if p.NeedsChecksum {
		h[vnetFlags] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(h[vnetCsumStart:], p.ChecksumStart)
		binary.NativeEndian.PutUint16(h[vnetCsumOffset:], p.ChecksumOffset)
	}
	for _, known := range gsoTypes {
		if known.gso == p.GSO {
			h[vnetGSOType] = known.wire
		}
	}
	if p.GSO == tunnel.GSONone {
		return
	}
	if p.ECN {
		h[vnetGSOType] |= unix.VIRTIO_NET_HDR_GSO_ECN
	}
	binary.NativeEndian.PutUint16(h[vnetGSOSize:], p.SegmentSize)
	binary.NativeEndian.PutUint16(h[vnetHeaderLen:], headersOf(p))
}

// headersOf returns the bytes of p's IP and transport headers, which the kernel
// keeps in one piece, or 0 where the packet is too short to know.
func headersOf(p *tunnel.Outgoing) uint16 {
	start := int(p.ChecksumStart)
	switch {
	case p.GSO == tunnel.GSOUDP:
		return uint16(start + udpHeaderLength)
	case start+tcpDataOffset < len(p.Parts[0]):
		return uint16(start + int(p.Parts[0][start+tcpDataOffset]>>4)*4)
	}
	return 0
}
