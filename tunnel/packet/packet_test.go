package packet

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

var (
	a4 = netip.MustParseAddrPort("10.244.1.7:40000")
	b4 = netip.MustParseAddrPort("10.244.2.9:80")
	a6 = netip.MustParseAddrPort("[fd00:10:244:1::7]:40000")
	b6 = netip.MustParseAddrPort("[fd00:10:244:2::9]:80")
)

func tcp(is4 bool, payload []byte) tunneltest.Packet {
	p := tunneltest.Packet{
		Source: a6, Destination: b6, Protocol: TCP, Payload: payload,
		Sequence: 0xfffffff0, Acknowledgment: 77, Flags: tunneltest.ACK,
		TCPOptions: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
	}
	if is4 {
		p.Source, p.Destination, p.DontFragment, p.ID = a4, b4, true, 0xfffe
	}
	return p
}

func udp(is4 bool, payload []byte) tunneltest.Packet {
	p := tcp(is4, payload)
	p.Protocol = UDP
	return p
}

// bothFamilies runs a test for inner IPv4 and IPv6.
func bothFamilies(t *testing.T, f func(t *testing.T, is4 bool)) {
	t.Helper()
	t.Run("4", func(t *testing.T) { f(t, true) })
	t.Run("6", func(t *testing.T) { f(t, false) })
}

func mustParse(t testing.TB, b []byte) View {
	t.Helper()
	v, err := Parse(b)
	if err != nil {
		t.Fatalf("parse %x: %v", b, err)
	}
	return v
}

// extensions are IPv6 extension headers of 8 bytes each.
func extensions(last uint8, types ...uint8) (chain []byte, first uint8) {
	for i := range types {
		next := last
		if i+1 < len(types) {
			next = types[i+1]
		}
		chain = append(chain, next, 0, 0, 0, 0, 0, 0, 0)
	}
	return chain, types[0]
}

// parseTest is a packet and what is to be seen in it.
type parseTest struct {
	name      string
	data      []byte
	place     Place
	protocol  uint8
	transport int
}

func parseTests() []parseTest {
	t4, t6 := tcp(true, []byte("data")), tcp(false, []byte("data"))
	options := t4
	options.Options = []byte{7, 4, 4, 0}
	chain := t6
	chain.Extensions, chain.FirstExtension = extensions(TCP, hopByHop, destination, routing)
	long := t6
	long.Extensions, long.FirstExtension = extensions(TCP, 60, 60, 60, 60, 60, 60, 60, 60)
	auth := t6
	auth.Extensions, auth.FirstExtension = append([]byte{TCP, 4}, make([]byte, 22)...), authHeader
	cut := t6
	cut.Extensions, cut.FirstExtension = []byte{TCP, 200, 0, 0, 0, 0, 0, 0}, destination
	atomic := t6
	atomic.Extensions, atomic.FirstExtension = extensions(TCP, fragment)
	first6, later6 := atomic, atomic
	first6.Extensions = []byte{TCP, 0, 0, 1, 0, 0, 0, 9}
	later6.Extensions = []byte{TCP, 0, 1, 1, 0, 0, 0, 9}
	first4, later4 := t4.Bytes(), t4.Bytes()
	first4[6], later4[6], later4[7] = 0x20, 0x20, 3
	none := t6
	none.Extensions, none.FirstExtension = extensions(noNext, destination)

	return []parseTest{
		{"TCP", t4.Bytes(), Whole, TCP, 20},
		{"options", options.Bytes(), Whole, TCP, 24},
		{"trailing bytes", append(t4.Bytes(), 0, 0, 0), Whole, TCP, 20},
		{"first fragment", first4, First, TCP, 20},
		{"later fragment", later4, Later, TCP, 0},
		{"UDP", udp(true, nil).Bytes(), Whole, UDP, 20},
		{"TCP6", t6.Bytes(), Whole, TCP, 40},
		{"extensions", chain.Bytes(), Whole, TCP, 64},
		{"authentication", auth.Bytes(), Whole, TCP, 64},
		{"too many extensions", long.Bytes(), Whole, TCP, 0},
		{"extension cut off", cut.Bytes(), Whole, destination, 0},
		{"extension header cut off", tunneltest.Packet{Source: a6, Destination: b6, Protocol: hopByHop, Payload: []byte{6, 0}}.Bytes(), Whole, hopByHop, 0},
		{"nothing after the header", tunneltest.Packet{Source: a6, Destination: b6, Protocol: 99}.Bytes(), Whole, 99, 0},
		{"nothing after the IPv4 header", tunneltest.Packet{Source: a4, Destination: b4, Protocol: 99}.Bytes(), Whole, 99, 0},
		{"no next header", none.Bytes(), Whole, noNext, 0},
		{"atomic fragment", atomic.Bytes(), Whole, TCP, 48},
		{"first fragment6", first6.Bytes(), First, TCP, 48},
		{"later fragment6", later6.Bytes(), Later, TCP, 0},
	}
}

func TestParse(t *testing.T) {
	for _, test := range parseTests() {
		t.Run(test.name, func(t *testing.T) {
			v := mustParse(t, test.data)
			if v.Place != test.place || v.Protocol != test.protocol || v.Transport != test.transport {
				t.Errorf("place %d protocol %d transport %d, want %d %d %d",
					v.Place, v.Protocol, v.Transport, test.place, test.protocol, test.transport)
			}
			source, destination := a6, b6
			if v.Is4() {
				source, destination = a4, b4
			}
			if v.Source() != source.Addr() || v.Destination() != destination.Addr() {
				t.Errorf("addresses %v %v", v.Source(), v.Destination())
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	good4, good6 := tcp(true, []byte("data")).Bytes(), tcp(false, []byte("data")).Bytes()
	change := func(b []byte, at int, value byte) []byte {
		b = bytes.Clone(b)
		b[at] = value
		return b
	}
	tests := []struct {
		name string
		data []byte
		want error
	}{
		{"empty", nil, ErrTruncated},
		{"IPv4 header cut off", good4[:19], ErrTruncated},
		{"IPv6 header cut off", good6[:39], ErrTruncated},
		{"version 5", change(good4, 0, 0x55), ErrVersion},
		{"IPv4 header of 16 bytes", change(good4, 0, 0x44), ErrHeader},
		{"IPv4 header longer than the packet", change(change(good4, 3, 40), 0, 0x4f), ErrHeader},
		{"IPv4 longer than the data", good4[:len(good4)-1], ErrLength},
		{"IPv6 longer than the data", good6[:len(good6)-1], ErrLength},
	}
	for _, test := range tests {
		if _, err := Parse(test.data); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
}

func TestECN(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		p := tcp(is4, []byte("data"))
		p.TOS = 0xb8
		for before := range uint8(4) {
			for after := range uint8(4) {
				p.TOS = p.TOS&^3 | before
				v := mustParse(t, p.Bytes())
				if v.ECN() != before {
					t.Errorf("ECN is %d, want %d", v.ECN(), before)
				}
				v.SetECN(after)
				p.TOS = p.TOS&^3 | after
				if !bytes.Equal(v.Data, p.Bytes()) {
					t.Errorf("%d to %d gives %x, want %x", before, after, v.Data, p.Bytes())
				}
			}
		}
	})
}

func TestFlow(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		flow := func(p tunneltest.Packet) uint32 { return mustParse(t, p.Bytes()).Flow() }
		p := tcp(is4, []byte("data"))
		same := p
		same.Sequence, same.Payload, same.ID = 5, []byte("other"), 9
		if flow(p) != flow(same) {
			t.Error("packets of one flow have two hashes")
		}
		seen := map[uint32]bool{}
		for port := range uint16(1000) {
			p.Source = netip.AddrPortFrom(p.Source.Addr(), port)
			seen[flow(p)&0xff] = true
		}
		if len(seen) < 200 {
			t.Errorf("1000 flows fall into %d of 256 buckets", len(seen))
		}
	})
	// All fragments of a packet are one flow, whatever they show of the ports.
	p := udp(true, make([]byte, 64))
	p.DontFragment = false
	fragments := fragmentAll(t, mustParse(t, p.Bytes()), 60)
	for _, f := range fragments {
		if mustParse(t, f).Flow() != mustParse(t, fragments[0]).Flow() {
			t.Error("fragments have two hashes")
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	b := tcp(false, make([]byte, 1000)).Bytes()
	if n := testing.AllocsPerRun(100, func() {
		v, _ := Parse(b)
		_ = v.Source()
		_ = v.Flow()
		_ = v.Valid()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParse holds that parsing never panics, and that the peek at the
// addresses sees what the full parse sees.
func FuzzParse(f *testing.F) {
	f.Add(tcp(true, []byte("data")).Bytes())
	f.Add(udp(false, []byte("data")).Bytes())
	chain := tcp(false, nil)
	chain.Extensions, chain.FirstExtension = extensions(TCP, hopByHop, routing, fragment)
	f.Add(chain.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Parse(b)
		source, destination, ok := Addresses(b)
		if err != nil {
			return
		}
		if !ok || v.Source() != source || v.Destination() != destination {
			t.Fatalf("peek sees %v %v %v, parse %v %v", source, destination, ok, v.Source(), v.Destination())
		}
		if len(v.Data) > len(b) || v.Transport >= len(v.Data) || v.Place == Later && v.Transport != 0 {
			t.Fatalf("transport at %d of %d", v.Transport, len(v.Data))
		}
		if n, ok := v.PayloadOffset(); ok && n > len(v.Data) {
			t.Fatalf("payload at %d of %d", n, len(v.Data))
		}
		v.Flow()
		v.Valid()
		v.Partial()
		v.HeaderValid()
		v.CWR()
		before := v.ECN()
		v.SetECN(CE)
		v.SetECN(before)
		if v.ECN() != before {
			t.Fatal("ECN does not come back")
		}
	})
}

func randomPacket(random *rand.Rand) tunneltest.Packet {
	p := tcp(random.IntN(2) == 0, tunneltest.Random(random, random.IntN(1400)))
	p.Protocol = []uint8{TCP, UDP}[random.IntN(2)]
	p.Sequence, p.ID = random.Uint32(), uint16(random.Uint32())
	p.DontFragment = random.IntN(2) == 0
	p.Flags = uint8(random.Uint32())
	if random.IntN(2) == 0 {
		p.TCPOptions = nil
	}
	return p
}

func fragmentAll(t testing.TB, v View, mtu int) [][]byte {
	t.Helper()
	fragments, err := Fragment(v, mtu)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for {
		header := make([]byte, fragments.HeaderLen())
		payload, ok := fragments.Next(header)
		if !ok {
			return all
		}
		all = append(all, append(header, payload...))
	}
}
