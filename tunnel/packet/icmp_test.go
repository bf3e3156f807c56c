package packet

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

func far(is4 bool) netip.Addr {
	if is4 {
		return netip.MustParseAddr("10.244.2.0")
	}
	return netip.MustParseAddr("fd00:10:244:2::")
}

func TestTooBig(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, length := range []int{0, 100, 1400, 60000} {
			offending := tcp(is4, make([]byte, length)).Bytes()
			v := mustParse(t, offending)
			reply := bytes.Repeat([]byte{0xaa}, MaxTooBig)
			reply = reply[:TooBig(reply, v, far(is4), 1280)]
			if err := tunneltest.Check(reply); err != nil {
				t.Fatalf("%d bytes: %v: %x", length, err, reply)
			}
			w := mustParse(t, reply)
			icmp := reply[w.Transport:]
			if w.Source() != far(is4) || w.Destination() != v.Source() {
				t.Errorf("from %v to %v", w.Source(), w.Destination())
			}
			kind, mtu, most := [2]byte{2, 0}, binary.BigEndian.Uint32(icmp[4:]), 1280
			if is4 {
				kind, most = [2]byte{3, 4}, 576
			}
			if [2]byte(icmp) != kind || mtu != 1280 {
				t.Errorf("type and code %v, MTU %d", icmp[:2], mtu)
			}
			quoted := icmp[8:]
			if !bytes.HasPrefix(offending, quoted) || len(reply) > most || len(quoted) < len(offending) && len(reply) != most {
				t.Errorf("quotes %d of %d bytes", len(quoted), len(offending))
			}
		}
	})
}

func icmp(is4 bool, kind byte) tunneltest.Packet {
	p := tcp(is4, tunneltest.Echo(is4, 100))
	p.Protocol = ICMPv6
	if is4 {
		p.Protocol = ICMPv4
	}
	p.Payload[0] = kind
	return p
}

func TestTooBigNever(t *testing.T) {
	from := func(p tunneltest.Packet, source string) tunneltest.Packet {
		p.Source = netip.AddrPortFrom(netip.MustParseAddr(source), 1)
		return p
	}
	to := func(p tunneltest.Packet, destination string) tunneltest.Packet {
		p.Destination = netip.AddrPortFrom(netip.MustParseAddr(destination), 1)
		return p
	}
	later := udp(true, make([]byte, 100)).Bytes()
	later[7] = 3
	t4, t6 := tcp(true, nil), tcp(false, nil)
	never := map[string][]byte{
		"unreachable":         icmp(true, 3).Bytes(),
		"quench":              icmp(true, 4).Bytes(),
		"redirect":            icmp(true, 5).Bytes(),
		"time exceeded":       icmp(true, 11).Bytes(),
		"parameter problem":   icmp(true, 12).Bytes(),
		"unreachable6":        icmp(false, 1).Bytes(),
		"too big6":            icmp(false, 2).Bytes(),
		"unknown error6":      icmp(false, 127).Bytes(),
		"redirect6":           icmp(false, 137).Bytes(),
		"ICMP without a type": tunneltest.Packet{Source: a4, Destination: b4, Protocol: ICMPv4}.Bytes(),
		"later fragment":      later,
		"from nobody":         from(t4, "0.0.0.0").Bytes(),
		"from this network":   from(t4, "0.1.2.3").Bytes(),
		"from multicast":      from(t4, "224.0.0.1").Bytes(),
		"from broadcast":      from(t4, "255.255.255.255").Bytes(),
		"from loopback":       from(t4, "127.0.0.1").Bytes(),
		"to multicast":        to(t4, "239.1.1.1").Bytes(),
		"to broadcast":        to(t4, "255.255.255.255").Bytes(),
		"from nobody6":        from(t6, "::").Bytes(),
		"from multicast6":     from(t6, "ff02::1").Bytes(),
		"from loopback6":      from(t6, "::1").Bytes(),
		"to multicast6":       to(t6, "ff02::1").Bytes(),
	}
	reply := make([]byte, MaxTooBig)
	for name, b := range never {
		v := mustParse(t, b)
		if n := TooBig(reply, v, far(v.Is4()), 1280); n != 0 {
			t.Errorf("%s: an error of %d bytes", name, n)
		}
	}
	if TooBig(reply, mustParse(t, t4.Bytes()), far(false), 1280) != 0 {
		t.Error("IPv4 is answered from an IPv6 address")
	}
	for name, p := range map[string]tunneltest.Packet{
		"ping": icmp(true, 8), "ping6": icmp(false, 128), "TCP": t4, "TCP6": t6,
	} {
		if v := mustParse(t, p.Bytes()); TooBig(reply, v, far(v.Is4()), 1280) == 0 {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestLowerMTU(t *testing.T) {
	for _, test := range []struct {
		size int
		is4  bool
		want int
	}{
		{1450, true, 1400}, {1400, true, 1280}, {1280, true, 1006}, {69, true, 68}, {60, true, 68},
		{1450, false, 1400}, {1280, false, 1280}, {9000, false, 8166},
	} {
		if got := LowerMTU(test.size, test.is4); got != test.want {
			t.Errorf("below %d: %d, want %d", test.size, got, test.want)
		}
	}
}

// FuzzTooBig holds that an ICMP error is sound, quotes the packet's beginning,
// and never answers another one.
func FuzzTooBig(f *testing.F) {
	f.Add(tcp(true, make([]byte, 100)).Bytes(), uint32(1280))
	f.Add(udp(false, make([]byte, 2000)).Bytes(), uint32(1280))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint32) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		reply := make([]byte, MaxTooBig)
		n := TooBig(reply, v, far(v.Is4()), int(mtu))
		if n == 0 {
			return
		}
		if err := tunneltest.Check(reply[:n]); err != nil {
			t.Fatal(err)
		}
		w := mustParse(t, reply[:n])
		if w.Destination() != v.Source() || !bytes.HasPrefix(v.Data, reply[w.Transport+8:n]) {
			t.Fatalf("answers %x with %x", b, reply[:n])
		}
		if TooBig(make([]byte, MaxTooBig), w, far(v.Is4()), int(mtu)) != 0 {
			t.Fatal("answers an answer")
		}
	})
}
