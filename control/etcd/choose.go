package etcd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/netconf"
)

// choose picks a subnet for every leg of the claim. old is the lease to go on
// with, or nil; ours are all leases that leave room for this host, old first.
func (s *Source) choose(t *table, claim control.Claim, old *entry, ours []*entry) ([]netip.Prefix, error) {
	if old != nil && s.keeps(t, old, ours) {
		return old.subnets, nil
	}
	var wished []netip.Prefix
	for _, e := range ours {
		wished = append(wished, e.subnets...)
	}
	for _, leg := range claim.Legs {
		wished = append(wished, leg.Subnet)
	}
	wished = append(wished, s.cfg.Previous...)
	var subnets []netip.Prefix
	for _, family := range s.network.Families {
		taken := takenBy(t, family, func(e *entry) bool { return !slices.Contains(ours, e) })
		free := func(p netip.Prefix) bool { return family.Usable(p) && !taken.overlaps(p) }
		if n := slices.IndexFunc(wished, free); n >= 0 {
			subnets = append(subnets, wished[n])
			continue
		}
		some := taken.free(family)
		if len(some) == 0 {
			return nil, fmt.Errorf("%w from %s to %s of length /%d in %s: %d leases", errFull,
				family.SubnetMin, family.SubnetMax, family.SubnetLen, family.Network, len(t.entries))
		}
		subnets = append(subnets, some[rand.N(len(some))])
	}
	return subnets, nil
}

// keeps tells whether a lease can stay as it is: it fits the network, and no
// older lease of another host has the better right to a part of it.
func (s *Source) keeps(t *table, old *entry, ours []*entry) bool {
	if len(old.subnets) != len(s.network.Families) {
		return false
	}
	for i, family := range s.network.Families {
		older := takenBy(t, family, func(e *entry) bool { return !slices.Contains(ours, e) && e.created < old.created })
		if !family.Usable(old.subnets[i]) || older.overlaps(old.subnets[i]) {
			return false
		}
	}
	return true
}

// occupied is the taken part of one family's network.
type occupied struct {
	length int
	exact  map[netip.Prefix]bool // subnets of this length that are taken, in part or whole
	wide   []netip.Prefix        // shorter prefixes
}

func takenBy(t *table, family netconf.Family, counts func(*entry) bool) occupied {
	o := occupied{length: family.SubnetLen, exact: map[netip.Prefix]bool{}}
	for _, e := range t.entries {
		if !counts(e) {
			continue
		}
		for _, subnet := range e.subnets {
			switch {
			case subnet.Addr().Is4() != family.Network.Addr().Is4():
			case subnet.Bits() < o.length:
				o.wide = append(o.wide, subnet)
			default:
				o.exact[netip.PrefixFrom(subnet.Addr(), o.length).Masked()] = true
			}
		}
	}
	return o
}

// overlaps is meant for subnets of the family's length.
func (o occupied) overlaps(subnet netip.Prefix) bool {
	return o.exact[subnet] || slices.ContainsFunc(o.wide, subnet.Overlaps)
}

// free returns the first free subnets, at most a hundred: enough that hosts
// which choose at the same time seldom choose the same.
func (o occupied) free(family netconf.Family) []netip.Prefix {
	var free []netip.Prefix
	for subnet := family.First(); subnet.IsValid() && len(free) < 100; {
		past := subnet
		if i := slices.IndexFunc(o.wide, subnet.Overlaps); i >= 0 {
			past = o.wide[i]
		} else if !o.exact[subnet] {
			free = append(free, subnet)
		}
		subnet = family.After(past)
	}
	return free
}
