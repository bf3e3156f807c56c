package agent

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/plan"
	"github.com/weft-net/weft/tunnel"
)

// claim is what this host will publish.
func (a *Agent) claim(self control.Self, outer Outer) (control.Claim, error) {
	claim := control.Claim{Host: a.Node, Backend: a.policy.Backend, Offers: a.offers(self)}
	for _, network := range a.policy.Networks {
		leg := control.Leg{Subnet: network, PublicIP: addrOfFamily(outer.Public, network)}
		if a.policy.Backend == string(tunnel.EncapVXLAN) {
			leg.MAC, leg.VNI = a.recalledMAC(network), a.policy.VNI
		}
		if a.policy.Backend == string(tunnel.EncapWireGuard) {
			leg.Key, leg.Port = claim.Offers.WireGuard.Keys[0], claim.Offers.WireGuard.Ports[familyIndex(network)]
		}
		claim.Legs = append(claim.Legs, leg)
	}
	// The links of a host without peers do not depend on the subnet it is yet to
	// get, so the whole network can stand for it.
	self.Lease = control.Lease{Host: a.Node, Backend: claim.Backend, Legs: slices.Clone(claim.Legs), Offers: claim.Offers}
	for _, link := range links(plan.Plan(control.Snapshot{}, self, a.policy)) {
		if link.Type != tunnel.LinkVXLAN {
			continue
		}
		mac, exists, err := a.Host.ExistingMAC(link)
		if err != nil {
			return control.Claim{}, fmt.Errorf("look for device %s: %w", link.Name, err)
		}
		for i := range claim.Legs {
			if exists && claim.Legs[i].PublicIP.Is4() == link.Local.Is4() {
				claim.Legs[i].MAC = mac
			}
		}
	}
	for i := range claim.Legs {
		claim.Legs[i].Subnet = netip.Prefix{}
	}
	return claim, nil
}

// offers are what this host can do that peers cannot tell from its backend
// type. With the kernel's engine and without WireGuard that is nothing, and the
// lease is flannel's to the byte.
func (a *Agent) offers(self control.Self) (offers control.Offers) {
	vxlan := a.policy.Backend == string(tunnel.EncapVXLAN)
	offers.VXLAN.Off = vxlan && a.NoVXLAN
	offers.VXLAN.RemoteChecksum = vxlan && !a.NoVXLAN && self.Engine == tunnel.EngineUserspace && !a.policy.KeepChecksums
	offers.NoDirect = a.NoDirect || a.Device == ""
	if a.ring == nil {
		return offers
	}
	offers.WireGuard.Keys = a.ring.now().Public()
	for _, network := range a.policy.Networks {
		family := familyIndex(network)
		offers.WireGuard.Ports[family] = a.policy.WireGuardPorts[family]
	}
	return offers
}

// links are the devices of a plan.
func links(planned control.Plan) []tunnel.Link {
	var found []tunnel.Link
	for _, object := range planned.Objects {
		if link, ok := object.(tunnel.Link); ok {
			found = append(found, link)
		}
	}
	return found
}

// recalledMAC is the VTEP MAC published before, else one derived from the
// host's name. Peers hold it in their neighbour tables, so it changes as rarely
// as can be; only the MAC of a device that exists already comes before it.
func (a *Agent) recalledMAC(network netip.Prefix) tunnel.MAC {
	family := familyIndex(network)
	if family < len(a.recall.MACs) && a.recall.MACs[family] != (tunnel.MAC{}) {
		return a.recall.MACs[family]
	}
	return deriveMAC(a.Node, a.policy.VNI, network)
}

// deriveMAC makes a locally administered unicast MAC that depends on nothing
// but the host's name, the VNI and the family, so that it needs no storage.
func deriveMAC(node string, vni uint32, network netip.Prefix) tunnel.MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "weft vtep\x00%s\x00%d\x00%d", node, vni, familyIndex(network)))
	mac := tunnel.MAC(sum[:6])
	mac[0] = mac[0]&0xfe | 0x02
	return mac
}

// familyIndex is 0 for IPv4 and 1 for IPv6.
func familyIndex(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// addrOfFamily is the address of network's family, or the zero Addr.
func addrOfFamily(addrs []netip.Addr, network netip.Prefix) netip.Addr {
	for _, addr := range addrs {
		if addr.Is4() == network.Addr().Is4() {
			return addr
		}
	}
	return netip.Addr{}
}

func legsText(legs []control.Leg) string {
	var parts []string
	for _, leg := range legs {
		parts = append(parts, fmt.Sprintf("%s at %s", leg.Subnet, leg.PublicIP))
	}
	return strings.Join(parts, ", ")
}
