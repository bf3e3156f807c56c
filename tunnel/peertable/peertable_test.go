package peertable

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

func peer(name, endpoint string, prefixes ...string) tunnel.Peer {
	p := tunnel.Peer{
		Name: name, Endpoint: netip.MustParseAddrPort(endpoint),
		MAC: tunnel.MAC{2, 0, 0, 0, 0, 1}, VNI: 1, MTU: 1450,
	}
	for _, prefix := range prefixes {
		p.Prefixes = append(p.Prefixes, netip.MustParsePrefix(prefix))
	}
	return p
}

func TestLookup(t *testing.T) {
	table, err := Build([]tunnel.Peer{
		peer("a", "192.0.2.1:8472", "10.244.1.0/24"),
		peer("b", "192.0.2.2:8472", "10.244.0.0/16", "10.244.1.128/25"),
		peer("c", "[2001:db8::3]:8472", "fd00:10:244:3::/64"),
	})
	if err != nil || table.Len() != 3 {
		t.Fatalf("%d peers: %v", table.Len(), err)
	}
	for inner, want := range map[string]string{
		"10.244.1.1": "a", "10.244.1.128": "b", "10.244.9.9": "b", "10.245.0.1": "",
		"fd00:10:244:3::7": "c", "fd00:10:244:4::7": "", "::ffff:10.244.1.1": "",
	} {
		if p, ok := table.Lookup(netip.MustParseAddr(inner)); ok != (want != "") || ok && p.Name != want {
			t.Errorf("%s belongs to %v, want %q", inner, p, want)
		}
	}
	for _, test := range []struct {
		outer, inner string
		want         bool
	}{
		{"192.0.2.1", "10.244.1.1", true},
		{"192.0.2.2", "10.244.1.1", false},
		{"192.0.2.2", "10.244.1.129", true},
		{"192.0.2.1", "10.244.1.129", false},
		{"192.0.2.9", "10.244.1.1", false},
		{"192.0.2.1", "8.8.8.8", false},
		{"2001:db8::3", "fd00:10:244:3::7", true},
		{"192.0.2.1", "fd00:10:244:3::7", false},
	} {
		if got := allowed(table, netip.MustParseAddr(test.outer), netip.MustParseAddr(test.inner)); got != test.want {
			t.Errorf("%s from %s: %v", test.inner, test.outer, got)
		}
	}
	for _, empty := range []*Table{nil, {}} {
		if _, ok := empty.Lookup(netip.MustParseAddr("10.244.1.1")); ok || empty.Len() != 0 {
			t.Error("an empty table has a peer")
		}
	}
}

// A peer that cannot be used is named with the field, and harms no other.
func TestBuildLeavesOut(t *testing.T) {
	change := func(f func(p *tunnel.Peer)) tunnel.Peer {
		p := peer("bad", "192.0.2.2:8472", "10.244.2.0/24")
		f(&p)
		return p
	}
	v6 := peer("bad", "192.0.2.2:8472", "fd00:10:244:2::/64")
	v6.MTU = 1279
	tests := []struct {
		name string
		bad  tunnel.Peer
		want string
	}{
		{"no prefixes", change(func(p *tunnel.Peer) { p.Prefixes = nil }), "no prefixes"},
		{"invalid prefix", change(func(p *tunnel.Peer) { p.Prefixes[0] = netip.Prefix{} }), "prefix"},
		{"unmasked prefix", peer("bad", "192.0.2.2:1", "10.244.2.1/24"), "prefix 10.244.2.1/24"},
		{"mapped prefix", peer("bad", "192.0.2.2:1", "::ffff:10.244.2.0/120"), "prefix"},
		{"two families", peer("bad", "192.0.2.2:1", "10.244.2.0/24", "fd00::/64"), "one family"},
		{"taken prefix", peer("bad", "192.0.2.2:1", "10.244.1.0/24"), `"good" has it already`},
		{"second prefix taken", peer("bad", "192.0.2.2:1", "10.244.2.0/24", "10.244.1.0/24"), `"good" has it already`},
		{"no endpoint", change(func(p *tunnel.Peer) { p.Endpoint = netip.AddrPort{} }), "endpoint"},
		{"mapped endpoint", peer("bad", "[::ffff:192.0.2.2]:1", "10.244.2.0/24"), "endpoint"},
		{"unspecified endpoint", peer("bad", "0.0.0.0:1", "10.244.2.0/24"), "endpoint"},
		{"multicast endpoint", peer("bad", "224.0.0.1:1", "10.244.2.0/24"), "endpoint"},
		{"port 0", peer("bad", "192.0.2.2:0", "10.244.2.0/24"), "UDP port"},
		{"no MAC", change(func(p *tunnel.Peer) { p.MAC = tunnel.MAC{} }), "MAC"},
		{"group MAC", change(func(p *tunnel.Peer) { p.MAC[0] = 1 }), "MAC"},
		{"VNI", change(func(p *tunnel.Peer) { p.VNI = 1 << 24 }), "VNI"},
		{"no MTU", change(func(p *tunnel.Peer) { p.MTU = 0 }), "MTU 0"},
		{"huge MTU", change(func(p *tunnel.Peer) { p.MTU = 65536 }), "MTU 65536"},
		{"IPv6 MTU", v6, "MTU 1279"},
	}
	for _, test := range tests {
		good := peer("good", "192.0.2.1:8472", "10.244.1.0/24")
		after := peer("after", "192.0.2.3:8472", "10.244.3.0/24")
		table, err := Build([]tunnel.Peer{good, test.bad, after})
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `"bad"`) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		for inner, want := range map[string]string{"10.244.1.1": "good", "10.244.3.1": "after", "10.244.2.1": "", "fd00:10:244:2::1": ""} {
			if p, ok := table.Lookup(netip.MustParseAddr(inner)); ok != (want != "") || ok && p.Name != want {
				t.Errorf("%s: %s belongs to %v, want %q", test.name, inner, p, want)
			}
		}
	}
}

// The table is a copy: what the caller does to its slice afterwards is nothing to it.
func TestBuildCopies(t *testing.T) {
	peers := []tunnel.Peer{peer("a", "192.0.2.1:8472", "10.244.1.0/24")}
	table, err := Build(peers)
	if err != nil {
		t.Fatal(err)
	}
	peers[0].Name = "changed"
	if p, _ := table.Lookup(netip.MustParseAddr("10.244.1.1")); p.Name != "a" {
		t.Errorf("peer is %q", p.Name)
	}
}

// Sound peers are numbered in a row, whatever was left out between them.
func TestEntries(t *testing.T) {
	bad := peer("bad", "192.0.2.9:8472", "10.244.9.0/24")
	bad.MTU = 0
	table, err := Build([]tunnel.Peer{
		peer("a", "192.0.2.1:8472", "10.244.1.0/24", "10.244.4.0/24"), bad, peer("b", "192.0.2.2:8472", "10.244.2.0/24"),
	})
	if err == nil || table.Len() != 2 {
		t.Fatalf("%d peers: %v", table.Len(), err)
	}
	for i, name := range []string{"a", "b"} {
		if e := table.Entries()[i]; e.Name != name || e.Number != i {
			t.Errorf("entry %d is %s, number %d", i, e.Name, e.Number)
		}
	}
	if e, ok := table.Lookup(netip.MustParseAddr("10.244.2.1")); !ok || e.Number != 1 {
		t.Errorf("found %v", e)
	}
	if all := (*Table)(nil).Entries(); len(all) != 0 {
		t.Errorf("an empty table has %v", all)
	}
}

// model is the slow and obvious table.
type model []tunnel.Peer

func (m model) lookup(inner netip.Addr) (best tunnel.Peer, ok bool) {
	bits := -1
	for _, p := range m {
		for _, prefix := range p.Prefixes {
			if prefix.Contains(inner) && prefix.Bits() > bits {
				best, bits, ok = p, prefix.Bits(), true
			}
		}
	}
	return best, ok
}

// randomPeers makes peers with clashing prefixes in a small address space.
func randomPeers(random *rand.Rand, count int) []tunnel.Peer {
	var peers []tunnel.Peer
	for i := range count {
		p := peer(fmt.Sprint("p", i), fmt.Sprintf("192.0.2.%d:8472", random.IntN(20)+1))
		is4 := random.IntN(2) == 0
		for range random.IntN(3) + 1 {
			p.Prefixes = append(p.Prefixes, netip.PrefixFrom(randomInner(random, is4), randomBits(random, is4)).Masked())
		}
		slices.SortFunc(p.Prefixes, netip.Prefix.Compare)
		p.Prefixes = slices.Compact(p.Prefixes)
		peers = append(peers, p)
	}
	return peers
}

func randomInner(random *rand.Rand, is4 bool) netip.Addr {
	low := byte(random.UintN(256))
	if is4 {
		return netip.AddrFrom4([4]byte{10, 244, byte(random.UintN(4)), low})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 6: byte(random.UintN(4)), 15: low})
}

func randomBits(random *rand.Rand, is4 bool) int {
	if is4 {
		return 16 + random.IntN(17)
	}
	return []int{0, 8, 48, 56, 64, 120, 124, 128}[random.IntN(8)]
}

func compareWithModel(t testing.TB, random *rand.Rand, count int) {
	var sound model
	taken := map[netip.Prefix]bool{}
	peers := randomPeers(random, count)
	for _, p := range peers {
		if slices.ContainsFunc(p.Prefixes, func(prefix netip.Prefix) bool { return taken[prefix] }) {
			continue
		}
		for _, prefix := range p.Prefixes {
			taken[prefix] = true
		}
		sound = append(sound, p)
	}
	table, err := Build(peers)
	if table.Len() != len(sound) || (err == nil) != (len(sound) == len(peers)) {
		t.Fatalf("%d peers, want %d: %v", table.Len(), len(sound), err)
	}
	for range 200 {
		inner := randomInner(random, random.IntN(2) == 0)
		want, ok := sound.lookup(inner)
		got, found := table.Lookup(inner)
		if found != ok || found && got.Name != want.Name {
			t.Fatalf("%v belongs to %v, want %q", inner, got, want.Name)
		}
		outer := netip.AddrFrom4([4]byte{192, 0, 2, byte(random.IntN(20) + 1)})
		if got := allowed(table, outer, inner); got != (ok && want.Endpoint.Addr() == outer) {
			t.Fatalf("%v from %v: %v", inner, outer, got)
		}
	}
}

func TestAgainstModel(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for range 300 {
		compareWithModel(t, random, random.IntN(40))
	}
}

func FuzzAgainstModel(f *testing.F) {
	f.Add(uint64(1), uint8(10))
	f.Fuzz(func(t *testing.T, seed uint64, count uint8) {
		compareWithModel(t, rand.New(rand.NewPCG(seed, 0)), int(count))
	})
}

func manyPeers(count int) []tunnel.Peer {
	peers := make([]tunnel.Peer, count)
	for i := range peers {
		peers[i] = peer(fmt.Sprint("p", i), fmt.Sprintf("192.0.%d.%d:8472", i>>8, i&255),
			fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))
	}
	return peers
}

func TestLookupDoesNotAllocate(t *testing.T) {
	table, err := Build(manyPeers(1000))
	if err != nil {
		t.Fatal(err)
	}
	outer, inner := netip.MustParseAddr("192.0.1.7"), netip.MustParseAddr("10.1.7.9")
	if n := testing.AllocsPerRun(100, func() {
		if !allowed(table, outer, inner) {
			t.Fatal("not allowed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAllowed(b *testing.B) {
	table, _ := Build(manyPeers(5000))
	outer, inner := netip.MustParseAddr("192.0.1.7"), netip.MustParseAddr("10.1.7.9")
	b.ReportAllocs()
	for b.Loop() {
		table.Allowed(outer, inner)
	}
}

func BenchmarkBuild5000(b *testing.B) {
	peers := manyPeers(5000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(peers); err != nil {
			b.Fatal(err)
		}
	}
}

// allowed is only whether Allowed returns a peer.
func allowed(table *Table, outer, inner netip.Addr) bool {
	_, ok := table.Allowed(outer, inner)
	return ok
}
