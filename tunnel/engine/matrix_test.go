package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

func withPort(a netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), port)
}

func withAddr(a netip.AddrPort, addr string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), a.Port())
}

// forgery is one kind of datagram that must not get in.
type forgery struct {
	name   string
	outer  netip.AddrPort
	data   []byte
	reason Counter
}

// spoofed is the forgeries whose addresses lie.
func spoofed(is4 bool) []forgery {
	unknown := netip.MustParseAddrPort("192.0.2.99:8472")
	external, node := "198.51.100.1", "192.0.2.1"
	bogus := []string{"127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "0.1.2.3"}
	if !is4 {
		external, node = "2001:db8:5::1", "2001:db8::1"
		bogus = []string{"::1", "ff02::1", "::", "fe80::1"}
	}
	inner := func(source netip.AddrPort) []byte {
		p := toHere(is4, []byte("data"))
		p.Source = source
		return far.frame(p.Bytes())
	}
	to := func(destination string) []byte {
		p := toHere(is4, []byte("data"))
		p.Destination = withAddr(p.Destination, destination)
		return far.frame(p.Bytes())
	}
	all := []forgery{
		{"1 unknown outer, a peer's inner", unknown, inner(far.pod(is4)), RxDropSource},
		{"2 unknown outer, our inner", unknown, inner(here.pod(is4)), RxDropSource},
		{"3 unknown outer, external inner", unknown, inner(withAddr(far.pod(is4), external)), RxDropSource},
		{"4 known outer, another peer's inner", thirdOuter, inner(far.pod(is4)), RxDropSource},
		{"5 known outer, our inner", farOuter, inner(here.pod(is4)), RxDropSource},
		{"7 to the node's own address", farOuter, to(node), RxDropDestination},
		{"8 to another peer", farOuter, to(thrd.pod(is4).Addr().String()), RxDropDestination},
		{"8 to the world", farOuter, to(external), RxDropDestination},
	}
	for _, source := range bogus {
		all = append(all, forgery{"6 inner from " + source, farOuter, inner(withAddr(far.pod(is4), source)), RxDropSource})
	}
	return all
}

// malformed is the forgeries that are no proper VXLAN datagrams to this host.
func malformed(is4 bool) []forgery {
	etherType := uint16(0x86dd)
	if is4 {
		etherType = 0x0800
	}
	inner := toHere(is4, []byte("data")).Bytes()
	good := far.frame(inner)
	change := func(at int, value byte) []byte {
		b := bytes.Clone(good)
		b[at] = value
		return b
	}
	typed := func(t uint16) []byte { return tunneltest.Frame(testVNI, hereMAC, farMAC, t, inner) }
	lengthAt := 22 + 4
	if is4 {
		lengthAt = 22 + 2
	}
	longer := bytes.Clone(good)
	binary.BigEndian.PutUint16(longer[lengthAt:], binary.BigEndian.Uint16(longer[lengthAt:])+1)
	all := []forgery{
		{"9 wrong VNI", farOuter, tunneltest.Frame(testVNI+1, hereMAC, farMAC, etherType, inner), RxDropVNI},
		{"10 no VNI", farOuter, change(0, 0xf7), RxDropHeader},
		{"12 inner longer than outer", farOuter, longer, RxDropLength},
		{"13 ARP", farOuter, typed(0x0806), RxDropARP},
		{"13 LLC", farOuter, typed(100), RxDropLLC},
		{"13 LLDP", farOuter, typed(0x88cc), RxDropNotIP},
		{"14 VLAN", farOuter, typed(0x8100), RxDropVLAN},
		{"14 QinQ", farOuter, typed(0x88a8), RxDropVLAN},
		{"15 other family than the type says", farOuter, typed(etherType ^ 0x0800 ^ 0x86dd), RxDropMalformed},
		{"not our MAC", farOuter, tunneltest.Frame(testVNI, thirdMAC, farMAC, etherType, inner), RxDropMAC},
		{"broadcast MAC", farOuter, tunneltest.Frame(testVNI, tunnel.MAC{255, 255, 255, 255, 255, 255}, farMAC, etherType, inner), RxDropMAC},
		{"no IP version", farOuter, change(22, 0), RxDropMalformed},
	}
	if is4 {
		all = append(all, forgery{"IPv4 header too short", farOuter, change(22, 0x43), RxDropMalformed})
	}
	for n := range 61 {
		reason := RxDropTruncated
		if header := 22 + len(inner) - 36; n >= header { // all of IP, but not of what it carries
			reason = RxDropLength
		}
		all = append(all, forgery{fmt.Sprintf("11 cut off after %d bytes", n), farOuter, good[:n], reason})
	}
	return all
}

// TestMatrix: every forgery is dropped and counted under its reason, and the
// genuine twin that follows is delivered.
func TestMatrix(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		genuine := toHere(is4, []byte("genuine")).Bytes()
		for _, f := range append(spoofed(is4), malformed(is4)...) {
			t.Run(f.name, func(t *testing.T) {
				r := newRig(t, everything())
				r.process(tunnel.Datagrams{Addr: f.outer, Data: bytes.Clone(f.data)})
				got, _ := r.delivered()
				r.equal(got, nil)
				r.want(map[Counter]uint64{f.reason: 1, RxPackets: 0})

				r.inject(far, genuine)
				got, _ = r.delivered()
				r.equal(got, [][]byte{genuine})
				r.want(map[Counter]uint64{f.reason: 1, RxPackets: 1})
			})
		}
	})
}

// Case 10: RFC 7348 has reserved bits ignored.
func TestMatrixReservedBits(t *testing.T) {
	r := newRig(t, everything())
	p := toHere(true, []byte("data")).Bytes()
	for _, at := range []int{0, 1, 2, 3, 7} {
		frame := far.frame(p)
		frame[at] = 0xff
		r.process(tunnel.Datagrams{Addr: farOuter, Data: frame})
		got, _ := r.delivered()
		r.equal(got, [][]byte{p})
	}
	r.want(nil)
}

// Case 15: a host of one inner family takes nothing of the other.
func TestMatrixFamily(t *testing.T) {
	for i, is4 := range []bool{true, false} {
		r := newRig(t, everything())
		if err := r.engine.SetLocals(here.locals()[i : i+1]); err != nil {
			t.Fatal(err)
		}
		genuine := toHere(is4, []byte("data")).Bytes()
		r.inject(far, toHere(!is4, []byte("data")).Bytes(), genuine)
		got, _ := r.delivered()
		r.equal(got, [][]byte{genuine})
		r.want(map[Counter]uint64{RxDropFamily: 1, RxPackets: 1})
	}
}

// A VNI of one family is no way in for the other.
func TestMatrixFamilyVNI(t *testing.T) {
	r := newRig(t, everything())
	locals := here.locals()
	locals[1].VNI = testVNI + 1
	if err := r.engine.SetLocals(locals); err != nil {
		t.Fatal(err)
	}
	r.inject(far, toHere(false, []byte("data")).Bytes())
	r.want(map[Counter]uint64{RxDropFamily: 1, RxPackets: 0})
}

// Before anything is set, nothing gets in.
func TestMatrixClosedFirst(t *testing.T) {
	r := newRig(t, everything())
	r.engine.peers.Store(&peerSet{})
	r.inject(far, toHere(true, []byte("data")).Bytes())
	r.want(map[Counter]uint64{RxDropSource: 1, RxPackets: 0})
	r.engine.locals.Store(nil)
	r.inject(far, toHere(true, []byte("data")).Bytes())
	r.want(map[Counter]uint64{RxDropSource: 1, RxDropVNI: 1, RxPackets: 0})
}

// Case 16: fragments pass, each held to its own addresses; putting them
// together is the host's business.
func TestMatrixFragments(t *testing.T) {
	r := newRig(t, everything())
	first, later := asUDP(toHere(true, make([]byte, 64))).Bytes(), asUDP(toHere(true, make([]byte, 64))).Bytes()
	for i, f := range [][]byte{first, later} {
		f[6], f[7] = []byte{0x20, 0}[i], byte(i)
		fixHeader(f)
	}
	r.inject(far, first, later)
	got, _ := r.delivered()
	r.equal(got, [][]byte{first, later})
	r.inject(thrd, later)
	r.want(map[Counter]uint64{RxDropSource: 1, RxPackets: 2})
}

func fixHeader(b []byte) {
	clear(b[10:12])
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
}

// Case 22: a VXLAN datagram inside an inner packet is payload, and its content
// is not looked at: it goes to the pod it is addressed to, or nowhere.
func TestMatrixNested(t *testing.T) {
	forged := toHere(true, []byte("data"))
	forged.Source = thrd.pod4
	nested := asUDP(toHere(true, far.frame(forged.Bytes())))
	nested.Destination = withPort(nested.Destination, 8472)
	r := newRig(t, everything())
	r.inject(far, nested.Bytes())
	got, _ := r.delivered()
	r.equal(got, [][]byte{nested.Bytes()})
	nested.Destination = hereOuter
	r.inject(far, nested.Bytes())
	r.want(map[Counter]uint64{RxDropDestination: 1, RxPackets: 1})
}

// Case 23: a peer that was removed is shut out from the next batch on.
func TestMatrixRemovedPeer(t *testing.T) {
	r := newRig(t, everything())
	p := toHere(true, []byte("data")).Bytes()
	r.inject(far, p)
	r.setPeers(thrd.peers())
	r.inject(far, p)
	got, _ := r.delivered()
	r.equal(got, [][]byte{p})
	r.want(map[Counter]uint64{RxDropSource: 1, RxPackets: 1})
}

// Case 24: every datagram of a run is held to the rules by itself, and flows
// are not mixed.
func TestMatrixAggregates(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		a := stream(is4, 3000, 1000)
		forged, b := toHere(is4, make([]byte, 1000)), toHere(is4, make([]byte, 1000))
		forged.Source = thrd.pod(is4)
		b.Source = withPort(b.Source, 99)
		next := b
		next.Sequence += 1000
		next.ID++
		packets := [][]byte{a[0], a[1], forged.Bytes(), a[2], b.Bytes(), next.Bytes()}
		var run []byte
		for _, p := range packets {
			run = append(run, far.frame(p)...)
		}
		r := newRig(t, everything())
		r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: len(far.frame(a[0])), Data: run})
		got, offloads := r.delivered()
		r.equal(got, [][]byte{a[0], a[1], a[2], b.Bytes(), next.Bytes()})
		if len(offloads) != 2 {
			t.Errorf("%d packets written", len(offloads))
		}
		r.want(map[Counter]uint64{RxDropSource: 1, RxPackets: 5, RxDatagrams: 6, RxRuns: 1})
	})
}

// A run whose first packet claims more than its datagram is one datagram, and
// the claim must hold for all of it.
func TestMatrixClaimedSuperFrame(t *testing.T) {
	p := asUDP(toHere(true, make([]byte, 1000))).Bytes()
	frame := far.frame(p)
	r := newRig(t, everything())
	short := bytes.Clone(frame[:900])
	r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: 500, Data: short})
	got, _ := r.delivered()
	r.equal(got, nil)
	r.want(map[Counter]uint64{RxDropLength: 1, RxDropHeader: 1, RxPackets: 0})
}
