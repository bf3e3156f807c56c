package tundev

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// probeSegment is the payload of either segment of a probe.
const probeSegment = 64

// probeWrites tries what negotiate was promised, on the link that is up now:
// kernels have been shipped that agree to super-packets and refuse to take one
// (6.6.44, 6.10.3). Each is taken out of o that write refuses.
//
// The probes bear a multicast source, so the kernel drops what it has taken
// without a word to anybody (RFC 1122, 3.2.1.3; RFC 4291, 2.7).
func probeWrites(config Config, o tunnel.Offloads, write func(*tunnel.Outgoing) error) tunnel.Offloads {
	for _, probe := range []struct {
		name string
		gso  []tunnel.GSOType
		wish tunnel.Switch
		on   *bool
	}{
		{"TCP super-packets", []tunnel.GSOType{tunnel.GSOTCP4, tunnel.GSOTCP6}, config.TSO, &o.TCP},
		{"UDP super-packets", []tunnel.GSOType{tunnel.GSOUDP}, config.USO, &o.UDP},
	} {
		for _, gso := range probe.gso {
			if !*probe.on || probe.wish == tunnel.On {
				break
			}
			if err := write(probePacket(gso)); errors.Is(err, tunnel.ErrOffload) {
				*probe.on = false
				o.Why = append(o.Why, fmt.Sprintf("no %s to the kernel: it agreed to them, but refused a probe: %v", probe.name, err))
			}
		}
	}
	return o
}

// probePacket is a super-packet of two segments that goes nowhere.
func probePacket(gso tunnel.GSOType) *tunnel.Outgoing {
	const ipv4Len, ipv6Len, tcpLen = 20, 40, 20
	ip, transport, protocol, offset := ipv4Len, tcpLen, byte(6), 16
	if gso == tunnel.GSOTCP6 {
		ip = ipv6Len
	}
	if gso == tunnel.GSOUDP {
		transport, protocol, offset = udpHeaderLength, 17, 6
	}
	b := make([]byte, ip+transport+2*probeSegment)
	if ip == ipv4Len {
		b[0], b[9] = 0x45, protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		copy(b[12:], []byte{224, 0, 0, 1, 224, 0, 0, 1})
	} else {
		b[0], b[6] = 0x60, protocol
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ip))
		copy(b[8:], []byte{0: 0xff, 1: 0x02, 15: 1, 16: 0xff, 17: 0x02, 31: 1})
	}
	if gso != tunnel.GSOUDP {
		b[ip+tcpDataOffset] = tcpLen / 4 << 4
	}
	if v, err := packet.Parse(b); err == nil {
		packet.PutSuperHeader(b, v, len(b)) // lengths and checksums
	}
	return &tunnel.Outgoing{
		Offload: tunnel.Offload{
			GSO: gso, SegmentSize: probeSegment, NeedsChecksum: true,
			ChecksumStart: uint16(ip), ChecksumOffset: uint16(offset),
		},
		Parts: [][]byte{b},
	}
}
