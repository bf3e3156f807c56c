package tundev

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

func TestHeader(t *testing.T) {
	tcp := make([]byte, 60)
	tcp[20+tcpDataOffset] = 8 << 4
	for _, tt := range []struct {
		name string
		out  tunnel.Outgoing
		want vnetHeader // as on a little-endian machine
	}{
		{"finished", tunnel.Outgoing{Parts: [][]byte{tcp}}, vnetHeader{}},
		{"checksum", tunnel.Outgoing{Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 6}, Parts: [][]byte{tcp}},
			vnetHeader{1, 0, 0, 0, 0, 0, 40, 0, 6, 0}},
		{"TCP over IPv4", tunnel.Outgoing{Offload: tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1398, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, Parts: [][]byte{tcp}},
			vnetHeader{1, 1, 52, 0, 0x76, 0x05, 20, 0, 16, 0}},
		{"TCP with ECN over IPv6", tunnel.Outgoing{Offload: tunnel.Offload{GSO: tunnel.GSOTCP6, ECN: true, SegmentSize: 1, NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 16}, Parts: [][]byte{tcp}},
			vnetHeader{1, 0x84, 40, 0, 1, 0, 40, 0, 16, 0}},
		{"UDP", tunnel.Outgoing{Offload: tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 1200, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}, Parts: [][]byte{tcp}},
			vnetHeader{1, 5, 28, 0, 0xb0, 0x04, 20, 0, 6, 0}},
		{"headers cut off", tunnel.Outgoing{Offload: tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, Parts: [][]byte{tcp[:30]}},
			vnetHeader{1, 1, 0, 0, 1, 0, 20, 0, 16, 0}},
	} {
		var h vnetHeader
		h.encode(&tt.out)
		if little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1; little && h != tt.want {
			t.Errorf("%s: encoded as % x, want % x", tt.name, h, tt.want)
		}
		if got, ok := h.decode(len(tcp)); !ok || got != tt.out.Offload {
			t.Errorf("%s: decoded as %+v, %t, want %+v", tt.name, got, ok, tt.out.Offload)
		}
	}
}

func TestHeaderThatCannotBe(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    vnetHeader
		size int
		ok   bool
	}{
		{"data valid is no offload", vnetHeader{unix.VIRTIO_NET_HDR_F_DATA_VALID}, 40, true},
		{"header length is not believed", vnetHeader{0, 0, 0xff, 0xff}, 40, true},
		{"UDP fragments", vnetHeader{1, unix.VIRTIO_NET_HDR_GSO_UDP, 0, 0, 9, 9}, 40, false},
		{"tunnel", vnetHeader{1, 0x21, 0, 0, 9, 9}, 40, false},
		{"no segment size", vnetHeader{1, unix.VIRTIO_NET_HDR_GSO_TCPV4}, 40, false},
		{"checksum outside", vnetHeader{1, 0, 0, 0, 0, 0, 20, 0, 19, 0}, 40, false},
	} {
		if got, ok := tt.h.decode(tt.size); ok != tt.ok || ok && got != (tunnel.Offload{}) {
			t.Errorf("%s: %+v, %t, want %t", tt.name, got, ok, tt.ok)
		}
	}
}
