package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// deviceless says that inner packets enter and leave a stack of our own, so that
// the host's is left alone.
func (b *builder) deviceless() bool {
	return b.self.Engine == tunnel.EngineUserspace && b.self.Device == ""
}

// bases returns the objects that a side needs before it has any peer, by what
// they are for. All devices have the same address, the first of the own subnet:
// it is what this host sends to pods from, whichever way they are reached.
func (b *builder) bases(s *side) map[tunnel.Encap][]keyed {
	bases := map[tunnel.Encap][]keyed{}
	if s.vxlan && !b.deviceless() {
		bases[tunnel.EncapVXLAN] = addressed(b.vxlanLink(s), s)
	}
	if s.keys != (tunnel.WireGuardKeys{}) && b.unguarded() == "" && !b.deviceless() {
		bases[tunnel.EncapWireGuard] = addressed(b.wireGuardLink(s), s)
	}
	return bases
}

func addressed(link tunnel.Link, s *side) []keyed {
	addr := s.own.Subnet.Addr()
	return []keyed{key(link), key(tunnel.Address{Link: link.Name, Prefix: netip.PrefixFrom(addr, addr.BitLen())})}
}

// tun is the userspace engine's device, which all families and encapsulations
// share. It has the MTU that pods use: a super-packet of unknown segment size is
// cut to the device's MTU, and larger segments than the pods take are lost.
func (b *builder) tun() tunnel.Link {
	return tunnel.Link{Name: b.self.Device, Type: tunnel.LinkTUN, MTU: b.plan.MTU}
}

func (b *builder) vxlanLink(s *side) tunnel.Link {
	if b.self.Engine == tunnel.EngineUserspace {
		return b.tun()
	}
	return tunnel.Link{
		Name: fmt.Sprintf("%s%d", traits[s.family].device, b.policy.VNI), Type: tunnel.LinkVXLAN,
		MTU: b.inner(s, tunnel.EncapVXLAN),
		MAC: s.own.MAC, VNI: b.policy.VNI, Port: b.port(),
		// Not the published address: behind a NAT that one is not ours, and the
		// kernel would send nothing.
		Local: s.local, Parent: b.self.Underlay.Link,
		Learning: b.policy.Learning, GBP: b.policy.GBP,
	}
}

// wireGuardLink is, in the kernel, a device for each family, as flannel has it.
func (b *builder) wireGuardLink(s *side) tunnel.Link {
	if b.self.WireGuard == tunnel.EngineUserspace {
		return b.tun()
	}
	return tunnel.Link{
		Name: traits[s.family].guarded, Type: tunnel.LinkWireGuard,
		MTU: b.inner(s, tunnel.EncapWireGuard), Port: b.listenPort(s.family), PublicKey: s.keys[0],
	}
}

// furnish adds what a side needs whether or not it has peers.
func (b *builder) furnish(s *side) {
	s.base = b.bases(s)
	for _, objects := range s.base {
		b.objects = append(b.objects, objects...)
	}
	b.local(s)
	if b.deviceless() {
		return
	}
	if b.policy.Masquerade || b.policy.ForwardRules {
		b.objects = append(b.objects, key(tunnel.Firewall{
			Network:     s.network,
			Subnet:      s.own.Subnet,
			Masquerade:  b.policy.Masquerade,
			RandomFully: b.policy.Masquerade && b.policy.RandomFully,
			Forward:     b.policy.ForwardRules,
		}))
	}
	if b.policy.Blackhole {
		b.objects = append(b.objects, key(tunnel.Route{Prefix: s.own.Subnet, Blackhole: true}))
	}
}

// confine keeps what pods send to pods that there is no way to from the host's
// default route, where everybody must use WireGuard: they would be read on the
// wire. It needs no peer, no engine and no agent that runs, nor a family that
// works.
func (b *builder) confine(s *side) {
	must := b.policy.Encrypt == control.EncryptAlways || b.policy.Backend == backendWireGuard
	if must && b.policy.Confine && !b.deviceless() && !slices.ContainsFunc(b.self.Underlay.Addrs, s.network.Contains) {
		b.objects = append(b.objects, key(tunnel.Route{Prefix: s.network, Blackhole: true}))
	}
}

// local adds what the userspace engine terminates. Without a MAC, that is
// nothing of VXLAN's.
func (b *builder) local(s *side) {
	local := tunnel.Local{Subnet: s.own.Subnet}
	switch {
	case s.vxlan && b.self.Engine == tunnel.EngineUserspace:
		local.MAC, local.VNI = s.own.MAC, b.policy.VNI
	case s.keys == (tunnel.WireGuardKeys{}) || b.self.WireGuard != tunnel.EngineUserspace || b.unguarded() != "":
		return
	}
	b.plan.Locals = append(b.plan.Locals, local)
}

// carry returns the objects of one way, without those of its side. Routes are
// one per subnet, also where flannel's WireGuard has one for the whole network:
// hosts that are reached in another way have their own beside them.
func (b *builder) carry(l *leg, way control.Way) []keyed {
	switch {
	case way.Encap == tunnel.EncapDirect:
		return []keyed{key(tunnel.Route{Prefix: l.Subnet, Via: l.PublicIP, Link: b.self.Underlay.Link})}
	case b.deviceless():
		return nil
	case way.Engine == tunnel.EngineUserspace:
		return []keyed{key(tunnel.Route{Prefix: l.Subnet, Link: b.self.Device, MTU: lower(way.MTU, b.plan.MTU)})}
	case way.Encap == tunnel.EncapWireGuard:
		return []keyed{
			key(b.wireGuardPeer(l, b.keepalive())),
			key(tunnel.Route{Prefix: l.Subnet, Link: traits[l.side.family].guarded}),
		}
	}
	link := b.vxlanLink(l.side).Name
	gateway := l.Subnet.Addr()
	return []keyed{
		key(tunnel.Neighbor{Link: link, IP: gateway, MAC: l.MAC}),
		key(tunnel.FDBEntry{Link: link, MAC: l.MAC, Remote: l.PublicIP}),
		key(tunnel.Route{Prefix: l.Subnet, Via: gateway, Link: link, OnLink: true}),
	}
}

// lower is a route's MTU through a device: 0 unless it is less than the device's.
func lower(mtu, device int) int {
	if mtu < device {
		return mtu
	}
	return 0
}

// wireGuardPeer is a peer of the kernel's device, which can take only one of a
// host's keys for a subnet.
func (b *builder) wireGuardPeer(l *leg, keepalive int) tunnel.WireGuardPeer {
	return tunnel.WireGuardPeer{
		Link: traits[l.side.family].guarded, PublicKey: l.keys[0], Subnet: l.Subnet,
		Endpoint: netip.AddrPortFrom(l.PublicIP, l.wireGuardPort), Keepalive: keepalive,
	}
}

// standBy makes this host take in what a peer sends by any of its options:
// two hosts never change at one moment, and only by asking whether an option
// works can be found out. The userspace engine knows the peer by all of those
// that are its own; it is sent nothing by an option that is not the way, as no
// route leads there.
func (b *builder) standBy(l *leg, c choice, way control.Way) {
	peer := tunnel.Peer{Name: l.host.name, Prefixes: []netip.Prefix{l.Subnet}, Sealed: way.Sealed}
	known, at := false, netip.AddrPort{} // where its VXLAN is
	for i, o := range c.options {
		inUse := i == c.taken
		if o.Encap == tunnel.EncapWireGuard && o.Engine == tunnel.EngineKernel && !inUse {
			b.objects = append(b.objects, key(b.wireGuardPeer(l, 0)))
		}
		if o.Engine != tunnel.EngineUserspace {
			continue
		}
		if !known || inUse {
			known = true
			peer.Encap, peer.Endpoint, peer.MTU = o.Encap, o.Endpoint, o.MTU
		}
		switch o.Encap {
		case tunnel.EncapVXLAN:
			peer.MAC, peer.VNI, at = l.MAC, b.policy.VNI, o.Endpoint
			peer.RemoteChecksum = inUse && way.RemoteChecksum
		case tunnel.EncapWireGuard:
			peer.Keys, peer.WireGuard = l.keys, o.Endpoint
			if inUse {
				peer.Keepalive = b.keepalive()
			}
		}
	}
	if peer.Encap != tunnel.EncapVXLAN {
		peer.VXLAN = at
	}
	if known {
		b.plan.Peers = append(b.plan.Peers, peer)
	}
}
