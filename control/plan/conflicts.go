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

// admit judges every other host's lease by itself, without regard to the rest,
// so that a lease that is bad alone never takes part in a conflict.
func (b *builder) admit(leases []control.Lease) []*host {
	leases = slices.Clone(leases)
	slices.SortFunc(leases, func(x, y control.Lease) int {
		if order := strings.Compare(x.Host, y.Host); order != 0 {
			return order
		}
		return strings.Compare(fmt.Sprint(x), fmt.Sprint(y))
	})
	var hosts []*host
	for i, l := range leases {
		if l.Host == b.self.Host {
			continue
		}
		if i > 0 && leases[i-1].Host == l.Host {
			b.problem(l.Host, "has more than one lease: only the first is used")
			continue
		}
		hosts = append(hosts, b.judge(l))
	}
	return hosts
}

// judge returns a host with the legs of its lease that are good by themselves.
func (b *builder) judge(l control.Lease) *host {
	h := newHost(l)
	if len(l.Legs) > 0 && !strings.EqualFold(l.Backend, b.policy.Backend) {
		h.reasons = append(h.reasons, fmt.Sprintf("publishes backend %q, the network uses %q", l.Backend, b.policy.Backend))
		return h
	}
	counts := [len(traits)]int{}
	for _, published := range l.Legs {
		if !published.Subnet.IsValid() {
			h.reasons = append(h.reasons, "publishes no readable subnet")
			continue
		}
		f := familyOf(published.Subnet.Addr())
		counts[f]++
		if counts[f] > 1 {
			h.reject(f, fmt.Sprintf("publishes a second subnet %v: only the first is used", published.Subnet))
			continue
		}
		s := b.side(f)
		switch {
		case s == nil:
			h.reject(f, fmt.Sprintf("publishes %v, the network has no %s", published.Subnet, f))
		case s.off != "":
			h.reject(f, "not usable on this host: "+s.off)
		default:
			if reason := b.check(s, published); reason != "" {
				h.reject(f, reason)
				continue
			}
			good := &leg{Leg: published, host: h, side: s}
			good.keys, good.wireGuardPort = b.wireGuard(l.Offers.WireGuard, published, f)
			if b.policy.Backend == backendWireGuard && good.keys == (tunnel.WireGuardKeys{}) {
				h.reject(f, "publishes no WireGuard key")
				continue
			}
			h.legs = append(h.legs, good)
		}
	}
	for _, s := range b.sides {
		said := slices.ContainsFunc(h.reasons, func(r string) bool { return strings.HasPrefix(r, s.family.String()+": ") })
		if counts[s.family] == 0 && !said {
			h.reject(s.family, "publishes no usable subnet")
		}
	}
	slices.SortFunc(h.legs, func(x, y *leg) int { return cmp.Compare(x.side.family, y.side.family) })
	return h
}

func (h *host) reject(f family, reason string) {
	h.reasons = append(h.reasons, fmt.Sprintf("%s: %s", f, reason))
}

// check returns what is wrong with a peer's leg by itself, or "".
func (b *builder) check(s *side, l control.Leg) string {
	if l.Subnet != l.Subnet.Masked() {
		return fmt.Sprintf("subnet %v has host bits: it must be %v", l.Subnet, l.Subnet.Masked())
	}
	if !within(l.Subnet, s.network) {
		return fmt.Sprintf("subnet %v is outside the network %v", l.Subnet, s.network)
	}
	if reason := checkOuter(s, l.PublicIP); reason != "" {
		return reason
	}
	if b.policy.Backend == backendVXLAN {
		return b.checkVTEP(l)
	}
	return ""
}

func checkOuter(s *side, addr netip.Addr) string {
	switch {
	case !addr.IsValid():
		return "publishes no public address"
	case addr.Is4In6() || addr.Zone() != "" || familyOf(addr) != s.family:
		return fmt.Sprintf("public address %v is not a plain %s address", addr, s.family)
	case addr.IsUnspecified(), addr.IsLoopback(), addr.IsMulticast(),
		addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}), addr.Is6() && addr.IsLinkLocalUnicast():
		return fmt.Sprintf("public address %v is no address a host can be reached at", addr)
	case s.network.Contains(addr):
		return fmt.Sprintf("public address %v is inside the pod network %v: packets to it would loop", addr, s.network)
	}
	return ""
}

// checkVTEP leaves a VNI of 0 alone: hosts registered by hand, and old
// flannels, publish only a MAC.
func (b *builder) checkVTEP(l control.Leg) string {
	switch {
	case l.MAC == (tunnel.MAC{}):
		return "publishes no VTEP MAC"
	case l.MAC[0]&1 != 0:
		return fmt.Sprintf("VTEP MAC %v is not a unicast address", l.MAC)
	case l.VNI != 0 && l.VNI != b.policy.VNI:
		return fmt.Sprintf("publishes VNI %d, the network uses %d", l.VNI, b.policy.VNI)
	}
	return ""
}

// claims are what the hosts judged so far own in one family.
type claims struct {
	// subnets holds every owned subnet and what contains it, at the prefix
	// lengths in use, so that one look-up finds an overlap.
	subnets map[netip.Prefix]string
	lengths []int
	vteps   map[tunnel.MAC]vtep
	outer   map[netip.Addr]string
}

type vtep struct {
	host string
	addr netip.Addr
}

// settle gives everything that two hosts claim to one of them, the same one on
// every host of the cluster, and takes the other's leg away with a reason. The
// narrower subnet goes first, then the lexically smaller name: so a claim on
// half the network silences nobody, and none silences more than one host by its
// subnet, one by its MAC and one by each of its WireGuard keys. The own lease takes part like any other. Only
// after that this host keeps what it owns, whatever the others think.
func (b *builder) settle(s *side, hosts []*host) {
	legs := b.contenders(s, hosts)
	c := claims{
		subnets: make(map[netip.Prefix]string, len(legs)),
		vteps:   make(map[tunnel.MAC]vtep, len(legs)),
		outer:   make(map[netip.Addr]string, len(legs)),
	}
	for _, l := range legs {
		c.lengths = append(c.lengths, l.Subnet.Bits())
	}
	c.lengths = slices.Compact(c.lengths)
	for _, l := range legs {
		own := l.host.name == b.self.Host
		winner, what := b.conflict(&c, l)
		switch {
		case what != "" && own:
			b.problem(b.self.Host, fmt.Sprintf("%s belongs to host %q on every other host: one of the two must change", what, winner))
			continue
		case what != "":
			b.lose(l, winner, what)
			continue
		}
		b.take(&c, l)
		if own {
			continue
		}
		if l.PublicIP == s.local || l.PublicIP == s.own.PublicIP {
			l.host.reject(s.family, fmt.Sprintf("public address %v is this host's own: one of the two must publish another", l.PublicIP))
			l.host.drop(l)
		} else if what := b.clash(s, l); what != "" {
			b.lose(l, b.self.Host, what)
		}
	}
}

// contenders returns the legs of a family by precedence, the own one included
// if the others can be expected to admit it.
func (b *builder) contenders(s *side, hosts []*host) []*leg {
	var legs []*leg
	if reason := b.check(s, s.own); reason != "" {
		b.problem(b.self.Host, fmt.Sprintf("%s: other hosts will refuse the own lease: %s", s.family, reason))
	} else {
		own := newHost(b.self.Lease)
		own.name = b.self.Host
		legs = append(legs, &leg{Leg: s.own, host: own, side: s, keys: s.keys})
	}
	for _, h := range hosts {
		for _, l := range h.legs {
			if l.side == s {
				legs = append(legs, l)
			}
		}
	}
	slices.SortFunc(legs, func(x, y *leg) int {
		return cmp.Or(cmp.Compare(y.Subnet.Bits(), x.Subnet.Bits()), strings.Compare(x.host.name, y.host.name))
	})
	return legs
}

// lose takes a leg away for the sake of another host, and tells both.
func (b *builder) lose(l *leg, winner, what string) {
	l.host.reject(l.side.family, fmt.Sprintf("%s belongs to host %q: one of the two must change", what, winner))
	l.host.drop(l)
	b.problem(winner, fmt.Sprintf("keeps %s, which host %q claims too", what, l.host.name))
}

// conflict returns what of l is taken and by whom.
func (b *builder) conflict(c *claims, l *leg) (winner, what string) {
	if winner, taken := c.subnets[l.Subnet]; taken {
		return winner, fmt.Sprintf("subnet %v", l.Subnet)
	}
	if v, taken := c.vteps[l.MAC]; taken && b.disputed(v.addr, l) {
		return v.host, fmt.Sprintf("VTEP MAC %v", l.MAC)
	}
	return b.keyConflict(l)
}

// clash returns what of l is this host's own.
func (b *builder) clash(s *side, l *leg) (what string) {
	switch {
	case s.own.Subnet.Overlaps(l.Subnet):
		return fmt.Sprintf("subnet %v", l.Subnet)
	case s.own.MAC == l.MAC && b.disputed(s.own.PublicIP, l):
		return fmt.Sprintf("VTEP MAC %v", l.MAC)
	}
	for _, k := range l.keys {
		if k != (tunnel.PublicKey{}) && slices.Contains(s.keys[:], k) {
			return fmt.Sprintf("WireGuard key %v", k)
		}
	}
	return ""
}

// disputed says whether a MAC that l shares with a VTEP at addr is a conflict.
// It is none at the same address: a host that got a new lease while the old one
// has not run out. Only VXLAN has MACs.
func (b *builder) disputed(addr netip.Addr, l *leg) bool {
	return b.policy.Backend == backendVXLAN && addr != l.PublicIP
}

// take records what l owns. Two hosts at one public address are only reported:
// at most one of them can be reached, but which one is nothing we can know, and
// a false claim must not take the true owner down.
func (b *builder) take(c *claims, l *leg) {
	for _, bits := range c.lengths {
		if bits > l.Subnet.Bits() {
			continue
		}
		around := netip.PrefixFrom(l.Subnet.Addr(), bits).Masked()
		if _, taken := c.subnets[around]; !taken {
			c.subnets[around] = l.host.name
		}
	}
	if _, taken := c.vteps[l.MAC]; !taken {
		c.vteps[l.MAC] = vtep{l.host.name, l.PublicIP}
	}
	for _, k := range l.keys {
		if _, taken := b.keys[k]; !taken && k != (tunnel.PublicKey{}) {
			b.keys[k] = l.host
		}
	}
	if first, taken := c.outer[l.PublicIP]; taken {
		b.problem(l.host.name, fmt.Sprintf("public address %v is also that of host %q: at most one of them can be reached there", l.PublicIP, first))
	} else {
		c.outer[l.PublicIP] = l.host.name
	}
}

func (h *host) drop(l *leg) {
	h.legs = slices.DeleteFunc(h.legs, func(x *leg) bool { return x == l })
}
