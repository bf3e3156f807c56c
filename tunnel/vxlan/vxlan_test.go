package vxlan

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

var (
	to    = tunnel.MAC{2, 0, 0, 0, 0, 1}
	from  = tunnel.MAC{2, 0, 0, 0, 0, 2}
	inner = tunneltest.Packet{
		Source: netip.MustParseAddrPort("10.244.1.7:1"), Destination: netip.MustParseAddrPort("10.244.2.9:2"),
		Protocol: tunneltest.UDP, Payload: []byte("data"),
	}.Bytes()
)

func TestParse(t *testing.T) {
	change := func(at int, value byte) []byte {
		b := tunneltest.Frame(0xabcdef, to, from, 0x0800, inner)
		b[at] = value
		return b
	}
	typed := func(etherType uint16) []byte { return tunneltest.Frame(0xabcdef, to, from, etherType, inner) }
	tests := []struct {
		name string
		data []byte
		want error
	}{
		{"IPv4", typed(0x0800), nil},
		{"IPv6", typed(0x86dd), nil},
		{"reserved flags", change(0, 0xff), nil},
		{"reserved bytes", change(2, 0xff), nil},
		{"reserved last byte", change(7, 0xff), nil},
		{"no VNI", change(0, 0), ErrHeader},
		{"all flags but the VNI's", change(0, 0xf7), ErrHeader},
		{"VLAN", typed(0x8100), ErrVLAN},
		{"service VLAN", typed(0x88a8), ErrVLAN},
		{"stacked VLAN", typed(0x9100), ErrVLAN},
		{"ARP", typed(0x0806), ErrARP},
		{"LLC", typed(0x0026), ErrLLC},
		{"largest length", typed(0x05ff), ErrLLC},
		{"smallest type", typed(0x0600), ErrNotIP},
		{"LLDP", typed(0x88cc), ErrNotIP},
	}
	for _, test := range tests {
		frame, err := Parse(test.data)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err == nil && (frame.VNI != 0xabcdef || frame.To != to || frame.From != from || !bytes.Equal(frame.Packet, inner)) {
			t.Errorf("%s: %+v", test.name, frame)
		}
	}
	for n := range Overhead {
		if _, err := Parse(typed(0x0800)[:n]); !errors.Is(err, ErrTruncated) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestPut(t *testing.T) {
	for _, kind := range []EtherType{IPv4, IPv6} {
		b := bytes.Repeat([]byte{0xaa}, Overhead+3)
		Frame{VNI: 0xabcdef, To: to, From: from, Type: kind}.Put(b)
		want := tunneltest.Frame(0xabcdef, to, from, uint16(kind), []byte{0xaa, 0xaa, 0xaa})
		if !bytes.Equal(b, want) {
			t.Errorf("put %x, want %x", b, want)
		}
	}
}

// The bits are those of vxlan.h in Linux: VXLAN_HF_RCO, VXLAN_RCO_UDP.
func TestRemote(t *testing.T) {
	for _, test := range []struct {
		remote      Remote
		flags, last byte
		offset      int
	}{
		{Remote{}, 0, 0, 16},
		{Remote{Start: 34}, 0x20, 17, 16},
		{Remote{Start: 54, UDP: true}, 0x20, 0x80 | 27, 6},
		{Remote{Start: MaxRemoteStart, UDP: true}, 0x20, 0xff, 6},
	} {
		b := make([]byte, Overhead)
		Frame{VNI: 0xabcdef, Type: IPv4, Remote: test.remote}.Put(b)
		if !bytes.Equal(b[:8], []byte{8, test.flags, 0, 0, 0xab, 0xcd, 0xef, test.last}) || test.remote.Offset() != test.offset {
			t.Errorf("%+v is put as %x, offset %d", test.remote, b[:8], test.remote.Offset())
		}
		frame, err := Parse(b)
		if err != nil || frame.Remote != test.remote || frame.VNI != 0xabcdef {
			t.Errorf("%+v is read as %+v, %v", test.remote, frame, err)
		}
	}
}

// FuzzParse holds that what is accepted is accepted again in the same meaning
// after Put, and that nothing panics.
func FuzzParse(f *testing.F) {
	f.Add(tunneltest.Frame(1, to, from, 0x0800, inner))
	f.Add(tunneltest.Frame(1, to, from, 0x8100, inner))
	f.Add([]byte{8})
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := Parse(b)
		if err != nil {
			return
		}
		if len(frame.Packet) != len(b)-Overhead || frame.VNI > 1<<24-1 {
			t.Fatalf("%d bytes of %d, VNI %d", len(frame.Packet), len(b), frame.VNI)
		}
		again := bytes.Clone(b)
		frame.Put(again)
		second, err := Parse(again)
		if err != nil || second.VNI != frame.VNI || second.To != frame.To || second.From != frame.From ||
			second.Type != frame.Type || second.Remote != frame.Remote || !bytes.Equal(again[8:], b[8:]) {
			t.Fatalf("%x became %x: %v", b, again, err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	data := tunneltest.Frame(1, to, from, 0x0800, inner)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(data); err != nil {
			b.Fatal(err)
		}
	}
}
