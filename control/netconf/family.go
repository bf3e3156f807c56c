package netconf

import (
	"fmt"
	"net/netip"
)

// Family is the pod network of one address family and how it is cut into
// subnets, one per host. Kubernetes cuts subnets itself and uses only Network.
type Family struct {
	Network   netip.Prefix // masked
	SubnetMin netip.Addr   // network address of the first subnet handed out
	SubnetMax netip.Addr   // network address of the last
	SubnetLen int          // prefix length of every subnet
}

func (f Family) is4() bool { return f.Network.Addr().Is4() }

// First is the first subnet that may be handed out.
func (f Family) First() netip.Prefix { return netip.PrefixFrom(f.SubnetMin, f.SubnetLen) }

// After is the first subnet past the end of p, which is a prefix of the same
// family of any length; it is the zero Prefix once SubnetMax is passed.
func (f Family) After(p netip.Prefix) netip.Prefix {
	addr := lastAddr(p).Next()
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	subnet := netip.PrefixFrom(addr, f.SubnetLen)
	if subnet.Masked() != subnet {
		subnet = netip.PrefixFrom(lastAddr(subnet).Next(), f.SubnetLen)
	}
	if !subnet.IsValid() || f.SubnetMax.Less(subnet.Addr()) {
		return netip.Prefix{}
	}
	return subnet
}

// Usable reports whether p is a subnet that this configuration could hand out.
func (f Family) Usable(p netip.Prefix) bool {
	return p.IsValid() && p.Addr().BitLen() == f.Network.Addr().BitLen() &&
		p.Bits() == f.SubnetLen && p == p.Masked() &&
		!p.Addr().Less(f.SubnetMin) && !f.SubnetMax.Less(p.Addr())
}

// lastAddr returns the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := range bytes {
		hostBits := min(max((i+1)*8-p.Bits(), 0), 8)
		bytes[i] |= byte(1<<hostBits - 1)
	}
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}

// familyKeys are the keys and limits of one family.
type familyKeys struct {
	enable, network, subnetMin, subnetMax, subnetLen string
	example                                          string
	bits                                             int
	// smallest is the longest Network that can still be cut by default; roomy is
	// the longest that is cut to common, the customary length.
	smallest, roomy, common int
}

var (
	ipv4 = familyKeys{
		enable: "EnableIPv4", network: "Network", subnetMin: "SubnetMin", subnetMax: "SubnetMax", subnetLen: "SubnetLen",
		example: "10.244.0.0/16", bits: 32, smallest: 28, roomy: 22, common: 24,
	}
	ipv6 = familyKeys{
		enable: "EnableIPv6", network: "IPv6Network", subnetMin: "IPv6SubnetMin", subnetMax: "IPv6SubnetMax", subnetLen: "IPv6SubnetLen",
		example: "fd00:10:244::/56", bits: 128, smallest: 124, roomy: 62, common: 64,
	}
)

// reserved ranges mean something else to every IP stack: loopback, link-local
// and multicast.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// familyText is one family as written.
type familyText struct {
	keys     familyKeys
	enabled  bool
	implicit bool // enabled only for want of a key that says so
	network  *string
	min, max *string
	length   int
}

// parse returns the family and whether it is on. What a disabled family says
// must still be well formed.
func (t familyText) parse() (family Family, on bool, err error) {
	var network netip.Prefix
	if t.network != nil {
		if network, err = t.parseNetwork(*t.network); err != nil {
			return Family{}, false, err
		}
	}
	if !t.enabled {
		return Family{}, false, nil
	}
	// A network of length 0 is how a family is written that is not there.
	if t.network != nil && network.Bits() == 0 {
		if t.implicit {
			return Family{}, false, nil
		}
		return Family{}, false, fmt.Errorf("%s is %s, which stands for no network, but %s is true; set %s, as in %q, or %s to false",
			t.keys.network, network, t.keys.enable, t.keys.network, t.keys.example, t.keys.enable)
	}
	if t.network == nil {
		return Family{}, false, fmt.Errorf("%s is missing; set it, as in %q, or set %s to false", t.keys.network, t.keys.example, t.keys.enable)
	}
	family = Family{Network: network}
	if family.SubnetLen, err = t.subnetLen(network); err != nil {
		return Family{}, false, err
	}
	if err = t.subnetRange(&family); err != nil {
		return Family{}, false, err
	}
	return family, true, nil
}

func (t familyText) parseNetwork(text string) (netip.Prefix, error) {
	network, err := netip.ParsePrefix(text)
	if err != nil || network.Addr().BitLen() != t.keys.bits || network.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is %q; allowed: address/length, as in %q", t.keys.network, shorten(text), t.keys.example)
	}
	network = network.Masked()
	if network.Bits() == 0 {
		return network, nil
	}
	for _, special := range reserved {
		if network.Overlaps(special) {
			return netip.Prefix{}, fmt.Errorf("%s is %s, which overlaps %s; allowed: a unicast range, as in %q", t.keys.network, network, special, t.keys.example)
		}
	}
	return network, nil
}

func (t familyText) subnetLen(network netip.Prefix) (int, error) {
	keys := t.keys
	if t.length == 0 {
		if network.Bits() > keys.smallest {
			return 0, fmt.Errorf("%s is %s, which is too small; allowed: /%d or larger", keys.network, network, keys.smallest)
		}
		if network.Bits() <= keys.roomy {
			return keys.common, nil
		}
		return network.Bits() + 2, nil
	}
	// Four subnets are flannel's least, and two host bits leave room for a gateway.
	least, most := network.Bits()+2, keys.bits-2
	if least > most {
		return 0, fmt.Errorf("%s is %s, which is too small for four subnets; allowed: /%d or larger", keys.network, network, most-2)
	}
	if t.length < least || t.length > most {
		return 0, fmt.Errorf("%s is %d; allowed for %s %s: %d to %d", keys.subnetLen, t.length, keys.network, network, least, most)
	}
	return t.length, nil
}

func (t familyText) subnetRange(family *Family) error {
	network, length := family.Network, family.SubnetLen
	// The first subnet is left out unless asked for, as flannel does.
	family.SubnetMin = lastAddr(netip.PrefixFrom(network.Addr(), length)).Next()
	family.SubnetMax = netip.PrefixFrom(lastAddr(network), length).Masked().Addr()
	for _, bound := range []struct {
		key  string
		text *string
		addr *netip.Addr
	}{{t.keys.subnetMin, t.min, &family.SubnetMin}, {t.keys.subnetMax, t.max, &family.SubnetMax}} {
		if bound.text == nil {
			continue
		}
		addr, err := netip.ParseAddr(*bound.text)
		if err != nil || !network.Contains(addr) {
			return fmt.Errorf("%s is %q; allowed: an address in %s %s", bound.key, shorten(*bound.text), t.keys.network, network)
		}
		if start := netip.PrefixFrom(addr, length).Masked().Addr(); start != addr {
			return fmt.Errorf("%s is %s, which is inside a subnet; allowed: the start of a /%d, as in %s", bound.key, addr, length, start)
		}
		*bound.addr = addr
	}
	if family.SubnetMax.Less(family.SubnetMin) {
		return fmt.Errorf("%s is %s, which is after %s %s", t.keys.subnetMin, family.SubnetMin, t.keys.subnetMax, family.SubnetMax)
	}
	return nil
}
