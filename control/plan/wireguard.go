package plan

import (
	"fmt"
	"slices"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// preference is the order in which the ways to any host are tried.
func preference(policy control.Policy) []tunnel.Encap {
	switch {
	case policy.Encrypt == control.EncryptAlways, policy.Backend == backendWireGuard:
		return []tunnel.Encap{tunnel.EncapWireGuard}
	case len(policy.Prefer) > 0:
		return policy.Prefer
	case policy.Backend == backendHostGW:
		return []tunnel.Encap{tunnel.EncapDirect}
	case policy.Direct:
		return []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard}
	}
	return []tunnel.Encap{tunnel.EncapVXLAN, tunnel.EncapWireGuard}
}

// mayWireGuard says whether the policy lets any pair use WireGuard. Where it
// lists no encapsulations, guests may have one that others do not.
func (b *builder) mayWireGuard() bool {
	return slices.Contains(b.order, tunnel.EncapWireGuard) || len(b.policy.Prefer) == 0 && b.policy.Encrypt != control.EncryptNever
}

// wireGuard returns how a host terminates WireGuard in a family, from what it
// publishes alone, so that both ends of a pair agree; no keys if it does not.
// Leases of the backend wireguard say it in flannel's form, and in their offers
// only what that has no words for, as a key that is about to be used.
func (b *builder) wireGuard(offer control.WireGuardOffer, l control.Leg, f family) (tunnel.WireGuardKeys, uint16) {
	none := tunnel.PublicKey{}
	switch {
	case !b.mayWireGuard():
		return tunnel.WireGuardKeys{}, 0
	case offer.Keys[0] != none && offer.Ports[f] != 0:
		return offer.Keys, offer.Ports[f]
	case b.policy.Backend != backendWireGuard || l.Key == none:
		return tunnel.WireGuardKeys{}, 0
	case l.Port != 0:
		return tunnel.WireGuardKeys{l.Key}, l.Port
	}
	return tunnel.WireGuardKeys{l.Key}, b.listenPort(f) // of an old flannel: the port of all
}

// listenPort is where WireGuard listens here.
func (b *builder) listenPort(f family) uint16 {
	if port := b.policy.WireGuardPorts[f]; port != 0 {
		return port
	}
	return traits[f].port
}

// guestKeepalive keeps open what most NATs close after half a minute.
const guestKeepalive = 25

// keepalive is the seconds between packets that keep NATs open. A guest is behind
// one more often than not, and can be reached only while it is open.
func (b *builder) keepalive() int {
	if b.policy.Keepalive == 0 && b.self.Lease.Guest {
		return guestKeepalive
	}
	return b.policy.Keepalive
}

// unoffered says which end of a pair does not offer WireGuard. It looks at the
// two leases and nothing else: with it decides whether a pair is encrypted, which
// the other end must see in the same way.
func unoffered(l *leg) string {
	switch none := (tunnel.WireGuardKeys{}); {
	case l.side.keys == none:
		return "this host offers no WireGuard over " + l.side.family.String()
	case l.keys == none:
		return "the host offers no WireGuard over " + l.side.family.String()
	}
	return ""
}

// unguarded says why this host cannot carry WireGuard, whatever it offers.
func (b *builder) unguarded() string {
	switch {
	case b.self.WireGuard == "":
		return "nothing on this host carries WireGuard"
	case b.self.Device == "" && (b.self.WireGuard != tunnel.EngineUserspace || !b.deviceless()):
		return "this host has no device for WireGuard"
	}
	return ""
}

// keyConflict returns which key of l is taken and by whom. At the same address
// it is no conflict but a host that got a new lease while the old one has not run
// out; then the one lease has WireGuard and the other is left with the rest.
func (b *builder) keyConflict(l *leg) (winner, what string) {
	for _, k := range l.keys {
		owner, taken := b.keys[k]
		if !taken || owner.name == l.host.name {
			continue
		}
		if owner.addrs[l.side.family] != l.PublicIP {
			return owner.name, fmt.Sprintf("WireGuard key %v", k)
		}
		l.rival = owner.name
	}
	return "", ""
}

// inner is the largest inner packet by an encapsulation. A network of the
// backend wireguard leaves as much room over IPv4 as over IPv6, as flannel does:
// its hosts are to have one MTU, whoever runs them.
func (b *builder) inner(s *side, encap tunnel.Encap) int {
	switch {
	case encap == tunnel.EncapVXLAN:
		return s.outer - traits[s.family].vxlan
	case encap == tunnel.EncapWireGuard && b.policy.Backend == backendWireGuard:
		return s.outer - traits[ipv6].wireGuard
	case encap == tunnel.EncapWireGuard:
		return s.outer - traits[s.family].wireGuard
	}
	return s.outer
}

// podEncap is the encapsulation that the MTU of pods is made for: the one they
// are to expect, which is the first in order that is not direct. It depends on
// the policy and on this host's lease, never on its peers: pods keep the MTU they
// were started with. A way with less room, as WireGuard's is beside VXLAN, says so
// in its own MTU: routes have it, and the engine tells senders and lowers the
// segment size of TCP.
func (b *builder) podEncap(s *side) tunnel.Encap {
	if b.self.Lease.Guest && b.policy.Encrypt != control.EncryptNever && s.keys != (tunnel.WireGuardKeys{}) {
		return tunnel.EncapWireGuard
	}
	for _, encap := range b.order {
		if encap == tunnel.EncapWireGuard || encap == tunnel.EncapVXLAN && s.vxlan {
			return encap
		}
	}
	return tunnel.EncapDirect
}
