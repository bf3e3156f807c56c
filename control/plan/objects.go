package plan

import (
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

// device is the link that carries VXLAN to peers of a side: flannel's kernel
// device, or the TUN that all families share.
func (b *builder) device(s *side) string {
	if b.self.Engine == tunnel.EngineUserspace {
		return b.self.Device
	}
	return fmt.Sprintf("%s%d", traits[s.family].device, b.policy.VNI)
}

// deviceless says that inner packets enter and leave a stack of our own, so that
// the host's is left alone.
func (b *builder) deviceless() bool {
	return b.self.Engine == tunnel.EngineUserspace && b.self.Device == ""
}

// base returns the objects that a side needs before it has any peer.
func (b *builder) base(s *side) []keyed {
	if b.policy.Backend != backendVXLAN || b.deviceless() {
		return nil
	}
	// The TUN, which all families share, has the MTU that pods use: a super-packet
	// of unknown segment size is cut to the device's MTU, and larger segments than
	// the pods take are lost.
	link := tunnel.Link{Name: b.device(s), Type: tunnel.LinkTUN, MTU: b.plan.MTU}
	if b.self.Engine != tunnel.EngineUserspace {
		link.Type = tunnel.LinkVXLAN
		link.MTU = s.mtu
		link.MAC = s.own.MAC
		link.VNI = b.policy.VNI
		link.Port = b.port()
		// Not the published address: behind a NAT that one is not ours, and the
		// kernel would send nothing.
		link.Local = s.local
		link.Parent = b.self.Underlay.Link
		link.Learning = b.policy.Learning
		link.GBP = b.policy.GBP
	}
	addr := s.own.Subnet.Addr()
	return []keyed{key(link), key(tunnel.Address{Link: link.Name, Prefix: netip.PrefixFrom(addr, addr.BitLen())})}
}

// furnish adds what a side needs whether or not it has peers.
func (b *builder) furnish(s *side) {
	s.base = b.base(s)
	b.objects = append(b.objects, s.base...)
	if b.policy.Backend == backendVXLAN && b.self.Engine == tunnel.EngineUserspace {
		b.plan.Locals = append(b.plan.Locals, tunnel.Local{Subnet: s.own.Subnet, MAC: s.own.MAC, VNI: b.policy.VNI})
	}
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

// carry returns the objects of one way, without those of its side.
func (b *builder) carry(l *leg, encap tunnel.Encap) []keyed {
	if encap == tunnel.EncapDirect {
		return []keyed{key(tunnel.Route{Prefix: l.Subnet, Via: l.PublicIP, Link: b.self.Underlay.Link})}
	}
	if b.deviceless() {
		return nil
	}
	link := b.device(l.side)
	if b.self.Engine == tunnel.EngineUserspace {
		return []keyed{key(tunnel.Route{Prefix: l.Subnet, Link: link})}
	}
	gateway := l.Subnet.Addr()
	return []keyed{
		key(tunnel.Neighbor{Link: link, IP: gateway, MAC: l.MAC}),
		key(tunnel.FDBEntry{Link: link, MAC: l.MAC, Remote: l.PublicIP}),
		key(tunnel.Route{Prefix: l.Subnet, Via: gateway, Link: link, OnLink: true}),
	}
}
