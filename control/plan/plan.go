// Package plan decides what should be true on this host, from the leases, this
// host and the policy alone. It must never look at the clock, the operating
// system or its own past: the same arguments give the same plan, byte for byte,
// whatever the order of the leases, and a bad peer changes nothing for the
// others.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// The backends a policy may name.
const (
	backendVXLAN     = "vxlan"
	backendHostGW    = "host-gw"
	backendWireGuard = "wireguard"
)

// Plan returns everything that should be true on this host, which is to reach
// the hosts in snapshot in the way policy orders. Self.Lease is the own lease;
// a lease of the same host in the snapshot is ignored. What cannot be used is
// left out and named: per peer in Plan.Hosts, everything else in Plan.Problems.
// The arguments are not changed and nothing of them is shared with the result
// but strings.
func Plan(snapshot control.Snapshot, self control.Self, policy control.Policy) control.Plan {
	b := &builder{self: self, policy: policy, order: preference(policy), keys: map[tunnel.PublicKey]*host{}}
	b.plan.Complete = snapshot.Complete
	b.plan.Problems = slices.Clone(snapshot.Problems)
	for _, reason := range self.Lease.Problems {
		b.problem(self.Host, reason)
	}
	b.survey()
	hosts := b.admit(snapshot.Leases)
	for _, s := range b.sides {
		b.confine(s)
		if s.off == "" {
			b.furnish(s)
			b.settle(s, hosts)
		}
	}
	for _, h := range hosts {
		b.reach(h)
	}
	b.sort()
	return b.plan
}

// builder is a plan in the making.
type builder struct {
	self   control.Self
	policy control.Policy
	order  []tunnel.Encap // what pairs are tried with, the best first
	sides  []*side        // one per network of the policy, IPv4 first
	// keys are the WireGuard keys of the hosts judged so far. They are of no family.
	keys map[tunnel.PublicKey]*host
	// objects is Plan.Objects to be, unsorted.
	objects []keyed
	plan    control.Plan
}

// keyed is an object with its key, which is not free to make.
type keyed struct {
	key    tunnel.Key
	object tunnel.Object
}

func key(o tunnel.Object) keyed { return keyed{o.Key(), o} }

// side is this host in one address family.
type side struct {
	family
	network netip.Prefix
	own     control.Leg
	local   netip.Addr // own underlay address
	outer   int        // largest outer packet
	mtu     int        // largest inner packet of pods
	off     string     // why this host cannot use the family; empty if it can
	// vxlan: this host terminates VXLAN. keys: those by which it does WireGuard.
	vxlan bool
	keys  tunnel.WireGuardKeys
	// base is what every way by an encapsulation stands on.
	base map[tunnel.Encap][]keyed
}

// host is another host while it is being judged.
type host struct {
	name    string
	offers  control.Offers
	guest   bool
	addrs   [len(traits)]netip.Addr // public, as published
	legs    []*leg                  // usable so far, IPv4 first
	reasons []string
}

// newHost returns a host with nothing that is usable yet.
func newHost(l control.Lease) *host {
	h := &host{name: l.Host, offers: l.Offers, guest: l.Guest, reasons: slices.Clone(l.Problems)}
	for _, published := range l.Legs {
		if published.PublicIP.IsValid() {
			h.addrs[familyOf(published.PublicIP)] = published.PublicIP
		}
	}
	return h
}

// leg is one family of another host.
type leg struct {
	control.Leg
	host *host
	side *side
	// keys and wireGuardPort are how the host does WireGuard, if it does; rival is
	// another host at the same address that has one of the keys.
	keys          tunnel.WireGuardKeys
	wireGuardPort uint16
	rival         string
}

// family is an address family. Everything that differs between the two is in
// its methods and in traits.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

var traits = [...]struct {
	name      string
	vxlan     int    // bytes around an inner packet: outer IP, UDP, VXLAN, Ethernet
	wireGuard int    // the same: outer IP, UDP, header and tag of WireGuard
	minMTU    int    // RFC 791, RFC 8200
	device    string // kernel VXLAN device, before the VNI; flannel's names
	guarded   string // kernel WireGuard device; flannel's names
	port      uint16 // of WireGuard, where none is given; flannel's defaults
}{
	ipv4: {"IPv4", 20 + 8 + 8 + 14, 20 + 8 + 16 + 16, 68, "flannel.", "flannel-wg", 51820},
	ipv6: {"IPv6", 40 + 8 + 8 + 14, 40 + 8 + 16 + 16, 1280, "flannel-v6.", "flannel-wg-v6", 51821},
}

func familyOf(addr netip.Addr) family {
	if addr.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string { return traits[f].name }

// side returns the side of a family, or nil where the network has none.
func (b *builder) side(f family) *side {
	for _, s := range b.sides {
		if s.family == f {
			return s
		}
	}
	return nil
}

// survey finds out which families this host can use.
func (b *builder) survey() {
	outer := b.outerMTU()
	for _, network := range b.policy.Networks {
		if !network.IsValid() {
			b.problem(policySource, "has a network that is no prefix: write it as 10.244.0.0/16")
			continue
		}
		f := familyOf(network.Addr())
		if first := b.side(f); first != nil {
			b.problem(policySource, fmt.Sprintf("has two %s networks, %v and %v: only the first is used", f, first.network, network))
			continue
		}
		s := &side{family: f, network: network.Masked()}
		s.off = b.equip(s, outer)
		if s.off != "" {
			b.problem(b.self.Host, fmt.Sprintf("%s: %s", f, s.off))
		}
		b.sides = append(b.sides, s)
	}
	slices.SortFunc(b.sides, func(x, y *side) int { return cmp.Compare(x.family, y.family) })
	for _, s := range b.sides {
		if s.off == "" && (b.plan.MTU == 0 || s.mtu < b.plan.MTU) {
			b.plan.MTU = s.mtu
		}
	}
}

// policySource is how Problems name the user's network configuration.
const policySource = "net-conf.json"

// outerMTU is the largest outer packet. The policy may lower what the underlay
// carries but not raise it: the kernel would cap the device in silence.
func (b *builder) outerMTU() int {
	have, want := b.self.Underlay.MTU, b.policy.MTU
	switch {
	case want == 0:
		return have
	case have != 0 && want > have:
		b.problem(policySource, fmt.Sprintf("Backend.MTU %d is more than the %d bytes that %s carries: lower it or raise the MTU of %[3]s; %[2]d is used",
			want, have, b.self.Underlay.Link))
		return have
	}
	return want
}

// equip fills in a side and returns why it cannot be used, if so.
func (b *builder) equip(s *side, outer int) string {
	i := slices.IndexFunc(b.self.Lease.Legs, func(l control.Leg) bool {
		return l.Subnet.IsValid() && familyOf(l.Subnet.Addr()) == s.family
	})
	if i < 0 {
		return "this host has no subnet: its lease must have one for every network"
	}
	s.own = b.self.Lease.Legs[i]
	j := slices.IndexFunc(b.self.Underlay.Addrs, func(a netip.Addr) bool { return familyOf(a) == s.family })
	if j < 0 {
		return fmt.Sprintf("%s has no %s address: give it one, or choose another interface with --iface", b.self.Underlay.Link, s.family)
	}
	s.local = b.self.Underlay.Addrs[j]
	s.outer = outer
	s.vxlan = b.policy.Backend == backendVXLAN && !b.self.Lease.Offers.VXLAN.Off && slices.Contains(b.order, tunnel.EncapVXLAN)
	s.keys, _ = b.wireGuard(b.self.Lease.Offers.WireGuard, s.own, s.family)
	s.mtu = b.inner(s, b.podEncap(s))
	switch {
	case !slices.Contains([]string{backendVXLAN, backendHostGW, backendWireGuard}, b.policy.Backend):
		return fmt.Sprintf("backend %q is not known: set Backend.Type to vxlan, host-gw or wireguard", b.policy.Backend)
	case !within(s.own.Subnet, s.network):
		return fmt.Sprintf("own subnet %v is outside the network %v: change Network or this host's subnet", s.own.Subnet, s.network)
	case b.policy.Backend == backendVXLAN && s.own.MAC == (tunnel.MAC{}):
		return "own lease has no VTEP MAC"
	case b.policy.Backend == backendWireGuard && s.keys == (tunnel.WireGuardKeys{}):
		return "own lease has no WireGuard key"
	case b.policy.Backend == backendHostGW && s.own.PublicIP != s.local:
		return fmt.Sprintf("public address %v is not %s's own %v: host-gw does not work behind a NAT, use vxlan", s.own.PublicIP, b.self.Underlay.Link, s.local)
	case s.network.Contains(s.local):
		return fmt.Sprintf("underlay address %v is inside the pod network %v: the network must not contain the hosts' own addresses", s.local, s.network)
	case s.mtu < traits[s.family].minMTU:
		return fmt.Sprintf("an outer MTU of %d leaves %d bytes and %s needs %d: raise the MTU of %s, or Backend.MTU",
			outer, s.mtu, s.family, traits[s.family].minMTU, b.self.Underlay.Link)
	}
	return ""
}

// within says whether inner is a part of outer.
func within(inner, outer netip.Prefix) bool {
	return inner.Bits() >= outer.Bits() && outer.Contains(inner.Addr())
}

func (b *builder) problem(source, reason string) {
	b.plan.Problems = append(b.plan.Problems, control.Problem{Source: source, Reason: reason})
}

// sort brings the plan into its one order, which no input order shows through.
func (b *builder) sort() {
	p := &b.plan
	slices.SortFunc(b.objects, func(x, y keyed) int { return x.key.Compare(y.key) })
	for i, o := range b.objects {
		// Families share the TUN, and two subnets of one VTEP its FDB entry.
		if i == 0 || b.objects[i-1].key != o.key {
			p.Objects = append(p.Objects, o.object)
		}
	}
	slices.SortFunc(p.Problems, func(x, y control.Problem) int {
		return cmp.Or(strings.Compare(x.Source, y.Source), strings.Compare(x.Reason, y.Reason))
	})
	p.Problems = slices.Compact(p.Problems)
}
