package plan

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func lines[T any](values []T) string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintf(&b, "\t%+v\n", v)
	}
	return b.String()
}

func keyOf(kind tunnel.Kind, name string) tunnel.Key { return tunnel.Key{Kind: kind, Name: name} }

func TestPlanWays(t *testing.T) {
	link4, addr4 := keyOf(tunnel.KindLink, "flannel.1"), keyOf(tunnel.KindAddress, "flannel.1 10.244.17.0/32")
	route4 := keyOf(tunnel.KindRoute, "10.244.1.0/24")
	tests := []struct {
		name  string
		world world
		want  control.Way
	}{
		{
			name:  "kernel",
			world: golden().only(ipv4),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineKernel, MTU: 1450,
				Reason: "the network uses vxlan",
				Objects: []tunnel.Key{link4, addr4, keyOf(tunnel.KindNeighbor, "flannel.1 10.244.1.0"),
					keyOf(tunnel.KindFDB, "flannel.1 1a:dc:8d:ed:47:fd"), route4}},
		},
		{
			name:  "userspace",
			world: golden().only(ipv4).with(func(w *world) { w.self.Engine = tunnel.EngineUserspace; w.policy.Port = 4789 }),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:4789"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineUserspace, MTU: 1450,
				Reason:  "the network uses vxlan",
				Objects: []tunnel.Key{keyOf(tunnel.KindLink, "weft0"), keyOf(tunnel.KindAddress, "weft0 10.244.17.0/32"), route4}},
		},
		{
			name:  "userspace, to a host that finishes checksums",
			world: golden().only(ipv4).with(func(w *world) { w.self.Engine = tunnel.EngineUserspace; w.offer("b") }),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineUserspace, MTU: 1450,
				RemoteChecksum: true, Reason: "the network uses vxlan",
				Objects: []tunnel.Key{keyOf(tunnel.KindLink, "weft0"), keyOf(tunnel.KindAddress, "weft0 10.244.17.0/32"), route4}},
		},
		{
			name: "direct",
			world: golden().only(ipv4).with(func(w *world) {
				w.policy.Direct = true
				w.self.Engine = tunnel.EngineUserspace
				w.self.Underlay.OnLink = []netip.Prefix{prefix("192.168.0.0/16"), prefix("192.168.7.0/24"), prefix("192.0.0.0/8")}
			}),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:0"), Encap: tunnel.EncapDirect, Engine: tunnel.EngineKernel, MTU: 1500,
				Others: []control.Option{{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineUserspace, MTU: 1450}},
				Reason: "192.168.7.2 is on-link on eth0 (192.168.7.0/24)", Objects: []tunnel.Key{route4}},
		},
		{
			name: "direct is near, and not where the pods are",
			world: golden().only(ipv4).with(func(w *world) {
				w.policy.Direct = true
				w.self.Underlay.OnLink = []netip.Prefix{prefix("192.168.7.0/24")}
				w.noDirect()
			}),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineKernel, MTU: 1450,
				Reason: "the host's pods are not where its address is",
				Objects: []tunnel.Key{link4, addr4, keyOf(tunnel.KindNeighbor, "flannel.1 10.244.1.0"),
					keyOf(tunnel.KindFDB, "flannel.1 1a:dc:8d:ed:47:fd"), route4}},
		},
		{
			name: "no device",
			world: golden().only(ipv4).with(func(w *world) {
				w.policy.Direct, w.policy.Masquerade, w.policy.Blackhole = true, true, true
				w.self.Engine, w.self.Device = tunnel.EngineUserspace, ""
				w.self.Underlay.OnLink = []netip.Prefix{prefix("192.168.7.0/24")}
			}),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineUserspace, MTU: 1450,
				Reason: "this host has no device and routes nothing directly"},
		},
		{
			name:  "direct is not possible",
			world: golden().only(ipv4).with(func(w *world) { w.policy.Direct = true; w.self.Underlay.OnLink = nil }),
			want: control.Way{Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineKernel, MTU: 1450,
				Reason: "192.168.7.2 is not on-link on eth0",
				Objects: []tunnel.Key{link4, addr4, keyOf(tunnel.KindNeighbor, "flannel.1 10.244.1.0"),
					keyOf(tunnel.KindFDB, "flannel.1 1a:dc:8d:ed:47:fd"), route4}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.want.Subnet = peer4.Subnet
			want := []control.HostPlan{{Host: "b", Ways: []control.Way{tt.want}}}
			if got := tt.world.plan().Hosts; !reflect.DeepEqual(got, want) {
				t.Errorf("hosts:\n%s\nwant:\n%s", lines(got), lines(want))
			}
		})
	}
}

// noDirect has no host offer to be routed to.
func (w *world) noDirect() {
	for i := range w.snapshot.Leases {
		w.snapshot.Leases[i].Offers.NoDirect = true
	}
}

// TestPlanWithoutDevice: there are peers and nothing to program, and what only
// routes could do is said not to be possible.
func TestPlanWithoutDevice(t *testing.T) {
	without := func(w *world) { w.self.Engine, w.self.Device = tunnel.EngineUserspace, "" }
	got := golden().with(without).plan()
	if len(got.Objects) != 0 || len(got.Peers) != 2 || len(got.Locals) != 2 || got.MTU != 1430 {
		t.Errorf("objects %v, %d peers, %d locals, MTU %d", got.Objects, len(got.Peers), len(got.Locals), got.MTU)
	}
	for name, change := range map[string]func(w *world){
		"this host has no device": without,
		"pods are not where":      (*world).noDirect,
	} {
		got := golden().only(ipv4).with(func(w *world) {
			w.policy.Backend = "host-gw"
			w.self.Underlay.OnLink = []netip.Prefix{prefix("192.168.7.0/24")}
			for i := range w.snapshot.Leases {
				w.snapshot.Leases[i].Backend = "host-gw"
			}
			change(w)
		}).plan()
		if hosts := got.Hosts; len(hosts) != 1 || len(hosts[0].Ways) != 0 || !strings.Contains(strings.Join(hosts[0].Reasons, ";"), name) {
			t.Errorf("%s: %+v", name, hosts)
		}
	}
}

func TestPlanForTheUserspaceEngine(t *testing.T) {
	got := golden().with(func(w *world) {
		w.self.Engine = tunnel.EngineUserspace
		direct := moved(peer4)
		direct.PublicIP, direct.MAC = addr("10.1.1.1"), mac("02:00:00:00:00:01")
		w.snapshot.Leases = []control.Lease{lease("z", direct), lease("b", peer4, peer6)}
	}).plan()
	wantPeers := []tunnel.Peer{
		{Name: "b", Prefixes: []netip.Prefix{peer4.Subnet}, Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), Encap: tunnel.EncapVXLAN, MAC: peer4.MAC, VNI: 1, MTU: 1450},
		{Name: "b", Prefixes: []netip.Prefix{peer6.Subnet}, Endpoint: netip.MustParseAddrPort("[fd77::2]:8472"), Encap: tunnel.EncapVXLAN, MAC: peer6.MAC, VNI: 1, MTU: 1430},
		{Name: "z", Prefixes: []netip.Prefix{prefix("10.244.200.0/24")}, Endpoint: netip.MustParseAddrPort("10.1.1.1:8472"), Encap: tunnel.EncapVXLAN, MAC: mac("02:00:00:00:00:01"), VNI: 1, MTU: 1450},
	}
	if !reflect.DeepEqual(got.Peers, wantPeers) {
		t.Errorf("peers:\n%s\nwant:\n%s", lines(got.Peers), lines(wantPeers))
	}
	wantLocals := []tunnel.Local{{Subnet: own4.Subnet, MAC: own4.MAC, VNI: 1}, {Subnet: own6.Subnet, MAC: own6.MAC, VNI: 1}}
	if !reflect.DeepEqual(got.Locals, wantLocals) {
		t.Errorf("locals:\n%s\nwant:\n%s", lines(got.Locals), lines(wantLocals))
	}
	got = golden().with(func(w *world) { w.self.Engine = tunnel.EngineUserspace; w.offer("b") }).plan()
	for i := range 2 {
		wantPeers[i].RemoteChecksum = true
	}
	if !reflect.DeepEqual(got.Peers, wantPeers[:2]) {
		t.Errorf("peers of a host that finishes checksums:\n%s\nwant:\n%s", lines(got.Peers), lines(wantPeers[:2]))
	}
	kept := golden().with(func(w *world) { w.self.Engine = tunnel.EngineUserspace; w.policy.KeepChecksums = true; w.offer("b") }).plan()
	for i, peer := range kept.Peers {
		if peer.RemoteChecksum || !kept.Hosts[0].Ways[0].KeepChecksums {
			t.Errorf("peer %d is left checksums that the policy keeps: %+v", i, peer)
		}
	}
	offered := golden().with(func(w *world) { w.offer("b") }).plan()
	kernel := golden().plan()
	if !reflect.DeepEqual(offered, kernel) {
		t.Errorf("the kernel engine's plan depends on offers:\n%+v\nwant:\n%+v", offered, kernel)
	}
	if len(kernel.Peers)+len(kernel.Locals) != 0 {
		t.Errorf("the kernel engine has %d peers and %d locals for the userspace engine", len(kernel.Peers), len(kernel.Locals))
	}
}

// TestPlanRefusesAlone holds that a lease which is bad by itself is refused
// with a reason, and leaves the good host next to it as it was.
func TestPlanRefusesAlone(t *testing.T) {
	leg := func(change func(*control.Leg)) func(*control.Lease) {
		return func(l *control.Lease) { change(&l.Legs[0]) }
	}
	tests := []struct {
		name string
		bad  func(*control.Lease)
		want []string
	}{
		{"other backend", func(l *control.Lease) { l.Backend = "host-gw" }, []string{`publishes backend "host-gw", the network uses "vxlan"`}},
		{"problem of its own", func(l *control.Lease) { l.Legs = nil; l.Problems = []string{"public-ip: junk"} },
			[]string{"public-ip: junk", "IPv4: publishes no usable subnet"}},
		{"other VNI", leg(func(l *control.Leg) { l.VNI = 7 }), []string{"IPv4: publishes VNI 7, the network uses 1"}},
		{"no MAC", leg(func(l *control.Leg) { l.MAC = tunnel.MAC{} }), []string{"IPv4: publishes no VTEP MAC"}},
		{"multicast MAC", leg(func(l *control.Leg) { l.MAC = tunnel.MAC{1, 0, 0x5e} }), []string{"IPv4: VTEP MAC 01:00:5e:00:00:00 is not a unicast address"}},
		{"no subnet", leg(func(l *control.Leg) { l.Subnet = netip.Prefix{} }), []string{"publishes no readable subnet", "IPv4: publishes no usable subnet"}},
		{"host bits", leg(func(l *control.Leg) { l.Subnet = prefix("10.244.2.1/24") }), []string{"IPv4: subnet 10.244.2.1/24 has host bits: it must be 10.244.2.0/24"}},
		{"outside the network", leg(func(l *control.Leg) { l.Subnet = prefix("10.9.2.0/24") }), []string{"IPv4: subnet 10.9.2.0/24 is outside the network 10.244.0.0/16"}},
		{"wider than the network", leg(func(l *control.Leg) { l.Subnet = prefix("10.0.0.0/8") }), []string{"IPv4: subnet 10.0.0.0/8 is outside the network 10.244.0.0/16"}},
		{"second subnet", func(l *control.Lease) { l.Legs = append(l.Legs, moved(l.Legs[0])); l.Legs[0].VNI = 7 },
			[]string{"IPv4: publishes VNI 7, the network uses 1", "IPv4: publishes a second subnet 10.244.200.0/24: only the first is used"}},
		{"family we do not have", func(l *control.Lease) { l.Legs = []control.Leg{peer6} },
			[]string{"IPv6: publishes fd00:10:244:1c::/64, the network has no IPv6", "IPv4: publishes no usable subnet"}},
		{"no public address", leg(func(l *control.Leg) { l.PublicIP = netip.Addr{} }), []string{"IPv4: publishes no public address"}},
		{"public address of the other family", leg(func(l *control.Leg) { l.PublicIP = addr("fd77::3") }), []string{"IPv4: public address fd77::3 is not a plain IPv4 address"}},
		{"mapped public address", leg(func(l *control.Leg) { l.PublicIP = addr("::ffff:192.168.7.3") }), []string{"IPv4: public address ::ffff:192.168.7.3 is not a plain IPv4 address"}},
		{"loopback", leg(func(l *control.Leg) { l.PublicIP = addr("127.0.0.1") }), []string{"IPv4: public address 127.0.0.1 is no address a host can be reached at"}},
		{"multicast", leg(func(l *control.Leg) { l.PublicIP = addr("224.0.0.1") }), []string{"IPv4: public address 224.0.0.1 is no address a host can be reached at"}},
		{"broadcast", leg(func(l *control.Leg) { l.PublicIP = addr("255.255.255.255") }), []string{"IPv4: public address 255.255.255.255 is no address a host can be reached at"}},
		{"unspecified", leg(func(l *control.Leg) { l.PublicIP = addr("0.0.0.0") }), []string{"IPv4: public address 0.0.0.0 is no address a host can be reached at"}},
		{"our own address", leg(func(l *control.Leg) { l.PublicIP = own4.PublicIP }), []string{"IPv4: public address 192.168.7.1 is this host's own: one of the two must publish another"}},
		{"in the pod network", leg(func(l *control.Leg) { l.PublicIP = addr("10.244.1.9") }),
			[]string{"IPv4: public address 10.244.1.9 is inside the pod network 10.244.0.0/16: packets to it would loop"}},
		{"our own subnet", leg(func(l *control.Leg) { l.Subnet = own4.Subnet }),
			[]string{`IPv4: subnet 10.244.17.0/24 belongs to host "a": one of the two must change`}},
		{"around our own subnet", leg(func(l *control.Leg) { l.Subnet = prefix("10.244.16.0/22") }),
			[]string{`IPv4: subnet 10.244.16.0/22 belongs to host "a": one of the two must change`}},
		{"inside our own subnet", leg(func(l *control.Leg) { l.Subnet = prefix("10.244.17.128/25") }),
			[]string{`IPv4: subnet 10.244.17.128/25 belongs to host "a": one of the two must change`}},
		{"our own MAC", leg(func(l *control.Leg) { l.MAC = own4.MAC }), []string{`IPv4: VTEP MAC 26:84:0f:b6:ca:63 belongs to host "a": one of the two must change`}},
		{"the peer's subnet", leg(func(l *control.Leg) { l.Subnet = peer4.Subnet }), []string{`IPv4: subnet 10.244.1.0/24 belongs to host "b": one of the two must change`}},
		{"around the peer's subnet", leg(func(l *control.Leg) { l.Subnet = prefix("10.244.0.0/20") }),
			[]string{`IPv4: subnet 10.244.0.0/20 belongs to host "b": one of the two must change`}},
		{"the peer's MAC", leg(func(l *control.Leg) { l.MAC = peer4.MAC }), []string{`IPv4: VTEP MAC 1a:dc:8d:ed:47:fd belongs to host "b": one of the two must change`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := golden().only(ipv4)
			alone := w.plan()
			bad := lease("evil", control.Leg{Subnet: prefix("10.244.2.0/24"), PublicIP: addr("192.168.7.3"), MAC: mac("02:00:00:00:00:02"), VNI: 1})
			tt.bad(&bad)
			w.snapshot.Leases = append(w.snapshot.Leases, bad)
			got := w.plan()
			if !reflect.DeepEqual(got.Hosts[1], control.HostPlan{Host: "evil", Reasons: tt.want}) {
				t.Errorf("got %+v\nwant reasons %q", got.Hosts[1], tt.want)
			}
			if !reflect.DeepEqual(got.Objects, alone.Objects) || !reflect.DeepEqual(got.Hosts[0], alone.Hosts[0]) {
				t.Errorf("the bad host changed the rest of the plan:\n%s", lines(got.Objects))
			}
		})
	}
}

// TestPlanOwnProblems holds what this host says when it is the one that is wrong.
func TestPlanOwnProblems(t *testing.T) {
	tests := []struct {
		name   string
		change func(*world)
		want   control.Problem
		ways   int // of the peer, of two
	}{
		{"podCIDR outside Network", func(w *world) { w.policy.Networks = []netip.Prefix{prefix("10.0.0.0/24"), w.policy.Networks[1]} },
			control.Problem{Source: "a", Reason: "IPv4: own subnet 10.244.17.0/24 is outside the network 10.0.0.0/24: change Network or this host's subnet"}, 1},
		{"no lease in a family", func(w *world) { w.self.Lease = lease("a", own4) },
			control.Problem{Source: "a", Reason: "IPv6: this host has no subnet: its lease must have one for every network"}, 1},
		{"no address in a family", func(w *world) { w.self.Underlay.Addrs = w.self.Underlay.Addrs[:1] },
			control.Problem{Source: "a", Reason: "IPv6: eth0 has no IPv6 address: give it one, or choose another interface with --iface"}, 1},
		{"network around the hosts", func(w *world) {
			w.policy.Networks = []netip.Prefix{w.policy.Networks[0], prefix("fd00::/8")}
		}, control.Problem{Source: "a", Reason: "IPv6: underlay address fd77::1 is inside the pod network fd00::/8: the network must not contain the hosts' own addresses"}, 1},
		{"two networks of a family", func(w *world) {
			w.policy.Networks = append([]netip.Prefix{prefix("10.244.0.0/16")}, w.policy.Networks...)
		},
			control.Problem{Source: "net-conf.json", Reason: "has two IPv4 networks, 10.244.0.0/16 and 10.244.0.0/16: only the first is used"}, 2},
		{"network that is none", func(w *world) { w.policy.Networks = append([]netip.Prefix{{}}, w.policy.Networks...) },
			control.Problem{Source: "net-conf.json", Reason: "has a network that is no prefix: write it as 10.244.0.0/16"}, 2},
		{"MTU too large", func(w *world) { w.policy.MTU = 9000 },
			control.Problem{Source: "net-conf.json", Reason: "Backend.MTU 9000 is more than the 1500 bytes that eth0 carries: lower it or raise the MTU of eth0; 1500 is used"}, 2},
		{"MTU too small for IPv6", func(w *world) { w.self.Underlay.MTU = 1280 },
			control.Problem{Source: "a", Reason: "IPv6: an outer MTU of 1280 leaves 1210 bytes and IPv6 needs 1280: raise the MTU of eth0, or Backend.MTU"}, 1},
		{"unknown backend", func(w *world) { w.policy.Backend = "udp" },
			control.Problem{Source: "a", Reason: `IPv4: backend "udp" is not known: set Backend.Type to vxlan, host-gw or wireguard`}, 0},
		{"host-gw behind a NAT", func(w *world) {
			w.policy.Backend = "host-gw"
			w.snapshot.Leases[1].Backend = "host-gw"
			legs := []control.Leg{own4, own6}
			legs[0].PublicIP = addr("203.0.113.1")
			w.self.Lease.Legs = legs
		}, control.Problem{Source: "a", Reason: "IPv4: public address 203.0.113.1 is not eth0's own 192.168.7.1: host-gw does not work behind a NAT, use vxlan"}, 1},
		{"no own MAC", func(w *world) {
			w.self.Lease.Legs = []control.Leg{{Subnet: own4.Subnet, PublicIP: own4.PublicIP}, own6}
		},
			control.Problem{Source: "a", Reason: "IPv4: own lease has no VTEP MAC"}, 1},
		{"problem in the own lease", func(w *world) { w.self.Lease.Problems = []string{"junk"} }, control.Problem{Source: "a", Reason: "junk"}, 2},
		{"problem of the source", func(w *world) {
			w.snapshot.Problems = slices.Repeat([]control.Problem{{Source: "/x/subnets/y", Reason: "no lease"}}, 2)
		},
			control.Problem{Source: "/x/subnets/y", Reason: "no lease"}, 2},
		{"own subnet claimed", func(w *world) {
			w.snapshot.Leases = append(w.snapshot.Leases, lease("c", control.Leg{Subnet: own4.Subnet, PublicIP: addr("192.168.7.9"), MAC: mac("02:00:00:00:00:09")}))
		}, control.Problem{Source: "a", Reason: `keeps subnet 10.244.17.0/24, which host "c" claims too`}, 2},
		{"own subnet lost elsewhere", func(w *world) {
			w.snapshot.Leases = append(w.snapshot.Leases, lease("c", control.Leg{Subnet: prefix("10.244.17.128/25"), PublicIP: addr("192.168.7.9"), MAC: mac("02:00:00:00:00:09")}))
		}, control.Problem{Source: "a", Reason: `subnet 10.244.17.0/24 belongs to host "c" on every other host: one of the two must change`}, 2},
		{"own lease others refuse", func(w *world) {
			w.self.Lease.Legs = []control.Leg{{Subnet: own4.Subnet, PublicIP: addr("127.0.0.1"), MAC: own4.MAC}, own6}
		},
			control.Problem{Source: "a", Reason: "IPv4: other hosts will refuse the own lease: public address 127.0.0.1 is no address a host can be reached at"}, 2},
		{"peer's subnet claimed", func(w *world) {
			w.snapshot.Leases = append(w.snapshot.Leases, lease("c", control.Leg{Subnet: peer4.Subnet, PublicIP: addr("192.168.7.9"), MAC: mac("02:00:00:00:00:09")}))
		}, control.Problem{Source: "b", Reason: `keeps subnet 10.244.1.0/24, which host "c" claims too`}, 2},
		{"public address shared", func(w *world) {
			w.snapshot.Leases = append(w.snapshot.Leases, lease("c", control.Leg{Subnet: prefix("10.244.3.0/24"), PublicIP: peer4.PublicIP, MAC: mac("02:00:00:00:00:09")}))
		}, control.Problem{Source: "c", Reason: `public address 192.168.7.2 is also that of host "b": at most one of them can be reached there`}, 2},
		{"one host, two leases", func(w *world) { w.snapshot.Leases = append(w.snapshot.Leases, lease("b")) },
			control.Problem{Source: "b", Reason: "has more than one lease: only the first is used"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := golden().with(tt.change).plan()
			if !strings.Contains(lines(got.Problems), lines([]control.Problem{tt.want})) {
				t.Errorf("problems:\n%s\nwant among them:\n\t%+v", lines(got.Problems), tt.want)
			}
			if n := strings.Count(lines(got.Problems), lines([]control.Problem{tt.want})); n != 1 {
				t.Errorf("the problem is there %d times", n)
			}
			if n := len(got.Hosts[0].Ways); n != tt.ways {
				t.Errorf("the peer has %d ways, want %d: %q", n, tt.ways, got.Hosts[0].Reasons)
			}
		})
	}
}

// TestPlanConflictWinner holds that two hosts see the same winner, and that a
// wide claim, whatever its name, takes nothing from anybody.
func TestPlanConflictWinner(t *testing.T) {
	leg := func(subnet, public, m string) control.Leg {
		return control.Leg{Subnet: prefix(subnet), PublicIP: addr(public), MAC: mac(m), VNI: 1}
	}
	w := golden().only(ipv4)
	w.snapshot.Leases = []control.Lease{
		lease("aa-wide", leg("10.244.0.0/19", "192.168.7.20", "02:00:00:00:00:20")),
		lease("b", peer4),
		lease("c", leg("10.244.1.0/24", "192.168.7.21", "02:00:00:00:00:21")),
		lease("d", leg("10.244.2.0/24", "192.168.7.22", "02:00:00:00:00:22")),
		lease("e", leg("10.244.2.128/25", "192.168.7.23", "02:00:00:00:00:23")),
		lease("f", leg("10.244.3.0/24", "192.168.7.24", "02:00:00:00:00:23")),
	}
	ways := map[string]int{}
	for _, h := range w.plan().Hosts {
		ways[h.Host] = len(h.Ways)
	}
	want := map[string]int{"aa-wide": 0, "b": 1, "c": 0, "d": 0, "e": 1, "f": 0}
	if !reflect.DeepEqual(ways, want) {
		t.Errorf("ways %v, want %v", ways, want)
	}
}
