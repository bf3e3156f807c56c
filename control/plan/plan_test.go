package plan

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func mac(s string) tunnel.MAC {
	m, err := tunnel.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// world is the host of flannel's golden state, and one peer or more.
type world struct {
	snapshot control.Snapshot
	self     control.Self
	policy   control.Policy
}

var (
	own4  = control.Leg{Subnet: prefix("10.244.17.0/24"), PublicIP: addr("192.168.7.1"), MAC: mac("26:84:0f:b6:ca:63"), VNI: 1}
	own6  = control.Leg{Subnet: prefix("fd00:10:244:3c::/64"), PublicIP: addr("fd77::1"), MAC: mac("52:b1:0a:c9:6a:41"), VNI: 1}
	peer4 = control.Leg{Subnet: prefix("10.244.1.0/24"), PublicIP: addr("192.168.7.2"), MAC: mac("1a:dc:8d:ed:47:fd"), VNI: 1}
	peer6 = control.Leg{Subnet: prefix("fd00:10:244:1c::/64"), PublicIP: addr("fd77::2"), MAC: mac("1e:dc:8d:ed:47:06"), VNI: 1}
)

func lease(host string, legs ...control.Leg) control.Lease {
	return control.Lease{Host: host, Backend: "vxlan", Legs: legs}
}

// golden returns the golden world with both families.
func golden() world {
	return world{
		snapshot: control.Snapshot{Complete: true, Leases: []control.Lease{lease("a", own4, own6), lease("b", peer4, peer6)}},
		self: control.Self{
			Host: "a", Lease: lease("a", own4, own6), Engine: tunnel.EngineKernel, Device: "weft0",
			Underlay: control.Underlay{
				Link: "eth0", MTU: 1500,
				Addrs:  []netip.Addr{addr("192.168.7.1"), addr("fd77::1")},
				OnLink: []netip.Prefix{prefix("192.168.7.0/24"), prefix("fd77::/64")},
			},
		},
		policy: control.Policy{
			Networks: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")},
			Backend:  "vxlan", VNI: 1,
		},
	}
}

// only keeps one family of a world's networks and addresses.
func (w world) only(f family) world {
	w.policy.Networks = w.policy.Networks[f : f+1]
	w.self.Underlay.Addrs = w.self.Underlay.Addrs[f : f+1]
	cut := func(l control.Lease) control.Lease {
		l.Legs = l.Legs[f : f+1]
		return l
	}
	w.self.Lease = cut(w.self.Lease)
	var leases []control.Lease
	for _, l := range w.snapshot.Leases {
		leases = append(leases, cut(l))
	}
	w.snapshot.Leases = leases
	return w
}

func (w world) plan() control.Plan { return Plan(w.snapshot, w.self, w.policy) }

// with changes a copy.
func (w world) with(change func(*world)) world {
	change(&w)
	return w
}

// offer makes a host of the snapshot offer to finish checksums.
func (w *world) offer(host string) {
	leases := slices.Clone(w.snapshot.Leases)
	for i := range leases {
		leases[i].Offers.VXLAN.RemoteChecksum = leases[i].Host == host
	}
	w.snapshot.Leases = leases
}

var (
	link4 = tunnel.Link{Name: "flannel.1", Type: tunnel.LinkVXLAN, MTU: 1450, MAC: own4.MAC, VNI: 1, Port: 8472, Local: addr("192.168.7.1"), Parent: "eth0"}
	link6 = tunnel.Link{Name: "flannel-v6.1", Type: tunnel.LinkVXLAN, MTU: 1430, MAC: own6.MAC, VNI: 1, Port: 8472, Local: addr("fd77::1"), Parent: "eth0"}
	addr4 = tunnel.Address{Link: "flannel.1", Prefix: prefix("10.244.17.0/32")}
	addr6 = tunnel.Address{Link: "flannel-v6.1", Prefix: prefix("fd00:10:244:3c::/128")}
)

func TestPlanObjects(t *testing.T) {
	tests := []struct {
		name  string
		world world
		want  []tunnel.Object
		mtu   int
	}{
		{
			name:  "kernel, IPv4",
			world: golden().only(ipv4),
			mtu:   1450,
			want: []tunnel.Object{
				link4, addr4,
				tunnel.Neighbor{Link: "flannel.1", IP: addr("10.244.1.0"), MAC: peer4.MAC},
				tunnel.FDBEntry{Link: "flannel.1", MAC: peer4.MAC, Remote: addr("192.168.7.2")},
				tunnel.Route{Prefix: prefix("10.244.1.0/24"), Via: addr("10.244.1.0"), Link: "flannel.1", OnLink: true},
			},
		},
		{
			name:  "kernel, IPv6",
			world: golden().only(ipv6),
			mtu:   1430,
			want: []tunnel.Object{
				link6, addr6,
				tunnel.Neighbor{Link: "flannel-v6.1", IP: addr("fd00:10:244:1c::"), MAC: peer6.MAC},
				tunnel.FDBEntry{Link: "flannel-v6.1", MAC: peer6.MAC, Remote: addr("fd77::2")},
				tunnel.Route{Prefix: prefix("fd00:10:244:1c::/64"), Via: addr("fd00:10:244:1c::"), Link: "flannel-v6.1", OnLink: true},
			},
		},
		{
			name: "kernel, both, with everything switched on",
			world: golden().with(func(w *world) {
				w.policy.VNI, w.policy.Port, w.policy.MTU = 4096, 4789, 1400
				w.policy.Learning, w.policy.GBP = true, true
				w.policy.Masquerade, w.policy.RandomFully, w.policy.ForwardRules, w.policy.Blackhole = true, true, true, true
				w.snapshot.Leases = nil
			}),
			mtu: 1330,
			want: []tunnel.Object{
				tunnel.Link{Name: "flannel-v6.4096", Type: tunnel.LinkVXLAN, MTU: 1330, MAC: own6.MAC, VNI: 4096, Port: 4789, Local: addr("fd77::1"), Parent: "eth0", Learning: true, GBP: true},
				tunnel.Link{Name: "flannel.4096", Type: tunnel.LinkVXLAN, MTU: 1350, MAC: own4.MAC, VNI: 4096, Port: 4789, Local: addr("192.168.7.1"), Parent: "eth0", Learning: true, GBP: true},
				tunnel.Address{Link: "flannel-v6.4096", Prefix: prefix("fd00:10:244:3c::/128")},
				tunnel.Address{Link: "flannel.4096", Prefix: prefix("10.244.17.0/32")},
				tunnel.Firewall{Network: prefix("10.244.0.0/16"), Subnet: own4.Subnet, Masquerade: true, RandomFully: true, Forward: true},
				tunnel.Firewall{Network: prefix("fd00:10:244::/48"), Subnet: own6.Subnet, Masquerade: true, RandomFully: true, Forward: true},
				tunnel.Route{Prefix: own4.Subnet, Blackhole: true},
				tunnel.Route{Prefix: own6.Subnet, Blackhole: true},
			},
		},
		{
			name: "forward rules alone do not randomise ports",
			world: golden().only(ipv4).with(func(w *world) {
				w.policy.Backend, w.policy.RandomFully, w.policy.ForwardRules = "host-gw", true, true
				w.snapshot.Leases = nil
			}),
			mtu:  1500,
			want: []tunnel.Object{tunnel.Firewall{Network: prefix("10.244.0.0/16"), Subnet: own4.Subnet, Forward: true}},
		},
		{
			name:  "DirectRouting",
			world: golden().with(func(w *world) { w.policy.Direct = true; w.self.Underlay.OnLink = w.self.Underlay.OnLink[:1] }),
			mtu:   1430,
			want: []tunnel.Object{
				link6, link4, addr6, addr4,
				tunnel.Neighbor{Link: "flannel-v6.1", IP: addr("fd00:10:244:1c::"), MAC: peer6.MAC},
				tunnel.FDBEntry{Link: "flannel-v6.1", MAC: peer6.MAC, Remote: addr("fd77::2")},
				tunnel.Route{Prefix: prefix("10.244.1.0/24"), Via: addr("192.168.7.2"), Link: "eth0"},
				tunnel.Route{Prefix: prefix("fd00:10:244:1c::/64"), Via: addr("fd00:10:244:1c::"), Link: "flannel-v6.1", OnLink: true},
			},
		},
		{
			name: "host-gw",
			world: golden().with(func(w *world) {
				w.policy.Backend = "host-gw"
				near, far := lease("b", peer4, peer6), lease("c", control.Leg{Subnet: prefix("10.244.9.0/24"), PublicIP: addr("192.168.8.1")})
				near.Backend, far.Backend = "host-gw", "host-gw"
				w.snapshot.Leases = []control.Lease{near, far}
			}),
			mtu: 1500,
			want: []tunnel.Object{
				tunnel.Route{Prefix: prefix("10.244.1.0/24"), Via: addr("192.168.7.2"), Link: "eth0"},
				tunnel.Route{Prefix: prefix("fd00:10:244:1c::/64"), Via: addr("fd77::2"), Link: "eth0"},
			},
		},
		{
			name:  "userspace",
			world: golden().with(func(w *world) { w.self.Engine = tunnel.EngineUserspace }),
			mtu:   1430,
			want: []tunnel.Object{
				tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1430},
				tunnel.Address{Link: "weft0", Prefix: prefix("10.244.17.0/32")},
				tunnel.Address{Link: "weft0", Prefix: prefix("fd00:10:244:3c::/128")},
				tunnel.Route{Prefix: prefix("10.244.1.0/24"), Link: "weft0"},
				tunnel.Route{Prefix: prefix("fd00:10:244:1c::/64"), Link: "weft0"},
			},
		},
		{
			name: "published address behind a NAT is not bound",
			world: golden().only(ipv4).with(func(w *world) {
				legs := []control.Leg{own4}
				legs[0].PublicIP = addr("203.0.113.9")
				w.self.Lease.Legs = legs
				w.snapshot.Leases = nil
			}),
			mtu:  1450,
			want: []tunnel.Object{link4, addr4},
		},
		{
			name:  "an outer MTU the underlay does not carry",
			world: golden().only(ipv4).with(func(w *world) { w.policy.MTU = 9000; w.snapshot.Leases = nil }),
			mtu:   1450,
			want:  []tunnel.Object{link4, addr4},
		},
		{
			name:  "one VTEP with two subnets shares its FDB entry",
			world: golden().only(ipv4).with(func(w *world) { w.snapshot.Leases = []control.Lease{lease("old", peer4), lease("new", moved(peer4))} }),
			mtu:   1450,
			want: []tunnel.Object{
				link4, addr4,
				tunnel.Neighbor{Link: "flannel.1", IP: addr("10.244.1.0"), MAC: peer4.MAC},
				tunnel.Neighbor{Link: "flannel.1", IP: addr("10.244.200.0"), MAC: peer4.MAC},
				tunnel.FDBEntry{Link: "flannel.1", MAC: peer4.MAC, Remote: addr("192.168.7.2")},
				tunnel.Route{Prefix: prefix("10.244.1.0/24"), Via: addr("10.244.1.0"), Link: "flannel.1", OnLink: true},
				tunnel.Route{Prefix: prefix("10.244.200.0/24"), Via: addr("10.244.200.0"), Link: "flannel.1", OnLink: true},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.world.plan()
			if !reflect.DeepEqual(got.Objects, tt.want) {
				t.Errorf("objects:\n%s\nwant:\n%s", lines(got.Objects), lines(tt.want))
			}
			if got.MTU != tt.mtu {
				t.Errorf("MTU %d, want %d", got.MTU, tt.mtu)
			}
		})
	}
}

// moved is a leg of the same VTEP with another subnet.
func moved(l control.Leg) control.Leg {
	l.Subnet = prefix("10.244.200.0/24")
	return l
}
