package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// cluster is hosts of all kinds that are at odds in nothing: each world is what
// one of them sees.
func cluster(pick picker) []world {
	var policy control.Policy
	base := golden()
	policy = base.policy
	policy.Backend = one(pick, "vxlan", "vxlan", "host-gw", "wireguard")
	policy.Direct = pick(2) == 0
	randomPolicy(pick, &policy)
	var worlds []world
	var leases []control.Lease
	for i := range 2 + pick(4) {
		w := base
		w.policy = policy
		w.self = randomSelf(pick, policy, i)
		leases = append(leases, w.self.Lease)
		worlds = append(worlds, w)
	}
	for i := range worlds {
		worlds[i].snapshot = control.Snapshot{Complete: true, Leases: leases}
	}
	return worlds
}

// randomSelf is a host in one of two outer networks: of another make, which has
// nothing to offer, of ours with any engines, or one that has WireGuard alone.
func randomSelf(pick picker, policy control.Policy, i int) control.Self {
	name, site := fmt.Sprint("h", i), 7+pick(2)
	outer4, outer6 := fmt.Sprintf("192.168.%d.%d", site, 10+i), fmt.Sprintf("fd7%d::%d", site, 10+i)
	self := control.Self{
		Host: name, Device: "weft0",
		Engine: one(pick, tunnel.EngineKernel, tunnel.EngineUserspace),
		Underlay: control.Underlay{
			Link: "eth0", MTU: 1500, Addrs: []netip.Addr{addr(outer4), addr(outer6)},
			OnLink: []netip.Prefix{prefix(fmt.Sprintf("192.168.%d.0/24", site)), prefix(fmt.Sprintf("fd7%d::/64", site))},
		},
		Lease: control.Lease{Host: name, Backend: policy.Backend, Legs: []control.Leg{
			{Subnet: prefix(fmt.Sprintf("10.244.%d.0/24", i)), PublicIP: addr(outer4)},
			{Subnet: prefix(fmt.Sprintf("fd00:10:244:%d::/64", i)), PublicIP: addr(outer6)},
		}},
	}
	lease := &self.Lease
	for f := range lease.Legs {
		switch policy.Backend {
		case "vxlan":
			lease.Legs[f].MAC, lease.Legs[f].VNI = tunnel.MAC{2, 0, 0, 0, byte(f), byte(i)}, policy.VNI
		case "wireguard":
			lease.Legs[f].Key, lease.Legs[f].Port = keyOfHost(name), 51820+uint16(f)
			self.WireGuard = one(pick, tunnel.EngineKernel, tunnel.EngineUserspace)
		}
	}
	if policy.Backend != "vxlan" && self.WireGuard == tunnel.EngineUserspace {
		self.Engine = tunnel.EngineUserspace
	}
	if pick(3) == 0 {
		return self
	}
	lease.Guest = pick(3) == 0
	lease.Offers.WireGuard = wireGuardOffer(name)
	if pick(4) == 0 {
		lease.Offers.WireGuard.Ports[pick(2)] = 0
	}
	self.WireGuard = one(pick, tunnel.EngineKernel, tunnel.EngineUserspace)
	lease.Offers.VXLAN.Off = pick(4) == 0
	if pick(4) == 0 {
		self.Engine, self.WireGuard, self.Device = tunnel.EngineUserspace, tunnel.EngineUserspace, ""
		lease.Offers.NoDirect = true
	}
	return self
}

// TestPlanSymmetry holds that both ends of a pair choose the same, in each
// family, and that what one end sends the other takes in.
func TestPlanSymmetry(t *testing.T) {
	pick := seeded(t)
	seen := map[tunnel.Encap]int{}
	for range propertySteps / 10 {
		worlds := cluster(pick)
		var plans []control.Plan
		for _, w := range worlds {
			plans = append(plans, checkPlan(t, w, pick))
		}
		for i, x := range worlds {
			for j, y := range worlds[:i] {
				for f := range x.self.Lease.Legs {
					there := wayTo(plans[i], y.self.Lease.Legs[f].Subnet)
					back := wayTo(plans[j], x.self.Lease.Legs[f].Subnet)
					if there.Encap != back.Encap || there.Sealed != back.Sealed || !slices.EqualFunc(there.Others, back.Others, sameEncap) {
						t.Fatalf("%s and %s disagree, with %+v:\n%+v\n%+v\nof\n%+v\n%+v", x.self.Host, y.self.Host, x.policy, there, back, x.self, y.self)
					}
					seen[there.Encap]++
				}
			}
		}
	}
	for _, encap := range []tunnel.Encap{"", tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard} {
		if seen[encap] == 0 {
			t.Errorf("%q was never chosen: the clusters are too much alike", encap)
		}
	}
}

func sameEncap(a, b control.Option) bool { return a.Encap == b.Encap }

// wayTo is the way to a subnet, or nothing.
func wayTo(p control.Plan, subnet netip.Prefix) control.Way {
	for _, h := range p.Hosts {
		for _, way := range h.Ways {
			if way.Subnet == subnet {
				return way
			}
		}
	}
	return control.Way{}
}

// TestPlanTakesInWhatIsSent holds that while two ends differ for what each has
// found out, the one takes in what the other sends, if an engine of ours does it.
func TestPlanTakesInWhatIsSent(t *testing.T) {
	pick := seeded(t)
	differ := 0
	for range 3_000 {
		worlds := cluster(pick)[:2]
		x, y := worlds[0], worlds[1]
		x.self.Failed = map[control.WayID]string{}
		for range 1 + pick(3) {
			encap := one(pick, tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard)
			x.self.Failed[control.WayID{Host: y.self.Host, Is4: true, Encap: encap}] = "no answer"
		}
		mine, theirs := x.plan(), y.plan()
		there, back := wayTo(mine, y.self.Lease.Legs[0].Subnet), wayTo(theirs, x.self.Lease.Legs[0].Subnet)
		if there.Encap == back.Encap {
			continue
		}
		differ++
		if there.Sealed || back.Sealed || there.Encap == "" || back.Encap == "" {
			t.Fatalf("a failure changed what has to be:\n%+v\n%+v", there, back)
		}
		if !takesIn(theirs, x.self, there.Encap) || !takesIn(mine, y.self, back.Encap) {
			t.Fatalf("what is sent is not taken in:\n%+v\n%+v\nobjects and peers there:\n%s%shere:\n%s%s", there, back,
				lines(theirs.Objects), lines(theirs.Peers), lines(mine.Objects), lines(mine.Peers))
		}
	}
	if differ == 0 {
		t.Error("no pair ever differed")
	}
}

// takesIn says whether a host with plan p takes in IPv4 packets of from.
func takesIn(p control.Plan, from control.Self, encap tunnel.Encap) bool {
	subnet := from.Lease.Legs[0].Subnet
	peer := slices.IndexFunc(p.Peers, func(x tunnel.Peer) bool { return x.Prefixes[0] == subnet })
	switch encap {
	case tunnel.EncapVXLAN:
		return peer >= 0 && p.Peers[peer].MAC == from.Lease.Legs[0].MAC ||
			slices.ContainsFunc(p.Objects, func(o tunnel.Object) bool { l, ok := o.(tunnel.Link); return ok && l.Type == tunnel.LinkVXLAN })
	case tunnel.EncapWireGuard:
		return peer >= 0 && p.Peers[peer].Keys[0] == keyOfHost(from.Host) ||
			slices.ContainsFunc(p.Objects, func(o tunnel.Object) bool { w, ok := o.(tunnel.WireGuardPeer); return ok && w.Subnet == subnet })
	}
	return true // the kernel forwards
}
