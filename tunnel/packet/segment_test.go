package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

func segmentAll(t testing.TB, v View, size int, partial bool) [][]byte {
	t.Helper()
	segments, err := Segment(v, size, partial)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for {
		header := make([]byte, segments.HeaderLen())
		payload, ok := segments.Next(header)
		if !ok {
			return all
		}
		all = append(all, append(header, payload...))
	}
}

// equalPackets reports the first difference between packets.
func equalPackets(t testing.TB, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("packet %d is\n%x, want\n%x", i, got[i], want[i])
		}
	}
}

func TestSegment(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, protocol := range []uint8{TCP, UDP} {
			for _, length := range []int{1, 99, 100, 101, 1000, 61000} {
				p := tcp(is4, tunneltest.Random(rand.New(rand.NewPCG(5, 6)), length))
				p.Protocol = protocol
				p.Flags = tunneltest.ACK | tunneltest.PSH | tunneltest.FIN | tunneltest.CWR
				data, offload := p.Super(100)
				want, err := tunneltest.Finish(data, offload)
				if err != nil {
					t.Fatal(err)
				}
				got := segmentAll(t, mustParse(t, data), 100, false)
				equalPackets(t, got, want)
				for _, b := range got {
					if err := tunneltest.Check(b); err != nil {
						t.Fatal(err)
					}
				}
				for i, b := range segmentAll(t, mustParse(t, data), 100, true) {
					v := mustParse(t, b)
					if !v.Partial() {
						t.Fatalf("segment %d is not partial: %x", i, b)
					}
					offset, _ := v.ChecksumOffset()
					if err := Finish(b, v.Transport, offset); err != nil {
						t.Fatal(err)
					}
					equalPackets(t, [][]byte{b}, want[i:i+1])
				}
			}
		}
	})
}

func TestSegmentHeaders(t *testing.T) {
	// IPv4 options and IPv6 extension headers go with every segment.
	p4, p6 := tcp(true, make([]byte, 250)), udp(false, make([]byte, 250))
	p4.Options = []byte{7, 4, 4, 0}
	p6.Extensions, p6.FirstExtension = extensions(UDP, hopByHop)
	for _, p := range []tunneltest.Packet{p4, p6} {
		data, offload := p.Super(100)
		want, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		equalPackets(t, segmentAll(t, mustParse(t, data), 100, false), want)
	}
}

func TestSegmentWithoutChecksum(t *testing.T) {
	b := udp(true, make([]byte, 250)).Bytes()
	b[26], b[27] = 0, 0
	for i, b := range segmentAll(t, mustParse(t, b), 100, false) {
		if binary.BigEndian.Uint16(b[26:]) != 0 {
			t.Errorf("segment %d has a checksum", i)
		}
		if err := tunneltest.Check(b); err != nil {
			t.Error(err)
		}
	}
}

func TestSegmentWithoutPayload(t *testing.T) {
	want := tcp(true, nil).Bytes()
	equalPackets(t, segmentAll(t, mustParse(t, want), 100, false), [][]byte{want})
}

// TestSegmentOnRoute: behind a routing header the destination of the IP header
// is the next hop, and the checksum is for the last.
func TestSegmentOnRoute(t *testing.T) {
	hop := netip.MustParseAddr("fd00::99").As16()
	towards := func(b []byte) []byte {
		copy(b[24:40], hop[:])
		return b
	}
	for _, protocol := range []uint8{TCP, UDP} {
		p := tcp(false, tunneltest.Random(rand.New(rand.NewPCG(9, 10)), 250))
		p.Protocol, p.Flags = protocol, tunneltest.ACK
		p.Extensions, p.FirstExtension = []byte{protocol, 0, 0, 1, 0, 0, 0, 0}, routing
		data, _ := p.Super(100)
		var want [][]byte
		for rest := p; len(rest.Payload) > 0; rest.Payload = rest.Payload[len(p.Payload):] {
			p.Payload = rest.Payload[:min(100, len(rest.Payload))]
			want = append(want, towards(p.Bytes()))
			p.Sequence += uint32(len(p.Payload))
		}
		equalPackets(t, segmentAll(t, mustParse(t, towards(data)), 100, false), want)
	}
}

// Only TCP that a receiver takes in any segments is divisible.
func TestDivisible(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for flags := range 256 {
			p := tcp(is4, []byte{1})
			p.Flags = uint8(flags)
			want := p.Flags&(tunneltest.SYN|tunneltest.RST|tunneltest.URG) == 0
			if got := mustParse(t, p.Bytes()).Divisible(); got != want {
				t.Errorf("flags %#x: %v", flags, got)
			}
		}
		for name, b := range map[string][]byte{"UDP": udp(is4, []byte{1}).Bytes(), "no data": tcp(is4, nil).Bytes(), "ICMP": icmp(is4, 8).Bytes()} {
			if mustParse(t, b).Divisible() {
				t.Errorf("%s is divisible", name)
			}
		}
	})
	fragment := tcp(true, []byte{1}).Bytes()
	fragment[6] |= 0x20
	if mustParse(t, fragment).Divisible() {
		t.Error("a fragment is divisible")
	}
}

func TestSegmentErrors(t *testing.T) {
	fragmented := udp(true, make([]byte, 8)).Bytes()
	fragmented[6] = 0x20
	ping := tunneltest.Packet{Source: a4, Destination: b4, Protocol: ICMPv4, Payload: tunneltest.Echo(true, 9)}
	for name, b := range map[string][]byte{
		"fragment": fragmented, "ping": ping.Bytes(),
	} {
		if _, err := Segment(mustParse(t, b), 100, false); err != ErrSegment {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Segment(mustParse(t, tcp(true, []byte("data")).Bytes()), 0, false); err != ErrSegment {
		t.Errorf("size 0: %v", err)
	}
}

// merged joins what can be joined of packets that follow each other, and
// returns each result with the segment size, or 0 for a packet left alone.
func merged(t testing.TB, packets [][]byte) (super [][]byte, sizes []int) {
	t.Helper()
	var group Group
	var members [][]byte
	end := func() {
		if group.Count() > 1 {
			b := make([]byte, group.HeaderLen())
			group.Header(b)
			for _, m := range members {
				b = append(b, m[group.HeaderLen():]...)
			}
			super, sizes = append(super, b), append(sizes, group.SegmentSize())
		} else if len(members) == 1 {
			super, sizes = append(super, members[0]), append(sizes, 0)
		}
		members = nil
	}
	for _, b := range packets {
		v := mustParse(t, b)
		if group.Add(v) {
			members = append(members, v.Data)
			continue
		}
		end()
		members = [][]byte{v.Data}
		group.Start(v)
	}
	end()
	return super, sizes
}

func TestMerge(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		random := rand.New(rand.NewPCG(7, 8))
		for _, protocol := range []uint8{TCP, UDP} {
			for _, length := range []int{200, 201, 350, 6400, 6450} {
				p := tcp(is4, tunneltest.Random(random, length))
				p.Protocol, p.Flags = protocol, tunneltest.ACK|tunneltest.PSH
				data, offload := p.Super(100)
				packets, err := tunneltest.Finish(data, offload)
				if err != nil {
					t.Fatal(err)
				}
				super, sizes := merged(t, packets)
				if len(super) != (length+6399)/6400 || sizes[0] != 100 {
					t.Fatalf("%d bytes of protocol %d merge to %d packets of segment size %v", length, protocol, len(super), sizes)
				}
				if len(super) == 1 && !bytes.Equal(super[0], data) {
					t.Fatalf("merged to\n%x, want\n%x", super[0], data)
				}
				var again [][]byte
				for i := range super {
					if sizes[i] == 0 {
						again = append(again, super[i])
						continue
					}
					again = append(again, segmentAll(t, mustParse(t, super[i]), sizes[i], false)...)
				}
				equalPackets(t, again, packets)
			}
		}
	})
}

func TestMergeNever(t *testing.T) {
	tests := []struct {
		name   string
		change func(first, second *tunneltest.Packet)
	}{
		{"gap", func(_, p *tunneltest.Packet) { p.Sequence++ }},
		{"repeat", func(_, p *tunneltest.Packet) { p.Sequence -= 100 }},
		{"longer", func(_, p *tunneltest.Packet) { p.Payload = make([]byte, 101) }},
		{"pure acknowledgment", func(_, p *tunneltest.Packet) { p.Payload = nil }},
		{"first without data", func(f, p *tunneltest.Packet) { f.Payload = nil; p.Sequence -= 100 }},
		{"FIN", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.FIN }},
		{"SYN", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.SYN }},
		{"RST", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.RST }},
		{"URG", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.URG }},
		{"ECE", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.ECE }},
		{"CWR", func(_, p *tunneltest.Packet) { p.Flags |= tunneltest.CWR }},
		{"no ACK", func(_, p *tunneltest.Packet) { p.Flags = 0 }},
		{"PSH on the first", func(f, _ *tunneltest.Packet) { f.Flags |= tunneltest.PSH }},
		{"ECE on both", func(f, p *tunneltest.Packet) { f.Flags |= tunneltest.ECE; p.Flags |= tunneltest.ECE }},
		{"other acknowledgment", func(_, p *tunneltest.Packet) { p.Acknowledgment++ }},
		{"other timestamp", func(_, p *tunneltest.Packet) { p.TCPOptions[7]++ }},
		{"fewer options", func(_, p *tunneltest.Packet) { p.TCPOptions = nil }},
		{"CE", func(_, p *tunneltest.Packet) { p.TOS = 3 }},
		{"other traffic class", func(_, p *tunneltest.Packet) { p.TOS = 0x20 }},
		{"other source", func(_, p *tunneltest.Packet) { p.Source = other(p.Source) }},
		{"other destination", func(_, p *tunneltest.Packet) { p.Destination = other(p.Destination) }},
		{"other protocol", func(_, p *tunneltest.Packet) { p.Protocol = UDP }},
		{"extension header or option", func(_, p *tunneltest.Packet) {
			p.Options = []byte{1, 1, 1, 0}
			p.Extensions, p.FirstExtension = extensions(TCP, destination)
		}},
		{"both with extension headers or options", func(f, p *tunneltest.Packet) {
			for _, p := range []*tunneltest.Packet{f, p} {
				p.Options = []byte{1, 1, 1, 0}
				p.Extensions, p.FirstExtension = extensions(TCP, destination)
			}
		}},
	}
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, test := range tests {
			first, second := tcp(is4, make([]byte, 100)), tcp(is4, make([]byte, 100))
			second.Sequence += 100
			second.ID++
			test.change(&first, &second)
			if super, sizes := merged(t, [][]byte{first.Bytes(), second.Bytes()}); len(super) != 2 {
				t.Errorf("%s: merged with segment size %v", test.name, sizes)
			}
		}
	})
}

func other(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), a.Port()+1)
}

func TestMergeIPv4(t *testing.T) {
	pair := func(df bool, change func(second []byte)) int {
		first, second := tcp(true, make([]byte, 100)), tcp(true, make([]byte, 100))
		first.DontFragment, second.DontFragment = df, df
		second.Sequence += 100
		second.ID++
		b := second.Bytes()
		change(b)
		super, _ := merged(t, [][]byte{first.Bytes(), b})
		return len(super)
	}
	setID := func(b []byte) {
		b[4], b[5] = 0xff, 0xfe
		clear(b[10:12])
		binary.BigEndian.PutUint16(b[10:], ^slowSum(b[:20]))
	}
	tests := []struct {
		name   string
		df     bool
		change func([]byte)
		want   int
	}{
		{"same id, may not be fragmented", true, setID, 1},
		{"same id, may be fragmented", false, setID, 2},
		{"ids count up", false, func([]byte) {}, 1},
		{"wrong header checksum", true, func(b []byte) { b[10]++ }, 2},
		{"fragment", false, func(b []byte) { b[6] |= 0x20; setID(b) }, 2},
		{"other TTL", true, func(b []byte) { b[8]++; setID(b) }, 2},
	}
	for _, test := range tests {
		if got := pair(test.df, test.change); got != test.want {
			t.Errorf("%s: %d packets, want %d", test.name, got, test.want)
		}
	}
}

func TestMergeUDP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		build := func(k, length int) []byte {
			p := udp(is4, make([]byte, length))
			p.ID += uint16(k)
			return p.Bytes()
		}
		if super, _ := merged(t, [][]byte{build(0, 100), build(1, 60), build(2, 60)}); len(super) != 2 {
			t.Errorf("a shorter datagram does not end the group: %d", len(super))
		}
		bare := build(1, 100)
		v := mustParse(t, bare)
		clear(bare[v.Transport+6 : v.Transport+8])
		if super, _ := merged(t, [][]byte{build(0, 100), bare}); len(super) != 2 {
			t.Error("a datagram without checksum is merged")
		}
		wrong := build(1, 100)
		wrong[v.Transport+5]--
		if super, _ := merged(t, [][]byte{build(0, 100), wrong}); len(super) != 2 {
			t.Error("a datagram with a wrong length is merged")
		}
		if super, _ := merged(t, [][]byte{build(0, 0), build(1, 0)}); len(super) != 2 {
			t.Error("empty datagrams are merged")
		}
	})
}

func TestMergeBounds(t *testing.T) {
	var packets [][]byte
	for k := range 100 {
		p := tcp(true, make([]byte, 1398))
		p.Sequence += uint32(k * 1398)
		p.ID += uint16(k)
		packets = append(packets, p.Bytes())
	}
	super, _ := merged(t, packets)
	for _, b := range super {
		if len(b) > 65535 {
			t.Errorf("merged to %d bytes", len(b))
		}
	}
	if len(super) != 3 {
		t.Errorf("100 packets merge to %d", len(super))
	}
}

// FuzzSegment holds that a super-packet, cut and joined again, is what it was,
// that the pieces carry its payload and no more, and that they pass the checker.
func FuzzSegment(f *testing.F) {
	data, _ := tcp(true, make([]byte, 1000)).Super(100)
	f.Add(data, uint16(100))
	data, _ = udp(false, make([]byte, 999)).Super(333)
	f.Add(data, uint16(333))
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		segments, err := Segment(v, int(size), false)
		if err != nil || len(v.Data)/int(size) > 2000 {
			return
		}
		headers, total := segments.HeaderLen(), 0
		pieces := segmentAll(t, v, int(size), false)
		for i, piece := range pieces {
			p := mustParse(t, piece)
			if len(p.Data) != len(piece) || len(piece)-headers > int(size) || i+1 < len(pieces) && len(piece)-headers != int(size) {
				t.Fatalf("piece %d of %d has %d bytes", i, len(pieces), len(piece))
			}
			if !p.HeaderValid() || !p.Valid() && !segments.bare {
				t.Fatalf("piece %d has a wrong checksum: %x", i, piece)
			}
			total += len(piece) - headers
		}
		if total != len(v.Data)-headers {
			t.Fatalf("%d bytes of payload became %d", len(v.Data)-headers, total)
		}
		super, sizes := merged(t, pieces)
		var again [][]byte
		for i := range super {
			if sizes[i] == 0 {
				again = append(again, super[i])
				continue
			}
			offload := superOffload(mustParse(t, super[i]), sizes[i])
			finished, err := tunneltest.Finish(super[i], offload)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, finished...)
		}
		equalPackets(t, again, pieces)
	})
}

func superOffload(v View, size int) tunnel.Offload {
	offset, _ := v.ChecksumOffset()
	return tunnel.Offload{
		GSO: tunnel.GSOTCP4, SegmentSize: uint16(size), NeedsChecksum: true,
		ChecksumStart: uint16(v.Transport), ChecksumOffset: uint16(offset),
	}
}

// FuzzMerge holds that joining any two packets and cutting the result gives
// them back, up to the id of IPv4 packets that may not be fragmented.
func FuzzMerge(f *testing.F) {
	first, second := tcp(true, make([]byte, 100)), tcp(true, make([]byte, 100))
	second.Sequence += 100
	second.ID++
	f.Add(first.Bytes(), second.Bytes())
	first, second = udp(false, make([]byte, 100)), udp(false, make([]byte, 50))
	f.Add(first.Bytes(), second.Bytes())
	f.Fuzz(func(t *testing.T, a, b []byte) {
		v, err := Parse(a)
		w, err2 := Parse(b)
		if err != nil || err2 != nil || !v.Valid() || !w.Valid() {
			return
		}
		super, sizes := merged(t, [][]byte{a, b})
		if len(super) != 1 {
			return
		}
		if len(super[0]) > len(a)+len(b) {
			t.Fatalf("%d and %d bytes grew to %d", len(a), len(b), len(super[0]))
		}
		pieces := segmentAll(t, mustParse(t, super[0]), sizes[0], false)
		if v.Is4() && v.DontFragment() && len(pieces) == 2 {
			copy(pieces[1][4:6], w.Data[4:6])
			copy(pieces[1][10:12], w.Data[10:12])
		}
		// One number has two forms in ones' complement.
		for i, want := range [][]byte{v.Data, w.Data} {
			offset, _ := v.ChecksumOffset()
			at := v.Transport + offset
			if binary.BigEndian.Uint16(want[at:]) == 0 {
				want[at], want[at+1] = 0xff, 0xff
			}
			if v.Is4() && i < len(pieces) {
				copy(pieces[i][10:12], want[10:12])
			}
		}
		equalPackets(t, pieces, [][]byte{v.Data, w.Data})
	})
}

// FuzzNext holds that Next takes what Parse, the checks and Add together would
// take, no more, and ends in the same group.
func FuzzNext(f *testing.F) {
	for _, is4 := range []bool{true, false} {
		first, second := tcp(is4, make([]byte, 100)), tcp(is4, make([]byte, 90))
		second.Sequence += 100
		second.ID++
		f.Add(first.Bytes(), second.Bytes())
		partial, _ := second.Partial()
		f.Add(first.Bytes(), partial)
		first, second = udp(is4, make([]byte, 100)), udp(is4, make([]byte, 50))
		f.Add(first.Bytes(), second.Bytes())
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		v, err := Parse(a)
		if err != nil || !v.Valid() {
			return
		}
		var quick, slow Group
		if !quick.Start(v) {
			return
		}
		slow.Start(v)
		got, partial, ok := quick.Next(b, false)
		want, err := Parse(b)
		taken := err == nil && (want.Partial() || want.Valid()) && slow.Add(want)
		// What follows the IP length is for Parse to cut off.
		if ok != (taken && len(want.Data) == len(b)) {
			t.Fatalf("Next is %t, Add is %t of\n%x\n%x", ok, taken, a, b)
		}
		if ok && (!reflect.DeepEqual(quick, slow) || !reflect.DeepEqual(got, want) || partial != want.Partial()) {
			t.Fatalf("Next made %+v of %+v, Add %+v of %+v", quick, got, slow, want)
		}
	})
}

func BenchmarkSegment(b *testing.B) {
	data, _ := tcp(true, make([]byte, 44*1398)).Super(1398)
	v := mustParse(b, data)
	header := make([]byte, 64)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		segments, _ := Segment(v, 1398, false)
		for ok := true; ok; {
			_, ok = segments.Next(header)
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	data, offload := tcp(true, make([]byte, 44*1398)).Super(1398)
	packets, err := tunneltest.Finish(data, offload)
	if err != nil {
		b.Fatal(err)
	}
	header := make([]byte, 64)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		var group Group
		for _, p := range packets {
			v, _ := Parse(p)
			if !group.Add(v) {
				group.Start(v)
			}
		}
		group.Header(header)
	}
}
