package tunneltest

import (
	"bytes"
	"net/netip"
	"testing"
)

// The checker is only worth something if it refuses: every single bit of a
// packet is covered by some length or checksum, up to what routers change.
func TestCheckRefuses(t *testing.T) {
	for _, addrs := range [][2]string{{"10.244.1.7:1", "10.244.2.9:2"}, {"[fd00::1]:1", "[fd00::2]:2"}} {
		p := Packet{
			Source: netip.MustParseAddrPort(addrs[0]), Destination: netip.MustParseAddrPort(addrs[1]),
			Payload: Echo(addrs[0][0] != '[', 3), Flags: ACK,
		}
		uncovered := map[int]bool{}
		if p.Source.Addr().Is6() {
			uncovered = map[int]bool{1: true, 2: true, 3: true, 7: true} // traffic class, flow label, hop limit
		}
		for _, p.Protocol = range []uint8{TCP, UDP, ICMPv4, ICMPv6} {
			if p.Protocol == ICMPv4 && p.Source.Addr().Is6() || p.Protocol == ICMPv6 && p.Source.Addr().Is4() {
				continue
			}
			good := p.Bytes()
			if err := Check(good); err != nil {
				t.Fatalf("protocol %d: %v", p.Protocol, err)
			}
			for i := range good {
				for bit := range 8 {
					bad := bytes.Clone(good)
					bad[i] ^= 1 << bit
					// Traffic class bits share a byte with the version, and another
					// protocol number may be one that is not looked into.
					if uncovered[i] || i == 0 && bad[0]>>4 == 6 || p.Source.Addr().Is6() && i == 6 {
						continue
					}
					if Check(bad) == nil {
						t.Errorf("protocol %d: bit %d of byte %d may change", p.Protocol, bit, i)
					}
				}
			}
			if Check(good[:len(good)-1]) == nil || Check(append(good, 0)) == nil {
				t.Errorf("protocol %d: the length may change", p.Protocol)
			}
		}
	}
}

// A super-packet comes apart into sound packets; one that is not what its
// Offload says is refused.
func TestFinish(t *testing.T) {
	for _, protocol := range []uint8{TCP, UDP} {
		p := Packet{
			Source: netip.MustParseAddrPort("10.244.1.7:1"), Destination: netip.MustParseAddrPort("10.244.2.9:2"),
			Protocol: protocol, Payload: make([]byte, 1050), Flags: ACK,
		}
		data, offload := p.Super(100)
		packets, err := Finish(data, offload)
		if err != nil || len(packets) != 11 {
			t.Fatalf("%d packets: %v", len(packets), err)
		}
		for _, p := range packets {
			if err := Check(p); err != nil {
				t.Error(err)
			}
		}
		if _, err := Finish(p.Bytes(), offload); err == nil {
			t.Error("a super-packet with a finished checksum is accepted")
		}
	}
}
