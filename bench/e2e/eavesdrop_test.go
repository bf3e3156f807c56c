package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// canary is the text that pods send where the wire is looked at for it.
const canary = "a canary sings in clear; "

// eavesdropper looks for pod traffic that anybody could read.
type eavesdropper struct {
	networks []netip.Prefix // of pods
	port     uint16         // of VXLAN
}

// The kinds of packets. All but sealed and other are clear.
const (
	kindOther  = "other"     // of the hosts themselves
	kindSealed = "wireguard" // by its ports
	kindVXLAN  = "vxlan"
	kindBare   = "bare"   // from or to a pod, in no tunnel
	kindCanary = "canary" // what pods say, in whatever it is
)

// wireGuardPorts are those of flannel's devices.
var wireGuardPorts = []uint16{51820, 51821}

// kind judges an Ethernet frame.
func (e eavesdropper) kind(frame []byte) string {
	if bytes.Contains(frame, []byte(canary)) {
		return kindCanary
	}
	from, to, udp, ok := parseFrame(frame)
	if !ok {
		return kindOther
	}
	for _, network := range e.networks {
		if network.Contains(from) || network.Contains(to) {
			return kindBare
		}
	}
	if len(udp) < 4 {
		return kindOther
	}
	ports := []uint16{binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:])}
	switch {
	case slices.Contains(ports, e.port):
		return kindVXLAN
	case slices.ContainsFunc(wireGuardPorts, func(port uint16) bool { return slices.Contains(ports, port) }):
		return kindSealed
	}
	return kindOther
}

// parseFrame takes an IP packet apart as far as needed; udp is empty for what is
// not the begin of a datagram. Hosts here send no VLAN tags and no options.
func parseFrame(frame []byte) (from, to netip.Addr, udp []byte, ok bool) {
	const link, udpNumber = 14, 17
	if len(frame) < link {
		return from, to, nil, false
	}
	packet := frame[link:]
	switch etherType := binary.BigEndian.Uint16(frame[12:]); {
	case etherType == 0x0800 && len(packet) >= 20:
		from, to = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
		header := int(packet[0]&0xf) * 4
		if first := binary.BigEndian.Uint16(packet[6:])&0x1fff == 0; packet[9] == udpNumber && first && header <= len(packet) {
			udp = packet[header:]
		}
	case etherType == 0x86dd && len(packet) >= 40:
		from, to = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
		if packet[6] == udpNumber {
			udp = packet[40:]
		}
	default:
		return from, to, nil, false
	}
	return from, to, udp, true
}

// frameOf is a frame with a datagram, or what is in place of one.
func frameOf(protocol byte, from, to string, payload []byte) []byte {
	source, target := netip.MustParseAddr(from), netip.MustParseAddr(to)
	frame := make([]byte, 12)
	if source.Is4() {
		header := make([]byte, 12)
		header[0], header[9] = 0x45, protocol
		frame = append(append(frame, 0x08, 0x00), header...)
	} else {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64)
	}
	frame = append(append(frame, source.AsSlice()...), target.AsSlice()...)
	return append(frame, payload...)
}

func TestEavesdropper(t *testing.T) {
	e := eavesdropper{networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}, port: 8472}
	ports := func(from, to uint16, payload string) []byte {
		b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
		return append(append(b, 0, 0, 0, 0), payload...)
	}
	const udp, tcp = 17, 6
	later := frameOf(udp, "192.168.64.1", "192.168.64.2", ports(8472, 8472, ""))
	later[14+7] = 1 // a fragment that is not the first
	tests := []struct {
		name  string
		frame []byte
		want  string
	}{
		{"nothing", nil, kindOther},
		{"ARP", append(make([]byte, 12), 8, 6, 1, 2, 3), kindOther},
		{"cut off", frameOf(udp, "192.168.64.1", "192.168.64.2", nil)[:30], kindOther},
		{"VXLAN", frameOf(udp, "192.168.64.1", "192.168.64.2", ports(40000, 8472, "x")), kindVXLAN},
		{"VXLAN over IPv6", frameOf(udp, "fd64::1", "fd64::2", ports(8472, 40000, "x")), kindVXLAN},
		{"the same number over TCP", frameOf(tcp, "192.168.64.1", "192.168.64.2", ports(40000, 8472, "x")), kindOther},
		{"no ports in it", later, kindOther},
		{"WireGuard", frameOf(udp, "192.168.64.1", "192.168.64.2", ports(51820, 51820, "x")), kindSealed},
		{"WireGuard over IPv6", frameOf(udp, "fd64::1", "fd64::2", ports(51821, 51821, "x")), kindSealed},
		{"from a pod", frameOf(tcp, "10.244.1.7", "192.168.64.2", ports(1, 2, "x")), kindBare},
		{"to a pod, on WireGuard's port", frameOf(udp, "fd64::1", "fd00:10:244:1::7", ports(51820, 51820, "x")), kindBare},
		{"text in WireGuard", frameOf(udp, "192.168.64.1", "192.168.64.2", ports(51820, 51820, "x"+canary)), kindCanary},
		{"text in anything", append(make([]byte, 30), canary...), kindCanary},
	}
	for _, tt := range tests {
		if got := e.kind(tt.frame); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
