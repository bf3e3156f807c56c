package plan

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// keyOfHost is a public key that stands for a name.
func keyOfHost(name string) tunnel.PublicKey {
	var key tunnel.PublicKey
	copy(key[:], name)
	return key
}

// wireGuardOffer is that of a host with one key, on flannel's ports.
func wireGuardOffer(host string) control.WireGuardOffer {
	return control.WireGuardOffer{Keys: tunnel.WireGuardKeys{keyOfHost(host)}, Ports: [2]uint16{51820, 51821}}
}

// secret makes hosts offer WireGuard; the own one has an engine for it.
func secret(hosts ...string) func(*world) {
	return func(w *world) {
		w.change(func(l *control.Lease) {
			if slices.Contains(hosts, l.Host) {
				l.Offers.WireGuard = wireGuardOffer(l.Host)
			}
		})
		if slices.Contains(hosts, w.self.Host) {
			w.self.WireGuard = tunnel.EngineUserspace
		}
	}
}

// change changes a copy of every lease, the own one as well.
func (w *world) change(with func(*control.Lease)) {
	leases := slices.Clone(w.snapshot.Leases)
	for i := range leases {
		leases[i].Legs = slices.Clone(leases[i].Legs)
		with(&leases[i])
	}
	w.snapshot.Leases = leases
	w.self.Lease.Legs = slices.Clone(w.self.Lease.Legs)
	with(&w.self.Lease)
}

// guest makes a host one that holds its lease by an invite.
func guest(host string) func(*world) {
	return func(w *world) { w.change(func(l *control.Lease) { l.Guest = l.Guest || l.Host == host }) }
}

func prefer(encaps ...tunnel.Encap) func(*world) {
	return func(w *world) { w.policy.Prefer = encaps }
}

func encrypt(policy control.Encrypt) func(*world) {
	return func(w *world) { w.policy.Encrypt = policy }
}

func off(host string) func(*world) {
	return func(w *world) {
		w.change(func(l *control.Lease) { l.Offers.VXLAN.Off = l.Offers.VXLAN.Off || l.Host == host })
	}
}

func failed(encap tunnel.Encap, why string) func(*world) {
	return func(w *world) {
		all := map[control.WayID]string{}
		for id, text := range w.self.Failed {
			all[id] = text
		}
		all[control.WayID{Host: "b", Is4: true, Encap: encap}] = why
		w.self.Failed = all
	}
}

const (
	direct    = tunnel.EncapDirect
	vxlan     = tunnel.EncapVXLAN
	wireguard = tunnel.EncapWireGuard
)

func backendOf(name string) func(*world) {
	return func(w *world) {
		w.policy.Backend = name
		w.change(func(l *control.Lease) { l.Backend = name })
	}
}

// flannelKeys gives every leg a key in the form of the backend wireguard.
func flannelKeys(w *world) {
	w.change(func(l *control.Lease) {
		for i := range l.Legs {
			l.Legs[i].MAC, l.Legs[i].VNI = tunnel.MAC{}, 0
			l.Legs[i].Key, l.Legs[i].Port = keyOfHost(l.Host), 51820+uint16(i)
		}
	})
	w.self.WireGuard = tunnel.EngineKernel
}

// TestChoice holds what is chosen for a pair, what stands by, and why.
func TestChoice(t *testing.T) {
	both := secret("a", "b")
	far := func(w *world) { w.self.Underlay.OnLink = nil }
	tests := []struct {
		name   string
		with   []func(*world)
		want   tunnel.Encap // empty: unreachable
		others []tunnel.Encap
		sealed bool
		reason string
		mtu    int // of pods
	}{
		{"nobody offers", nil, vxlan, nil, false, "the network uses vxlan", 1450},
		{"only this host offers", []func(*world){secret("a")}, vxlan, nil, false, "the network uses vxlan", 1450},
		{"both offer", []func(*world){both}, vxlan, []tunnel.Encap{wireguard}, false, "the network uses vxlan", 1450},
		{"never", []func(*world){both, encrypt(control.EncryptNever)}, vxlan, []tunnel.Encap{wireguard}, false, "the network uses vxlan", 1450},
		{"nothing carries it here", []func(*world){both, func(w *world) { w.self.WireGuard = "" }}, vxlan, nil, false, "the network uses vxlan", 1450},
		{"the other terminates no VXLAN", []func(*world){both, off("b")}, wireguard, nil, false, "the host terminates no VXLAN", 1450},
		{"this one terminates no VXLAN", []func(*world){both, off("a")}, wireguard, nil, false, "this host terminates no VXLAN", 1440},
		{"no VXLAN and no WireGuard", []func(*world){off("b")}, "", nil, false, "IPv4: the host terminates no VXLAN; this host offers no WireGuard over IPv4", 1450},
		{"vxlan has failed", []func(*world){both, failed(vxlan, "8472 filtered: sent 5, got 0")}, wireguard, []tunnel.Encap{vxlan}, false, "vxlan: 8472 filtered: sent 5, got 0", 1450},
		{"all have failed", []func(*world){both, failed(vxlan, "filtered"), failed(wireguard, "no answer")}, vxlan, []tunnel.Encap{wireguard}, false,
			"vxlan: filtered; wireguard: no answer; vxlan is kept for want of a way that works", 1450},
		{"the only one has failed", []func(*world){failed(vxlan, "filtered")}, vxlan, nil, false,
			"vxlan: filtered; this host offers no WireGuard over IPv4; vxlan is kept for want of a way that works", 1450},
		{"prefer wireguard", []func(*world){both, prefer(wireguard, vxlan)}, wireguard, []tunnel.Encap{vxlan}, false, "net-conf's Prefer begins with wireguard", 1440},
		{"prefer wireguard, which has failed", []func(*world){both, prefer(wireguard, vxlan), failed(wireguard, "no answer")}, vxlan, []tunnel.Encap{wireguard}, false, "wireguard: no answer", 1440},
		{"prefer wireguard, a flanneld", []func(*world){secret("a"), prefer(wireguard, vxlan)}, vxlan, nil, false, "the host offers no WireGuard over IPv4", 1440},
		{"prefer without vxlan", []func(*world){secret("a"), prefer(direct, wireguard), far}, "", nil, false,
			"IPv4: 192.168.7.2 is not on-link on eth0; the host offers no WireGuard over IPv4", 1440},
		{"prefer direct", []func(*world){both, prefer(direct, wireguard, vxlan)}, direct, []tunnel.Encap{wireguard, vxlan}, false, "192.168.7.2 is on-link on eth0 (192.168.7.0/24)", 1440},
		{"prefer direct, far", []func(*world){both, prefer(direct, wireguard, vxlan), far}, wireguard, []tunnel.Encap{vxlan}, false, "192.168.7.2 is not on-link on eth0", 1440},
		{"prefer without direct", []func(*world){both, prefer(vxlan), func(w *world) { w.policy.Direct = true }}, vxlan, nil, false, "net-conf's Prefer begins with vxlan", 1450},
		{"direct last", []func(*world){prefer(wireguard, direct)}, direct, nil, false,
			"this host offers no WireGuard over IPv4; 192.168.7.2 is on-link on eth0 (192.168.7.0/24)", 1440},
		{"direct that failed", []func(*world){prefer(direct, vxlan), failed(direct, "no answer")}, vxlan, []tunnel.Encap{direct}, false, "direct: no answer", 1450},
		{"own pods are elsewhere", []func(*world){prefer(direct, vxlan), func(w *world) { w.self.Lease.Offers.NoDirect = true }}, vxlan, nil, false,
			"this host's pods are not where its address is", 1450},

		{"the peer is a guest", []func(*world){both, guest("b")}, wireguard, nil, true, "the host is a guest, and net-conf's Encrypt is guests", 1450},
		{"this host is a guest", []func(*world){both, guest("a"), encrypt(control.EncryptGuests)}, wireguard, nil, true, "this host is a guest, and net-conf's Encrypt is guests", 1440},
		{"a guest, and direct", []func(*world){both, guest("b"), prefer(direct, vxlan, wireguard)}, wireguard, nil, true, "the host is a guest, and net-conf's Encrypt is guests", 1450},
		{"a guest, and no answer", []func(*world){both, guest("b"), failed(wireguard, "no answer")}, wireguard, nil, true,
			"the host is a guest, and net-conf's Encrypt is guests; wireguard: no answer; wireguard is kept for want of a way that works", 1450},
		{"a guest of an older weft", []func(*world){secret("a"), guest("b")}, vxlan, nil, false,
			"the network uses vxlan; not encrypted although the host is a guest: the host offers no WireGuard over IPv4", 1450},
		{"a guest and a flanneld", []func(*world){secret("a"), guest("a")}, vxlan, nil, false,
			"the network uses vxlan; not encrypted although this host is a guest: the host offers no WireGuard over IPv4", 1440},
		{"a guest that Prefer leaves in clear", []func(*world){both, guest("b"), prefer(vxlan)}, vxlan, nil, false,
			"net-conf's Prefer begins with vxlan; not encrypted although the host is a guest: net-conf's Prefer lacks wireguard", 1450},
		{"a guest, never", []func(*world){both, guest("b"), encrypt(control.EncryptNever)}, vxlan, []tunnel.Encap{wireguard}, false, "the network uses vxlan", 1450},
		// Both offer it, so the other end sends nothing in clear and takes nothing in.
		{"a guest, and nothing here carries it", []func(*world){both, guest("b"), func(w *world) { w.self.WireGuard = "" }}, "", nil, false,
			"IPv4: the host is a guest, and net-conf's Encrypt is guests, and nothing on this host carries WireGuard", 1450},

		{"always", []func(*world){both, encrypt(control.EncryptAlways), prefer(direct, vxlan, wireguard)}, wireguard, nil, true, "net-conf's Encrypt is always", 1440},
		{"always, a flanneld", []func(*world){secret("a"), encrypt(control.EncryptAlways)}, "", nil, false,
			"IPv4: net-conf's Encrypt is always, and the host offers no WireGuard over IPv4", 1440},
		{"always, no answer", []func(*world){both, encrypt(control.EncryptAlways), failed(wireguard, "no answer")}, wireguard, nil, true,
			"net-conf's Encrypt is always; wireguard: no answer; wireguard is kept for want of a way that works", 1440},

		{"host-gw", []func(*world){both, backendOf("host-gw")}, direct, nil, false, "192.168.7.2 is on-link on eth0 (192.168.7.0/24)", 1500},
		{"host-gw, far", []func(*world){both, backendOf("host-gw"), far}, "", nil, false,
			"IPv4: 192.168.7.2 is not on-link on eth0: host-gw needs all hosts on one layer 2, use vxlan otherwise", 1500},
		{"host-gw with wireguard, far", []func(*world){both, backendOf("host-gw"), prefer(direct, wireguard), far}, wireguard, nil, false, "192.168.7.2 is not on-link on eth0", 1440},
		{"host-gw and a guest", []func(*world){both, backendOf("host-gw"), guest("b"), far}, wireguard, nil, true, "the host is a guest, and net-conf's Encrypt is guests", 1500},

		{"wireguard", []func(*world){backendOf("wireguard"), flannelKeys}, wireguard, nil, true, "the network uses wireguard", 1420},
		{"wireguard, never", []func(*world){backendOf("wireguard"), flannelKeys, encrypt(control.EncryptNever)}, wireguard, nil, true, "the network uses wireguard", 1420},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := golden().only(ipv4)
			for _, change := range tt.with {
				w = w.with(change)
			}
			got := w.plan()
			if got.MTU != tt.mtu {
				t.Errorf("MTU %d, want %d", got.MTU, tt.mtu)
			}
			host := got.Hosts[0]
			if tt.want == "" {
				if len(host.Ways) != 0 || !slices.Equal(host.Reasons, []string{tt.reason}) {
					t.Errorf("have %+v\nwant %q", host, tt.reason)
				}
				return
			}
			if len(host.Ways) != 1 || len(host.Reasons) != 0 {
				t.Fatalf("have %+v", host)
			}
			way := host.Ways[0]
			var others []tunnel.Encap
			for _, o := range way.Others {
				others = append(others, o.Encap)
			}
			if way.Encap != tt.want || !slices.Equal(others, tt.others) || way.Sealed != tt.sealed || way.Reason != tt.reason {
				t.Errorf("have %s, others %v, sealed: %t, because %q\nwant %s, others %v, sealed: %t, because %q",
					way.Encap, others, way.Sealed, way.Reason, tt.want, tt.others, tt.sealed, tt.reason)
			}
		})
	}
}

// TestWireGuardObjects holds what the ways are made of, in both engines.
func TestWireGuardObjects(t *testing.T) {
	route := prefix("10.244.1.0/24")
	end := netip.MustParseAddrPort("192.168.7.2:51820")
	tun := []tunnel.Object{tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1450}, tunnel.Address{Link: "weft0", Prefix: prefix("10.244.17.0/32")}}
	wg := tunnel.Link{Name: "flannel-wg", Type: tunnel.LinkWireGuard, MTU: 1440, Port: 51820, PublicKey: keyOfHost("a")}
	wgAddr := tunnel.Address{Link: "flannel-wg", Prefix: prefix("10.244.17.0/32")}
	wgPeer := tunnel.WireGuardPeer{Link: "flannel-wg", PublicKey: keyOfHost("b"), Endpoint: end, Subnet: route, Keepalive: 25}
	standBy := wgPeer
	standBy.Keepalive = 0
	kernel := func(w *world) { w.self.WireGuard = tunnel.EngineKernel }
	userspace := func(w *world) { w.self.Engine = tunnel.EngineUserspace }
	overVXLAN := []tunnel.Object{
		tunnel.Neighbor{Link: "flannel.1", IP: addr("10.244.1.0"), MAC: peer4.MAC},
		tunnel.FDBEntry{Link: "flannel.1", MAC: peer4.MAC, Remote: addr("192.168.7.2")},
		tunnel.Route{Prefix: route, Via: addr("10.244.1.0"), Link: "flannel.1", OnLink: true},
	}
	for _, tt := range []struct {
		name string
		with []func(*world)
		want []tunnel.Object
		peer tunnel.Peer // zero: none
		mac  tunnel.MAC  // that the engine terminates; zero with a peer: WireGuard alone
	}{
		{"one engine for both", []func(*world){userspace, failed(vxlan, "filtered")},
			append(slices.Clone(tun), tunnel.Route{Prefix: route, Link: "weft0", MTU: 1440}),
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, Keepalive: 25, VXLAN: netip.MustParseAddrPort("192.168.7.2:8472"), MAC: peer4.MAC, VNI: 1}, own4.MAC},
		{"one engine for both, VXLAN in use", []func(*world){userspace},
			append(slices.Clone(tun), tunnel.Route{Prefix: route, Link: "weft0"}),
			tunnel.Peer{Encap: vxlan, Endpoint: netip.MustParseAddrPort("192.168.7.2:8472"), MTU: 1450, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, MAC: peer4.MAC, VNI: 1}, own4.MAC},
		{"one engine, a guest", []func(*world){userspace, guest("b")},
			append(slices.Clone(tun), tunnel.Route{Prefix: route, Link: "weft0", MTU: 1440}),
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, Sealed: true, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, Keepalive: 25}, own4.MAC},
		{"beside the kernel's VXLAN", []func(*world){failed(vxlan, "filtered")},
			[]tunnel.Object{link4, tun[0], addr4, tun[1], tunnel.Route{Prefix: route, Link: "weft0", MTU: 1440}},
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, Keepalive: 25}, tunnel.MAC{}},
		{"beside the kernel's VXLAN, which is in use", nil,
			slices.Concat([]tunnel.Object{link4, tun[0], addr4, tun[1]}, overVXLAN),
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}}, tunnel.MAC{}},
		{"the kernel's", []func(*world){kernel, guest("b")},
			[]tunnel.Object{wg, link4, wgAddr, addr4, wgPeer, tunnel.Route{Prefix: route, Link: "flannel-wg"}}, tunnel.Peer{}, tunnel.MAC{}},
		{"the kernel's, standing by", []func(*world){kernel},
			slices.Concat([]tunnel.Object{wg, link4, wgAddr, addr4}, overVXLAN[:2], []tunnel.Object{standBy}, overVXLAN[2:]), tunnel.Peer{}, tunnel.MAC{}},
		{"a network of flannel's", []func(*world){backendOf("wireguard"), flannelKeys},
			[]tunnel.Object{
				tunnel.Link{Name: "flannel-wg", Type: tunnel.LinkWireGuard, MTU: 1420, Port: 51820, PublicKey: keyOfHost("a")}, wgAddr,
				wgPeer, tunnel.Route{Prefix: route, Link: "flannel-wg"},
			}, tunnel.Peer{}, tunnel.MAC{}},
		{"always", []func(*world){encrypt(control.EncryptAlways)},
			[]tunnel.Object{tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1440}, tun[1], tunnel.Route{Prefix: route, Link: "weft0"}},
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, Sealed: true, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, Keepalive: 25}, tunnel.MAC{}},
		{"no device", []func(*world){userspace, guest("b"), func(w *world) { w.self.Device = "" }}, nil,
			tunnel.Peer{Encap: wireguard, Endpoint: end, MTU: 1440, Sealed: true, WireGuard: end, Keys: tunnel.WireGuardKeys{keyOfHost("b")}, Keepalive: 25}, own4.MAC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := golden().only(ipv4).with(secret("a", "b"))
			w.policy.Keepalive = 25
			for _, change := range tt.with {
				w = w.with(change)
			}
			got := w.plan()
			if !reflect.DeepEqual(got.Objects, tt.want) {
				t.Errorf("objects:\n%s\nwant:\n%s", lines(got.Objects), lines(tt.want))
			}
			var peers []tunnel.Peer
			var locals []tunnel.Local
			if tt.peer.Encap != "" {
				tt.peer.Name, tt.peer.Prefixes = "b", []netip.Prefix{route}
				peers, locals = []tunnel.Peer{tt.peer}, []tunnel.Local{{Subnet: own4.Subnet, MAC: tt.mac}}
				if tt.mac != (tunnel.MAC{}) {
					locals[0].VNI = 1
				}
			}
			if !reflect.DeepEqual(got.Peers, peers) || !reflect.DeepEqual(got.Locals, locals) {
				t.Errorf("peers:\n%slocals:\n%swant:\n%s%s", lines(got.Peers), lines(got.Locals), lines(peers), lines(locals))
			}
		})
	}
}

// TestWireGuardRoom holds the room that WireGuard takes, by family.
func TestWireGuardRoom(t *testing.T) {
	w := golden().with(secret("a", "b")).with(encrypt(control.EncryptAlways))
	got := w.plan()
	if ways := got.Hosts[0].Ways; got.MTU != 1420 || ways[0].MTU != 1440 || ways[1].MTU != 1420 || ways[1].Endpoint.String() != "[fd77::2]:51821" {
		t.Errorf("MTU %d, ways %+v", got.MTU, ways)
	}
	w.self.Underlay.MTU = 1350
	got = w.plan()
	if len(got.Problems) != 1 || !strings.Contains(got.Problems[0].Reason, "IPv6: an outer MTU of 1350 leaves 1270 bytes") {
		t.Errorf("have %+v", got.Problems)
	}
	// Where it is not all there is, VXLAN has room enough.
	got = w.with(encrypt(control.EncryptNever)).plan()
	if ways := got.Hosts[0].Ways; len(ways) != 2 || len(ways[0].Others) != 1 || len(ways[1].Others) != 0 {
		t.Errorf("have %+v", ways)
	}
}

// TestOldFlannel holds that a peer without a port listens where this host does,
// and that of a peer's two keys the kernel has the one in use.
func TestOldFlannel(t *testing.T) {
	w := golden().only(ipv4).with(backendOf("wireguard")).with(flannelKeys)
	w.policy.WireGuardPorts = [2]uint16{7777, 7778}
	w.change(func(l *control.Lease) { l.Legs[0].Port = 0 })
	want := netip.MustParseAddrPort("192.168.7.2:7777")
	if way := w.plan().Hosts[0].Ways[0]; way.Endpoint != want {
		t.Errorf("have %+v, want %v", way, want)
	}
	w.policy.WireGuardPorts = [2]uint16{}
	w.change(func(l *control.Lease) {
		l.Offers.WireGuard = wireGuardOffer(l.Host)
		l.Offers.WireGuard.Keys[1] = keyOfHost(l.Host + " next")
	})
	got := w.plan()
	peer := tunnel.WireGuardPeer{Link: "flannel-wg", PublicKey: keyOfHost("b"), Endpoint: netip.MustParseAddrPort("192.168.7.2:51820"), Subnet: peer4.Subnet}
	if !slices.Contains(got.Objects, tunnel.Object(peer)) {
		t.Errorf("have\n%s", lines(got.Objects))
	}
	w.self.WireGuard = tunnel.EngineUserspace
	if got := w.plan().Peers; len(got) != 1 || got[0].Keys != (tunnel.WireGuardKeys{keyOfHost("b"), keyOfHost("b next")}) {
		t.Errorf("have\n%s", lines(got))
	}
	w.self.WireGuard = ""
	if got := w.plan().Hosts[0].Reasons; len(got) != 1 || !strings.Contains(got[0], "nothing on this host carries WireGuard") {
		t.Errorf("have %q", got)
	}
}

// TestKeyConflicts holds that a key belongs to one host, the same one for all.
func TestKeyConflicts(t *testing.T) {
	third := control.Leg{Subnet: prefix("10.244.9.0/24"), PublicIP: addr("192.168.7.9"), MAC: mac("02:00:00:00:00:09"), VNI: 1}
	w := golden().only(ipv4)
	w.snapshot.Leases = append(w.snapshot.Leases, lease("c", third))
	w = w.with(secret("a", "b", "c"))
	takes := func(host string, key tunnel.PublicKey, slot int) func(*world) {
		return func(w *world) {
			w.change(func(l *control.Lease) {
				if l.Host == host {
					l.Offers.WireGuard.Keys[slot] = key
				}
			})
		}
	}
	for _, tt := range []struct {
		name    string
		with    []func(*world)
		reasons map[string]string // by host
		problem string            // of the winner
	}{
		{"a peer's", []func(*world){takes("c", keyOfHost("b"), 0)},
			map[string]string{"c": `IPv4: WireGuard key ` + keyOfHost("b").String() + ` belongs to host "b": one of the two must change`}, `keeps WireGuard key`},
		{"a peer's other", []func(*world){takes("c", keyOfHost("b"), 1)},
			map[string]string{"c": `IPv4: WireGuard key ` + keyOfHost("b").String() + ` belongs to host "b": one of the two must change`}, `keeps WireGuard key`},
		{"our own", []func(*world){takes("c", keyOfHost("a"), 0)},
			map[string]string{"c": `IPv4: WireGuard key ` + keyOfHost("a").String() + ` belongs to host "a": one of the two must change`}, `keeps WireGuard key`},
		{"our own, by one who wins it elsewhere", []func(*world){takes("c", keyOfHost("a"), 0), func(w *world) {
			w.change(func(l *control.Lease) {
				if l.Host == "c" {
					l.Legs[0].Subnet = prefix("10.244.9.0/25")
				}
			})
		}}, map[string]string{"c": `IPv4: WireGuard key ` + keyOfHost("a").String() + ` belongs to host "a": one of the two must change`},
			`WireGuard key ` + keyOfHost("a").String() + ` belongs to host "c" on every other host: one of the two must change`},
		{"a host with two leases", []func(*world){takes("c", keyOfHost("b"), 0), func(w *world) {
			w.change(func(l *control.Lease) {
				if l.Host == "c" {
					l.Legs[0].PublicIP = peer4.PublicIP
				}
			})
		}}, map[string]string{}, `public address 192.168.7.2 is also that of host "b"`},
		{"of no account", []func(*world){takes("c", keyOfHost("b"), 0), encrypt(control.EncryptNever), prefer(vxlan)}, map[string]string{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := w
			for _, change := range tt.with {
				w = w.with(change)
			}
			got := w.plan()
			for _, h := range got.Hosts {
				want := tt.reasons[h.Host]
				if have := strings.Join(h.Reasons, ""); have != want || (len(h.Ways) == 1) != (want == "") {
					t.Errorf("%s: have %q, want %q, %d ways", h.Host, have, want, len(h.Ways))
				}
			}
			if text := lines(got.Problems); !strings.Contains(text, tt.problem) || tt.problem == "" && len(got.Problems) > 0 {
				t.Errorf("have problems %s, want %q", text, tt.problem)
			}
		})
	}
	// Two leases of one host at one address: one has WireGuard, and a guest's pair
	// is not sent in clear for that.
	w = w.with(takes("c", keyOfHost("b"), 0)).with(guest("c")).with(func(w *world) {
		w.change(func(l *control.Lease) {
			if l.Host == "c" {
				l.Legs[0].PublicIP = peer4.PublicIP
			}
		})
	})
	if h := w.plan().Hosts[1]; len(h.Ways) != 0 || !strings.Contains(h.Reasons[0], `the WireGuard key is also that of host "b"`) {
		t.Errorf("have %+v", h)
	}
}

// TestGuestKeepalive holds that a guest keeps its NAT open although the network
// asks for nothing of the kind, and that others do not.
func TestGuestKeepalive(t *testing.T) {
	for guestHost, want := range map[string]int{"a": 25, "b": 0} {
		w := golden().only(ipv4).with(secret("a", "b")).with(guest(guestHost))
		if peers := w.plan().Peers; len(peers) != 1 || peers[0].Encap != wireguard || peers[0].Keepalive != want {
			t.Errorf("%s is a guest: peers %+v, want a keepalive of %d", guestHost, peers, want)
		}
	}
}
