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

// defaultPort is the UDP port of kernel VXLAN devices that are given none; it
// is older than the one IANA assigned (RFC 7348), and what flannel hosts use.
const defaultPort = 8472

func (b *builder) port() uint16 {
	if b.policy.Port == 0 {
		return defaultPort
	}
	return b.policy.Port
}

// reach plans the ways to one host.
func (b *builder) reach(h *host) {
	hp := control.HostPlan{Host: h.name}
	for _, l := range h.legs {
		c := b.choose(l)
		if len(c.options) == 0 {
			h.reject(l.side.family, c.reason)
			continue
		}
		way := c.way(l)
		if way.Encap == tunnel.EncapVXLAN {
			// The kernel's device would have to be told of it, and is as flannel makes it.
			way.RemoteChecksum = way.Engine == tunnel.EngineUserspace && !b.policy.KeepChecksums && h.offers.VXLAN.RemoteChecksum
			way.KeepChecksums = b.policy.KeepChecksums
		}
		own := b.carry(l, way)
		b.objects = append(b.objects, own...)
		for _, o := range slices.Concat(l.side.base[way.Encap], own) { // in order already
			way.Objects = append(way.Objects, o.key)
		}
		b.standBy(l, c, way)
		hp.Ways = append(hp.Ways, way)
	}
	hp.Reasons = h.reasons
	b.plan.Hosts = append(b.plan.Hosts, hp)
}

// choice is what was decided for one leg.
type choice struct {
	options []control.Option // all that both ends can do, the best first; none: no way
	taken   int              // the option that is taken
	sealed  bool
	reason  string
}

func (c choice) way(l *leg) control.Way {
	o := c.options[c.taken]
	way := control.Way{Subnet: l.Subnet, Endpoint: o.Endpoint, Encap: o.Encap, Engine: o.Engine, MTU: o.MTU, Sealed: c.sealed, Reason: c.reason}
	if len(c.options) > 1 {
		way.Others = slices.Delete(slices.Clone(c.options), c.taken, c.taken+1)
	}
	return way
}

// choose decides how a leg is reached: by the first encapsulation in order that
// both ends can do and that has not failed. Where all have failed it is the
// first that both can do, which is where the other end will look too. A pair that
// has to be encrypted has only one.
func (b *builder) choose(l *leg) choice {
	order, sealed, note := b.candidates(l)
	c := choice{sealed: sealed != "", taken: -1}
	var against []string // what speaks against those that would come first
	for _, encap := range order {
		if unable := b.unable(l, encap); unable != "" {
			if c.taken < 0 {
				against = append(against, unable)
			}
			continue
		}
		c.options = append(c.options, b.option(l, encap))
		failed := b.self.Failed[control.WayID{Host: l.host.name, Is4: l.side.family == ipv4, Encap: encap}]
		switch {
		case c.taken >= 0:
		case failed != "":
			against = append(against, fmt.Sprintf("%s: %s", encap, failed))
		default:
			c.taken = len(c.options) - 1
		}
	}
	if len(c.options) == 0 {
		c.reason = b.unreachable(against, sealed, note)
		return c
	}
	kept := c.taken < 0
	c.taken = max(c.taken, 0)
	encap := c.options[c.taken].Encap
	var parts []string
	if c.sealed {
		parts = append(parts, sealed)
	}
	parts = append(parts, against...)
	switch {
	case kept:
		parts = append(parts, fmt.Sprintf("%s is kept for want of a way that works", encap))
	case len(parts) == 0, encap == tunnel.EncapDirect:
		parts = append(parts, b.because(l, encap))
	}
	if note != "" {
		parts = append(parts, note)
	}
	c.reason = strings.Join(parts, "; ")
	return c
}

// because says what speaks for an encapsulation.
func (b *builder) because(l *leg, encap tunnel.Encap) string {
	if encap == tunnel.EncapDirect {
		via, _ := b.onLink(l.PublicIP)
		return fmt.Sprintf("%v is on-link on %s (%v)", l.PublicIP, b.self.Underlay.Link, via)
	}
	if len(b.policy.Prefer) > 0 {
		return fmt.Sprintf("net-conf's Prefer begins with %s", encap)
	}
	return fmt.Sprintf("the network uses %s", encap)
}

// unreachable says why a leg has no way.
func (b *builder) unreachable(against []string, sealed, note string) string {
	text := strings.Join(against, "; ")
	switch {
	case sealed != "":
		return fmt.Sprintf("%s, and %s", sealed, text)
	case b.policy.Backend == backendHostGW:
		text += ": host-gw needs all hosts on one layer 2, use vxlan otherwise"
	}
	if note != "" {
		text += "; " + note
	}
	return text
}

// candidates returns the encapsulations that a pair may use, the best first. If
// sealed says why, it must use WireGuard; note says why it does not although it
// should.
func (b *builder) candidates(l *leg) (order []tunnel.Encap, sealed, note string) {
	who := "the host is a guest"
	switch {
	case b.policy.Backend == backendWireGuard:
		return b.order, "the network uses wireguard", ""
	case b.policy.Encrypt == control.EncryptAlways:
		return b.order, "net-conf's Encrypt is always", ""
	case b.policy.Encrypt == control.EncryptNever:
		return b.order, "", ""
	case b.self.Lease.Guest:
		who = "this host is a guest"
	case !l.host.guest:
		return b.order, "", ""
	}
	lacks := unoffered(l)
	if !b.mayWireGuard() {
		lacks = "net-conf's Prefer lacks wireguard"
	}
	if lacks != "" {
		return b.order, "", fmt.Sprintf("not encrypted although %s: %s", who, lacks)
	}
	return []tunnel.Encap{tunnel.EncapWireGuard}, who + ", and net-conf's Encrypt is guests", ""
}

// unable returns why a leg cannot be reached by an encapsulation, or "".
func (b *builder) unable(l *leg, encap tunnel.Encap) string {
	_, near := b.onLink(l.PublicIP)
	mtu, least := b.inner(l.side, encap), traits[l.side.family].minMTU
	switch direct, vxlan := encap == tunnel.EncapDirect, encap == tunnel.EncapVXLAN; {
	case direct && b.deviceless():
		return "this host has no device and routes nothing directly"
	case direct && b.self.Lease.Offers.NoDirect:
		return "this host's pods are not where its address is"
	case direct && l.host.offers.NoDirect:
		return "the host's pods are not where its address is"
	case direct && !near:
		return fmt.Sprintf("%v is not on-link on %s", l.PublicIP, b.self.Underlay.Link)
	case vxlan && b.policy.Backend != backendVXLAN:
		return fmt.Sprintf("hosts of a network that uses %s have no VXLAN", b.policy.Backend)
	case vxlan && !l.side.vxlan:
		return "this host terminates no VXLAN"
	case vxlan && l.host.offers.VXLAN.Off:
		return "the host terminates no VXLAN"
	case mtu < least:
		return fmt.Sprintf("%s leaves %d bytes of an outer MTU of %d, and %s needs %d", encap, mtu, l.side.outer, l.side.family, least)
	case direct, vxlan:
		return ""
	case l.rival != "":
		return fmt.Sprintf("the WireGuard key is also that of host %q, at the same address", l.rival)
	}
	return cmp.Or(unoffered(l), b.unguarded())
}

// option is a way by an encapsulation that both ends can do. Direct ways are
// the kernel's work whatever the engine.
func (b *builder) option(l *leg, encap tunnel.Encap) control.Option {
	o := control.Option{Encap: encap, Engine: tunnel.EngineKernel, MTU: b.inner(l.side, encap)}
	var port uint16
	switch encap {
	case tunnel.EncapVXLAN:
		o.Engine, port = b.self.Engine, b.port()
	case tunnel.EncapWireGuard:
		o.Engine, port = b.self.WireGuard, l.wireGuardPort
	}
	o.Endpoint = netip.AddrPortFrom(l.PublicIP, port)
	return o
}

// onLink returns the narrowest on-link prefix that contains addr.
func (b *builder) onLink(addr netip.Addr) (narrowest netip.Prefix, found bool) {
	for _, p := range b.self.Underlay.OnLink {
		if p.Contains(addr) && (!found || p.Bits() > narrowest.Bits()) {
			narrowest, found = p.Masked(), true
		}
	}
	return narrowest, found
}
