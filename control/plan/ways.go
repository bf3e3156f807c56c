package plan

import (
	"fmt"
	"net/netip"
	"slices"

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
		way, reason := b.way(l)
		if reason != "" {
			h.reject(l.side.family, reason)
			continue
		}
		own := b.carry(l, way.Encap)
		b.objects = append(b.objects, own...)
		if way.Encap != tunnel.EncapDirect {
			own = slices.Concat(l.side.base, own)
		}
		for _, o := range own { // in order already
			way.Objects = append(way.Objects, o.key)
		}
		if way.Encap == tunnel.EncapVXLAN && way.Engine == tunnel.EngineUserspace {
			b.plan.Peers = append(b.plan.Peers, tunnel.Peer{
				Name:           h.name,
				Prefixes:       []netip.Prefix{l.Subnet},
				Endpoint:       way.Endpoint,
				MAC:            l.MAC,
				VNI:            b.policy.VNI,
				MTU:            way.MTU,
				RemoteChecksum: way.RemoteChecksum,
			})
		}
		hp.Ways = append(hp.Ways, way)
	}
	hp.Reasons = h.reasons
	b.plan.Hosts = append(b.plan.Hosts, hp)
}

// way chooses how a leg is reached, or returns why it cannot be. Direct ways
// are the kernel's work whatever the engine.
func (b *builder) way(l *leg) (way control.Way, reason string) {
	via, near := b.onLink(l.PublicIP)
	if near && !b.deviceless() && !l.host.offers.NoDirect && (b.policy.Direct || b.policy.Backend == backendHostGW) {
		return control.Way{
			Subnet:   l.Subnet,
			Endpoint: netip.AddrPortFrom(l.PublicIP, 0),
			Encap:    tunnel.EncapDirect,
			Engine:   tunnel.EngineKernel,
			MTU:      l.side.outer,
			Reason:   fmt.Sprintf("%v is on-link on %s (%v)", l.PublicIP, b.self.Underlay.Link, via),
		}, ""
	}
	if b.policy.Backend == backendHostGW && b.deviceless() {
		return control.Way{}, "host-gw is done by routes, and this host has no device: use vxlan, or a host with a TUN"
	}
	if b.policy.Backend == backendHostGW && l.host.offers.NoDirect {
		return control.Way{}, "host-gw is done by routes, and the host's pods are not where its address is: use vxlan"
	}
	if b.policy.Backend == backendHostGW {
		return control.Way{}, fmt.Sprintf("public address %v is not on-link on %s: host-gw needs all hosts on one layer 2, use vxlan otherwise",
			l.PublicIP, b.self.Underlay.Link)
	}
	way = control.Way{
		Subnet:   l.Subnet,
		Endpoint: netip.AddrPortFrom(l.PublicIP, b.port()),
		Encap:    tunnel.EncapVXLAN,
		Engine:   b.self.Engine,
		MTU:      l.side.mtu,
		Reason:   "the network uses vxlan",
		// The kernel's device would have to be told of it, and is as flannel makes it.
		RemoteChecksum: b.self.Engine == tunnel.EngineUserspace && !b.policy.KeepChecksums && l.host.offers.VXLAN.RemoteChecksum,
		KeepChecksums:  b.policy.KeepChecksums,
	}
	switch {
	case b.policy.Direct && b.deviceless():
		way.Reason = "a host without a device routes nothing directly"
	case b.policy.Direct && l.host.offers.NoDirect:
		way.Reason = "the host's pods are not where its address is"
	case b.policy.Direct:
		way.Reason = fmt.Sprintf("%v is not on-link on %s", l.PublicIP, b.self.Underlay.Link)
	}
	return way, ""
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
