package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// slowSum is the definition in RFC 1071.
func slowSum(b []byte) uint16 {
	var sum uint64
	for i := 0; i < len(b); i += 2 {
		word := uint64(b[i]) << 8
		if i+1 < len(b) {
			word |= uint64(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestSum(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 700 {
		b := tunneltest.Random(random, n)
		if got, want := Fold(Sum(b, 0)), slowSum(b); got != want {
			t.Fatalf("%d bytes sum to %#x, want %#x", n, got, want)
		}
		cut := n / 2 &^ 1
		if got, want := Fold(Sum(b[cut:], Sum(b[:cut], 0))), slowSum(b); got != want {
			t.Fatalf("%d bytes in two pieces sum to %#x, want %#x", n, got, want)
		}
		ones := bytes.Repeat([]byte{0xff}, n)
		if got, want := Fold(Sum(ones, 0)), slowSum(ones); got != want {
			t.Fatalf("%d bytes of ones sum to %#x, want %#x", n, got, want)
		}
	}
	if got := Sum(make([]byte, 100), 7); got != 7 {
		t.Errorf("sum of zeros from 7 is %d", got)
	}
}

// The example of RFC 1624, section 4, that the older formula gets wrong.
func TestUpdate(t *testing.T) {
	if got := Update(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("got %#x, want 0", got)
	}
}

func TestPartial(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		p := randomPacket(random)
		want := p.Bytes()
		if v := mustParse(t, want); !v.Valid() || v.Partial() {
			t.Fatalf("finished packet: valid %v, partial %v: %x", v.Valid(), v.Partial(), want)
		}
		data, offload := p.Partial()
		v := mustParse(t, data)
		offset, ok := v.ChecksumOffset()
		if v.Valid() || !v.Partial() || !ok || v.Transport != int(offload.ChecksumStart) || offset != int(offload.ChecksumOffset) {
			t.Fatalf("partial packet: valid %v, partial %v, offset %d: %x", v.Valid(), v.Partial(), offset, data)
		}
		if err := Finish(v.Data, v.Transport, offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(v.Data, want) {
			t.Fatalf("finished to %x, want %x", v.Data, want)
		}
	}
}

// A packet whose right checksum happens to equal the pseudo-header sum looks
// partial; finishing it must not change it.
func TestPartialByChance(t *testing.T) {
	p := udp(true, make([]byte, 2))
	for chance := range 1 << 16 {
		binary.BigEndian.PutUint16(p.Payload, uint16(chance))
		want := p.Bytes()
		v := mustParse(t, bytes.Clone(want))
		if !v.Partial() {
			continue
		}
		if err := Finish(v.Data, v.Transport, 6); err != nil || !bytes.Equal(v.Data, want) {
			t.Fatalf("finished to %x (%v), want %x", v.Data, err, want)
		}
		return
	}
	t.Fatal("no packet looks partial")
}

func TestNoChecksumToSee(t *testing.T) {
	fragmented := udp(true, make([]byte, 8)).Bytes()
	fragmented[6] = 0x20
	routed := tcp(false, nil)
	routed.Extensions, routed.FirstExtension = []byte{TCP, 0, 0, 1, 0, 0, 0, 0}, routing
	routedPartial, _ := routed.Partial()
	short := tcp(true, nil).Bytes()
	short[32] = 0xf0 // data offset beyond the end
	for name, b := range map[string][]byte{
		"ICMP":        tunneltest.Packet{Source: a4, Destination: b4, Protocol: ICMPv4, Payload: tunneltest.Echo(true, 9)}.Bytes(),
		"fragment":    fragmented,
		"on a route":  routedPartial,
		"broken TCP":  short,
		"unknown":     tunneltest.Packet{Source: a6, Destination: b6, Protocol: 99, Payload: make([]byte, 40)}.Bytes(),
		"short UDP":   tunneltest.Packet{Source: a4, Destination: b4, Protocol: 99, Payload: make([]byte, 4)}.Bytes(),
		"no TCP data": tunneltest.Packet{Source: a4, Destination: b4, Protocol: 99}.Bytes(),
	} {
		if name == "short UDP" {
			b[9] = UDP
		}
		if name == "no TCP data" {
			b[9] = TCP
		}
		v := mustParse(t, b)
		if _, ok := v.ChecksumOffset(); ok || v.Partial() || v.Valid() {
			t.Errorf("%s: a checksum is seen", name)
		}
	}
	// UDP without a checksum is not checked, even where 0 would be the right sum.
	p := udp(true, make([]byte, 2))
	copy(p.Payload, p.Bytes()[26:28])
	bare := p.Bytes()
	if bare[26] != 0xff || bare[27] != 0xff {
		t.Fatalf("the checksum is %x", bare[26:28])
	}
	bare[26], bare[27] = 0, 0
	if v := mustParse(t, bare); v.Valid() || v.Partial() {
		t.Error("UDP without checksum counts as checked")
	}
}

func TestHeaderValid(t *testing.T) {
	b := tcp(true, nil).Bytes()
	if !mustParse(t, b).HeaderValid() {
		t.Error("right header checksum is refused")
	}
	b[8]--
	if mustParse(t, b).HeaderValid() {
		t.Error("wrong header checksum is accepted")
	}
	if !mustParse(t, tcp(false, nil).Bytes()).HeaderValid() {
		t.Error("IPv6 is refused")
	}
}

func TestFinishOutside(t *testing.T) {
	for _, place := range [][2]int{{-1, 0}, {0, -1}, {0, 19}, {10, 9}, {65535, 65535}} {
		if err := Finish(make([]byte, 20), place[0], place[1]); err != ErrChecksumPlace {
			t.Errorf("%v: %v", place, err)
		}
	}
}

// FuzzFinish holds that a partial checksum, finished, is what the checker
// wants, wherever a packet says that it is.
func FuzzFinish(f *testing.F) {
	data, offload := tcp(true, []byte("data")).Partial()
	f.Add(data, offload.ChecksumStart, offload.ChecksumOffset)
	data, offload = udp(false, []byte("dat")).Partial()
	f.Add(data, offload.ChecksumStart, offload.ChecksumOffset)
	f.Add([]byte{}, uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, start, offset uint16) {
		offload := tunnel.Offload{NeedsChecksum: true, ChecksumStart: start, ChecksumOffset: offset}
		var want []byte
		if int(start)+int(offset)+2 <= len(b) {
			finished, err := tunneltest.Finish(b, offload)
			if err != nil {
				t.Fatal(err)
			}
			want = finished[0]
		}
		if err := Finish(b, int(start), int(offset)); (err == nil) != (want != nil) {
			t.Fatalf("%v for %d+%d in %d bytes", err, start, offset, len(b))
		}
		if want != nil && !bytes.Equal(b, want) {
			t.Fatalf("finished to %x, want %x", b, want)
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for _, size := range []int{40, 1400, 65000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				Sum(data, 0)
			}
		})
	}
}
