package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// picker makes a choice in [0, n). Tests back it by a random source, fuzzing
// by the fuzzer's bytes.
type picker func(n int) int

var seedFlag = flag.Uint64("seed", 0, "repeat the random tests with this seed")

// seeded returns a random picker whose seed a failing test prints.
func seeded(t *testing.T) picker {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("repeat with: go test -run %s -seed %d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0)).IntN
}

func one[T any](pick picker, values ...T) T { return values[pick(len(values))] }

// randomLeg draws from few values, most of them good, so that hosts collide.
func randomLeg(pick picker, f family) control.Leg {
	if pick(20) == 0 {
		f = 1 - f // a leg in the wrong place
	}
	n := pick(12) + 32 // never the own 17
	l := control.Leg{VNI: 1, MAC: tunnel.MAC{2, 0, 0, byte(f), 0, byte(pick(14) + 1)}}
	if f == ipv4 {
		l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(n), 0}), 24)
		l.PublicIP = netip.AddrFrom4([4]byte{192, 168, byte(6 + pick(3)), byte(10 + pick(14))})
	} else {
		l.Subnet = netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", n))
		l.PublicIP = netip.MustParseAddr(fmt.Sprintf("fd7%d::%x", 6+pick(3), 10+pick(14)))
	}
	switch pick(24) {
	case 0:
		l.Subnet = netip.PrefixFrom(l.Subnet.Addr(), l.Subnet.Bits()-pick(6)).Masked()
	case 1:
		l.Subnet = netip.PrefixFrom(l.Subnet.Addr(), l.Subnet.Bits()+pick(8))
	case 2:
		l.Subnet = one(pick, netip.Prefix{}, own4.Subnet, own6.Subnet, prefix("0.0.0.0/0"), prefix("10.244.33.7/24"), prefix("::ffff:10.244.33.0/120"))
	case 3:
		l.PublicIP = one(pick, netip.Addr{}, own4.PublicIP, own6.PublicIP, addr("127.0.0.1"), addr("ff02::1"), addr("10.244.33.1"), addr("fe80::1%eth0"))
	case 4:
		l.MAC = one(pick, tunnel.MAC{}, own4.MAC, own6.MAC, tunnel.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	case 5:
		l.VNI = one[uint32](pick, 0, 7, 1<<32-1)
	}
	return l
}

func randomLease(pick picker, host string, backend string) control.Lease {
	l := control.Lease{Host: host, Backend: backend}
	for _, f := range []family{ipv4, ipv6} {
		if pick(8) > 0 {
			l.Legs = append(l.Legs, randomLeg(pick, f))
		}
	}
	switch pick(30) {
	case 0:
		l.Backend = one(pick, "", "host-gw", "vxlan", "VXLAN", "ipip")
	case 1:
		l.Problems = []string{"backend-data: junk"}
	case 2:
		l.Legs = append(l.Legs, randomLeg(pick, ipv4))
	}
	l.Offers.VXLAN.RemoteChecksum = pick(2) == 0
	l.Offers.VXLAN.Off, l.Offers.NoDirect, l.Guest = pick(8) == 0, pick(8) == 0, pick(5) == 0
	if pick(2) == 0 {
		l.Offers.WireGuard = randomOffer(pick)
	}
	for i := range l.Legs {
		if backend == "wireguard" && pick(10) > 0 {
			l.Legs[i].Key, l.Legs[i].Port = randomKey(pick), one[uint16](pick, 0, 51820)
		}
	}
	return l
}

// randomKey draws from few keys, the own one of golden's host among them.
func randomKey(pick picker) tunnel.PublicKey { return keyOfHost(fmt.Sprint("h", pick(40))) }

func randomOffer(pick picker) control.WireGuardOffer {
	offer := control.WireGuardOffer{Keys: tunnel.WireGuardKeys{randomKey(pick)}, Ports: [2]uint16{51820, 51821}}
	switch pick(6) {
	case 0:
		offer.Ports[pick(2)] = 0
	case 1:
		offer.Keys[0] = keyOfHost("a")
	case 2, 3:
		offer.Keys[1] = keyOfHost(fmt.Sprint("next", pick(40)))
	}
	return offer
}

// randomPolicy is any order of any encapsulations, whether or not a network's
// configuration could say so.
func randomPolicy(pick picker, policy *control.Policy) {
	policy.Encrypt = one(pick, control.EncryptNever, control.EncryptGuests, control.EncryptAlways, "")
	if pick(2) == 0 {
		return
	}
	all := []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard}
	swap(pick, all)
	policy.Prefer = all[:1+pick(3)]
}

// randomWorld is a host of any kind in a random network.
func randomWorld(pick picker) world {
	w := golden()
	w.self.Engine = one(pick, tunnel.EngineKernel, tunnel.EngineUserspace)
	w.policy.Backend = one(pick, "vxlan", "vxlan", "vxlan", "host-gw", "wireguard")
	randomPolicy(pick, &w.policy)
	w.policy.Direct = pick(3) == 0
	w.policy.Masquerade, w.policy.Blackhole, w.policy.Confine = pick(2) == 0, pick(2) == 0, pick(2) == 0
	w.policy.MTU = one(pick, 0, 0, 0, 1400, 9000, 1300)
	switch pick(8) {
	case 0:
		w = w.only(ipv4)
	case 1:
		w = w.only(ipv6)
	case 2:
		w.self.Underlay.Addrs = w.self.Underlay.Addrs[:1]
	}
	w.self.Lease.Backend = w.policy.Backend
	w.self.Lease.Guest, w.self.Lease.Offers.VXLAN.Off = pick(6) == 0, pick(10) == 0
	if w.policy.Backend == "wireguard" {
		w = w.with(flannelKeys)
	}
	if pick(3) > 0 {
		w.self.Lease.Offers.WireGuard = wireGuardOffer("a")
		w.self.WireGuard = one(pick, tunnel.EngineKernel, tunnel.EngineUserspace, tunnel.EngineUserspace)
	}
	w.self.Failed = randomFailures(pick)
	w.snapshot.Leases = []control.Lease{w.self.Lease}
	for i := range pick(14) {
		w.snapshot.Leases = append(w.snapshot.Leases, randomLease(pick, fmt.Sprintf("h%02d", i), w.policy.Backend))
	}
	for range pick(3) {
		w.snapshot.Problems = append(w.snapshot.Problems, control.Problem{Source: one(pick, "a", "h00", "z"), Reason: one(pick, "junk", "no lease")})
	}
	return w
}

func randomFailures(pick picker) map[control.WayID]string {
	failed := map[control.WayID]string{}
	for range pick(6) {
		encap := one(pick, tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard)
		failed[control.WayID{Host: fmt.Sprintf("h%02d", pick(14)), Is4: pick(2) == 0, Encap: encap}] = "no answer"
	}
	return failed
}

func (w world) shuffled(pick picker) world {
	w.snapshot.Leases = slices.Clone(w.snapshot.Leases)
	w.snapshot.Problems = slices.Clone(w.snapshot.Problems)
	w.self.Underlay.OnLink = slices.Clone(w.self.Underlay.OnLink)
	swap(pick, w.snapshot.Leases)
	swap(pick, w.snapshot.Problems)
	swap(pick, w.self.Underlay.OnLink)
	return w
}

func swap[T any](pick picker, values []T) {
	for i := range values {
		j := pick(i + 1)
		values[i], values[j] = values[j], values[i]
	}
}

func (w world) without(host string) world {
	w.snapshot.Leases = slices.DeleteFunc(slices.Clone(w.snapshot.Leases), func(l control.Lease) bool { return l.Host == host })
	return w
}

func encode(t *testing.T, p control.Plan) string {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatalf("encode plan: %v", err)
	}
	return string(text)
}

// checkPlan holds what is true of every plan.
func checkPlan(t *testing.T, w world, pick picker) control.Plan {
	t.Helper()
	got := w.plan()
	if again := w.shuffled(pick).plan(); !reflect.DeepEqual(got, again) || encode(t, got) != encode(t, again) {
		t.Fatalf("the order of leases shows in the plan:\n%s\n%s", encode(t, got), encode(t, again))
	}
	checkObjects(t, w, got)
	checkHosts(t, w, got)
	checkOffers(t, w, got)
	checkSealed(t, w, got)
	checkHarmless(t, w, got, pick)
	return got
}

// checkObjects holds that objects are sorted, have one key each, and that
// routes lead to exactly the hosts that have ways, without overlap.
func checkObjects(t *testing.T, w world, got control.Plan) {
	t.Helper()
	keys := map[tunnel.Key]bool{}
	var owned []netip.Prefix
	for _, l := range w.self.Lease.Legs {
		owned = append(owned, l.Subnet)
	}
	routes := 0
	for i, o := range got.Objects {
		if i > 0 && got.Objects[i-1].Key().Compare(o.Key()) >= 0 {
			t.Fatalf("%v comes after %v", o.Key(), got.Objects[i-1].Key())
		}
		keys[o.Key()] = true
		r, ok := o.(tunnel.Route)
		if !ok || r.Blackhole {
			continue
		}
		routes++
		for _, p := range owned {
			if p.Overlaps(r.Prefix) {
				t.Fatalf("route %v overlaps %v", r.Prefix, p)
			}
		}
		owned = append(owned, r.Prefix)
	}
	ways, peers, deviceless := 0, 0, w.self.Device == ""
	for _, h := range got.Hosts {
		for _, way := range h.Ways {
			ways++
			known := way.Engine == tunnel.EngineUserspace
			for _, o := range way.Others {
				known = known || o.Engine == tunnel.EngineUserspace
			}
			if known {
				peers++
			}
			for _, k := range way.Objects {
				if !keys[k] {
					t.Fatalf("a way to %s needs %v, which is not in the plan", h.Host, k)
				}
			}
			if !deviceless && !slices.Contains(way.Objects, tunnel.Route{Prefix: way.Subnet}.Key()) {
				t.Fatalf("a way to %s has no route: %v", h.Host, way.Objects)
			}
			if way.Reason == "" || way.MTU < traits[familyOf(way.Subnet.Addr())].minMTU ||
				got.MTU > way.MTU && way.Encap != tunnel.EncapWireGuard && w.policy.Backend != "host-gw" {
				t.Fatalf("a way to %s: reason %q, MTU %d of %d", h.Host, way.Reason, way.MTU, got.MTU)
			}
		}
	}
	if deviceless && len(got.Objects) > 0 {
		t.Fatalf("a host without a device has %v", got.Objects)
	}
	if !deviceless && routes != ways || peers != len(got.Peers) {
		t.Fatalf("%d routes for %d ways, %d peers for %d of the engine", routes, ways, len(got.Peers), peers)
	}
}

// checkHosts holds that every other host is in the plan, that what is not
// reached has a reason, and that both sides of a conflict are told.
func checkHosts(t *testing.T, w world, got control.Plan) {
	t.Helper()
	var want, have []string
	for _, l := range w.snapshot.Leases {
		if l.Host != w.self.Host {
			want = append(want, l.Host)
		}
	}
	for _, h := range got.Hosts {
		have = append(have, h.Host)
		if len(h.Ways) < len(w.policy.Networks) && len(h.Reasons) == 0 {
			t.Fatalf("%s has %d ways and no reason", h.Host, len(h.Ways))
		}
		for _, reason := range h.Reasons {
			_, after, conflict := strings.Cut(reason, `belongs to host "`)
			winner, _, _ := strings.Cut(after, `"`)
			if conflict && !slices.ContainsFunc(got.Problems, func(p control.Problem) bool {
				return p.Source == winner && strings.Contains(p.Reason, fmt.Sprintf("%q", h.Host))
			}) {
				t.Fatalf("%s lost to %s, which has no problem: %+v", h.Host, winner, got.Problems)
			}
		}
	}
	slices.Sort(want)
	if !slices.Equal(want, have) {
		t.Fatalf("hosts %v, want %v", have, want)
	}
	for _, p := range w.snapshot.Problems {
		if !slices.Contains(got.Problems, p) {
			t.Fatalf("problem %+v was dropped", p)
		}
	}
}

// checkOffers holds that an offer is taken up where it can be, in both
// families, and that nothing is sent to a host which it does not offer to take.
func checkOffers(t *testing.T, w world, got control.Plan) {
	t.Helper()
	offered := map[string]bool{}
	for _, l := range w.snapshot.Leases {
		offered[l.Host] = l.Offers.VXLAN.RemoteChecksum
	}
	used := map[netip.Prefix]bool{}
	for _, h := range got.Hosts {
		for _, way := range h.Ways {
			used[way.Subnet] = way.RemoteChecksum
			usable := way.Encap == tunnel.EncapVXLAN && way.Engine == tunnel.EngineUserspace
			if way.RemoteChecksum != (usable && offered[h.Host]) {
				t.Fatalf("a way to %s: %+v, offered: %t", h.Host, way, offered[h.Host])
			}
		}
	}
	for _, p := range got.Peers {
		if p.RemoteChecksum != used[p.Prefixes[0]] {
			t.Fatalf("peer %+v, which is left its checksums: %t", p, used[p.Prefixes[0]])
		}
	}
}

// checkSealed holds that a way that has to be encrypted has nothing beside it,
// that guests' ways are encrypted where both can, and that a network that is
// always encrypted has nothing else at all.
func checkSealed(t *testing.T, w world, got control.Plan) {
	t.Helper()
	sealed := map[netip.Prefix]bool{}
	for _, h := range got.Hosts {
		for _, way := range h.Ways {
			sealed[way.Subnet] = way.Sealed
			if way.Sealed && (way.Encap != tunnel.EncapWireGuard || way.Others != nil) {
				t.Fatalf("a sealed way to %s: %+v", h.Host, way)
			}
			if w.policy.Encrypt == control.EncryptAlways && !way.Sealed {
				t.Fatalf("a way to %s in clear: %+v", h.Host, way)
			}
		}
	}
	for _, p := range got.Peers {
		if p.Sealed != sealed[p.Prefixes[0]] || p.Sealed && (p.Encap != tunnel.EncapWireGuard || p.MAC != tunnel.MAC{}) {
			t.Fatalf("peer %+v, sealed: %t", p, sealed[p.Prefixes[0]])
		}
		if p.Encap == tunnel.EncapWireGuard && p.Keys[0] == (tunnel.PublicKey{}) {
			t.Fatalf("peer without a key: %+v", p)
		}
	}
	if w.policy.Encrypt != control.EncryptAlways {
		return
	}
	for _, l := range got.Locals {
		if l.MAC != (tunnel.MAC{}) {
			t.Fatalf("VXLAN is let in: %+v", l)
		}
	}
	for _, object := range got.Objects {
		switch o := object.(type) {
		case tunnel.Link:
			if o.Type != tunnel.LinkVXLAN {
				continue
			}
		case tunnel.Route:
			if !o.Via.IsValid() {
				continue
			}
		case tunnel.Address, tunnel.Firewall, tunnel.WireGuardPeer:
			continue
		}
		t.Fatalf("what is not WireGuard: %+v", object)
	}
}

// checkHarmless holds that a host without any claim that was accepted, here or
// elsewhere, can as well not be there.
func checkHarmless(t *testing.T, w world, got control.Plan, pick picker) {
	t.Helper()
	var idle []control.HostPlan
	for _, h := range got.Hosts {
		if len(h.Ways) == 0 && !admitted(h) && !touches(w, h) {
			idle = append(idle, h)
		}
	}
	if len(idle) == 0 {
		return
	}
	h := one(pick, idle...)
	without := w.without(h.Host).plan()
	others := slices.DeleteFunc(slices.Clone(got.Hosts), func(x control.HostPlan) bool { return x.Host == h.Host })
	if !reflect.DeepEqual(without.Objects, got.Objects) || !reflect.DeepEqual(without.Peers, got.Peers) ||
		len(others) > 0 && !reflect.DeepEqual(without.Hosts, others) {
		t.Fatalf("%s is refused %q and still changes the plan", h.Host, h.Reasons)
	}
}

// admitted says whether a host has no way although its lease was accepted.
func admitted(h control.HostPlan) bool {
	return slices.ContainsFunc(h.Reasons, func(r string) bool {
		return slices.ContainsFunc([]string{
			"not on-link", "offers no WireGuard", "carries WireGuard", "terminates no VXLAN", "have no VXLAN",
			"not where its address is", "no device", "is also that of host", " of an outer MTU of ",
		}, func(part string) bool { return strings.Contains(r, part) })
	})
}

// TestPlanProperties walks through random worlds: hosts join, leave and change.
func TestPlanProperties(t *testing.T) {
	pick := seeded(t)
	for step := 0; step < propertySteps; {
		w := randomWorld(pick)
		for range 1 + pick(40) {
			before := checkPlan(t, w, pick)
			step++
			host := fmt.Sprintf("h%02d", pick(14))
			joined := w.without(host)
			joined.snapshot.Leases = append(joined.snapshot.Leases, randomLease(pick, host, w.policy.Backend))
			if _, known := find(before, host); !known {
				if left := joined.without(host).plan(); !reflect.DeepEqual(before, left) {
					t.Fatalf("step %d: %s joined and left, and the plan differs", step, host)
				}
			}
			w = joined
			if pick(4) == 0 {
				w = w.without(host)
			}
		}
	}
}

func find(p control.Plan, host string) (control.HostPlan, bool) {
	i := slices.IndexFunc(p.Hosts, func(h control.HostPlan) bool { return h.Host == host })
	if i < 0 {
		return control.HostPlan{}, false
	}
	return p.Hosts[i], true
}

// TestPlanAgreement holds that two hosts that take no part in the conflicts of
// others, whatever their engines, reach the same subnets of the same hosts.
func TestPlanAgreement(t *testing.T) {
	pick := seeded(t)
	for range 2_000 {
		w := randomWorld(pick)
		other := w
		other.self.Host = "zz"
		other.self.Engine = one(pick, tunnel.EngineKernel, tunnel.EngineUserspace)
		other.self.Underlay.Addrs = nil
		other.self.Lease.Legs = nil
		if other.self.Lease.Offers.WireGuard.Keys[0] != (tunnel.PublicKey{}) {
			other.self.Lease.Offers.WireGuard = wireGuardOffer("zz")
		}
		for i, l := range w.self.Lease.Legs {
			l.Subnet = one(pick, prefix("10.244.250.0/24"), prefix("10.244.251.0/24"))
			l.PublicIP = addr("192.168.7.250")
			if !w.self.Lease.Legs[i].Subnet.Addr().Is4() {
				l.Subnet, l.PublicIP = prefix("fd00:10:244:250::/64"), addr("fd77::250")
			}
			l.MAC[5]++
			if l.Key != (tunnel.PublicKey{}) {
				l.Key = keyOfHost("zz")
			}
			other.self.Lease.Legs = append(other.self.Lease.Legs, l)
		}
		for _, a := range w.self.Underlay.Addrs {
			if a.Is4() {
				other.self.Underlay.Addrs = append(other.self.Underlay.Addrs, addr("192.168.7.250"))
			} else {
				other.self.Underlay.Addrs = append(other.self.Underlay.Addrs, addr("fd77::250"))
			}
		}
		mine, theirs := w.plan(), other.plan()
		for _, h := range mine.Hosts {
			o, _ := find(theirs, h.Host)
			if touches(w, h) || touches(other, o) {
				continue
			}
			if fmt.Sprint(subnets(h)) != fmt.Sprint(subnets(o)) {
				t.Fatalf("%s: one host reaches %v, another %v\n%q\n%q", h.Host, subnets(h), subnets(o), h.Reasons, o.Reasons)
			}
		}
	}
}

// touches says whether a host is refused for something of the planning host.
func touches(w world, h control.HostPlan) bool {
	return slices.ContainsFunc(h.Reasons, func(r string) bool {
		return strings.Contains(r, "this host's own") || strings.Contains(r, fmt.Sprintf("belongs to host %q", w.self.Host))
	})
}

func subnets(h control.HostPlan) (all []netip.Prefix) {
	for _, way := range h.Ways {
		all = append(all, way.Subnet)
	}
	return all
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("a few bytes make a few hosts, and more of them make more hosts that collide"))
	f.Add(slices.Repeat([]byte{0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89}, 30))
	f.Fuzz(func(t *testing.T, data []byte) {
		pick := func(n int) int {
			if len(data) == 0 {
				return n - 1
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		}
		w := randomWorld(pick)
		checkPlan(t, w, pick)
	})
}

func BenchmarkPlan5000(b *testing.B) {
	w := golden()
	w.policy.Networks[0] = prefix("10.0.0.0/8")
	w.snapshot.Leases = nil
	for i := range 5000 {
		w.snapshot.Leases = append(w.snapshot.Leases, lease(fmt.Sprintf("node-%04d", i), control.Leg{
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
			PublicIP: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}),
			MAC:      tunnel.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)},
		}))
	}
	for b.Loop() {
		w.plan()
	}
}
