package kernel

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/tunnel"
)

// secret returns one of the keys that the tests go by.
func secret(n byte) tunnel.SecretKey { return tunnel.SecretKey{0: 8 * n, 1: n, 31: 64} }

var ownKeys = WireGuard{Key: secret(1), Preshared: secret(9)}

// wireguard4 and wireguard6 are the devices that flannel makes on a parent
// with an MTU of 1500.
func wireguard4() tunnel.Link {
	return tunnel.Link{Name: "flannel-wg", Type: tunnel.LinkWireGuard, MTU: 1420, Port: 51820, PublicKey: ownKeys.Key.Public()}
}

func wireguard6() tunnel.Link {
	link := wireguard4()
	link.Name, link.Port = "flannel-wg-v6", 51821
	return link
}

func wireguardPeer(n byte) tunnel.WireGuardPeer {
	return tunnel.WireGuardPeer{
		Link: "flannel-wg", PublicKey: secret(n).Public(),
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, 7, n}), 51820),
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24), Keepalive: 25,
	}
}

func wireguardPeer6(n byte) tunnel.WireGuardPeer {
	peer := wireguardPeer(n)
	peer.Link = "flannel-wg-v6"
	peer.Endpoint = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd77::%x", n)), 51821)
	peer.Subnet = netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", n))
	return peer
}

// wireguardGolden is what flannel's defaults come to, with two peers.
func wireguardGolden() []tunnel.Object {
	return []tunnel.Object{
		wireguard4(), wireguard6(),
		tunnel.Address{Link: "flannel-wg", Prefix: netip.MustParsePrefix("10.244.1.0/32")},
		tunnel.Address{Link: "flannel-wg-v6", Prefix: netip.MustParsePrefix("fd00:10:244:1::/128")},
		wireguardPeer(2), wireguardPeer(3), wireguardPeer6(2), wireguardPeer6(3),
		tunnel.Route{Prefix: netip.MustParsePrefix("10.244.0.0/16"), Link: "flannel-wg"},
		tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244::/48"), Link: "flannel-wg-v6"},
	}
}

// TestWireGuardGolden compares devices with what flannel's code gives them.
func TestWireGuardGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/flannel-wg.txt")
	if err != nil {
		t.Fatal(err)
	}
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		h.apply(wireguardGolden()...)
		h.check(wireguardGolden()...)
		if got := h.wireguardSummary(); got != string(want) {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}

// wireguardSummary shows the devices, a line per fact, as wg and ip would.
func (h *wireguardHost) wireguardSummary() string {
	h.t.Helper()
	var b strings.Builder
	for _, name := range []string{"flannel-wg", "flannel-wg-v6"} {
		device := h.device(name)
		fmt.Fprintf(&b, "%s: port %d fwmark %d public key %s\n", name, device.ListenPort, device.FirewallMark, device.PublicKey)
		slices.SortFunc(device.Peers, func(a, b wgtypes.Peer) int { return strings.Compare(a.PublicKey.String(), b.PublicKey.String()) })
		for _, peer := range device.Peers {
			fmt.Fprintf(&b, "peer %s endpoint %s keepalive %s preshared %s allowed", peer.PublicKey, peer.Endpoint,
				peer.PersistentKeepaliveInterval, peer.PresharedKey)
			for _, ip := range peer.AllowedIPs {
				b.WriteString(" " + ip.String())
			}
			b.WriteString("\n")
		}
		for _, line := range strings.Split(h.run("ip addr show dev "+name), "\n") {
			line = strings.TrimSpace(line)
			if _, mtu, ok := strings.Cut(line, " mtu "); ok {
				b.WriteString("mtu " + strings.Fields(mtu)[0] + "\n")
			}
			if strings.Contains(line, " scope global") {
				b.WriteString(strings.TrimSuffix(strings.TrimSuffix(line, " "+name), " tentative") + "\n")
			}
		}
		for _, command := range []string{"ip route show proto boot dev ", "ip -6 route show proto boot dev "} {
			for line := range strings.Lines(h.run(command + name)) {
				b.WriteString(strings.TrimSpace(line) + "\n")
			}
		}
	}
	return b.String()
}

// TestWireGuardDrift changes by hand what can be changed; each change must be
// seen and mended, with the device and the other peers kept.
func TestWireGuardDrift(t *testing.T) {
	number, none, mark := 4242, time.Duration(0), 7
	private, preshared := wgtypes.Key(secret(5)), wgtypes.Key(secret(6))
	extra := net.IPNet{IP: net.IPv4(10, 9, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}
	peer, link := wireguardPeer(2), wireguard4()
	alterPeer := func(alter func(*wgtypes.PeerConfig)) func(*wireguardHost) {
		config := wgtypes.PeerConfig{PublicKey: wgtypes.Key(peer.PublicKey), UpdateOnly: true}
		alter(&config)
		return func(h *wireguardHost) { h.configure(peer.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{config}}) }
	}
	alterDevice := func(config wgtypes.Config) func(*wireguardHost) {
		return func(h *wireguardHost) { h.configure(link.Name, config) }
	}
	tests := map[string]struct {
		object tunnel.Object
		alter  func(*wireguardHost)
	}{
		"down":           {link, func(h *wireguardHost) { h.run("ip link set flannel-wg down") }},
		"MTU":            {link, func(h *wireguardHost) { h.run("ip link set flannel-wg mtu 1300") }},
		"port":           {link, alterDevice(wgtypes.Config{ListenPort: &number})},
		"mark":           {link, alterDevice(wgtypes.Config{FirewallMark: &mark})},
		"key":            {link, alterDevice(wgtypes.Config{PrivateKey: &private})},
		"preshared":      {peer, alterPeer(func(p *wgtypes.PeerConfig) { p.PresharedKey = &preshared })},
		"keepalive":      {peer, alterPeer(func(p *wgtypes.PeerConfig) { p.PersistentKeepaliveInterval = &none })},
		"more addresses": {peer, alterPeer(func(p *wgtypes.PeerConfig) { p.AllowedIPs = []net.IPNet{extra} })},
		"no addresses":   {peer, alterPeer(func(p *wgtypes.PeerConfig) { p.ReplaceAllowedIPs = true })},
		"endpoint": {peer, alterPeer(func(p *wgtypes.PeerConfig) {
			p.Endpoint = net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.168.7.99:1"))
		})},
		"removed": {peer, alterPeer(func(p *wgtypes.PeerConfig) { p.Remove = true })},
		"subnet taken": {peer, func(h *wireguardHost) {
			h.configure(peer.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{{
				PublicKey: wgtypes.Key(secret(7).Public()), AllowedIPs: []net.IPNet{*ipNet(peer.Subnet)},
			}}})
		}},
	}
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		h.apply(wireguardGolden()...)
		index := h.index("flannel-wg")
		for name, test := range tests {
			test.alter(h)
			if h.observe()[test.object.Key()] == test.object {
				t.Errorf("%s: not seen", name)
			}
			h.reconcile(wireguardGolden()...)
			h.reconcile(wireguardGolden()...) // the kernel drops routes of a device that is down
			h.check(wireguardGolden()...)
			if t.Failed() {
				t.Fatalf("after: %s", name)
			}
		}
		if got := h.index("flannel-wg"); got != index {
			t.Errorf("the device was made anew: index %s, was %s", got, index)
		}
	})
}

// TestWireGuardDeviceGone holds that a device that was deleted, or taken down
// with its addresses, is noticed without a listing.
func TestWireGuardDeviceGone(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		for _, line := range []string{"ip link set flannel-wg down", "ip link delete flannel-wg"} {
			h.reconcile(wireguardGolden()...)
			h.drain()
			h.run(line)
			h.awaitToken(line)
		}
		h.reconcile(wireguardGolden()...)
		h.check(wireguardGolden()...)
	})
}

// TestWireGuardStale holds that the next process, with no key and no memory,
// finds what is ours, and removes that and nothing else: that is weft cleanup.
func TestWireGuardStale(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		h.run("ip link add flannel-wg0 type " + h.driver.wireguard.kind) // of the right type, under another name
		h.plantForeign()
		before := h.dump()
		for _, byOne := range []bool{false, true} {
			h.start(ownKeys)
			h.apply(wireguardGolden()...)
			h.start(WireGuard{})
			have := h.observe()
			if len(have) != len(wireguardGolden()) {
				t.Errorf("found %d objects, want %d: %v", len(have), len(wireguardGolden()), have)
			}
			for key, object := range have {
				if byOne && key.Kind != tunnel.KindLink {
					h.remove(object, object)
				}
			}
			h.reconcile()
			h.check()
			h.checkForeign(before)
		}
	})
}

// TestWireGuardSquatter holds that a device with our name and another type is
// left alone.
func TestWireGuardSquatter(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		h.run("ip link add flannel-wg type bridge")
		before := h.dump()
		h.check()
		for _, object := range []tunnel.Object{wireguard4(), wireguardPeer(2)} {
			wantText(t, h.applyError(object), "flannel-wg", `type "bridge"`)
			if err := h.driver.Delete(t.Context(), object); err == nil {
				t.Errorf("delete %s: no error", object.Key())
			}
		}
		h.checkForeign(before)
	})
}

// TestWireGuardKeys changes the device's key, then the pre-shared one: device
// and peers stay.
func TestWireGuardKeys(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		h.apply(wireguardGolden()...)
		index := h.index("flannel-wg")
		keys := WireGuard{Key: secret(5), Preshared: ownKeys.Preshared}
		h.driver.SetWireGuard(keys)
		wantText(t, h.applyError(wireguard4()), "public key "+ownKeys.Key.Public().String(), keys.Key.Public().String())
		want := wireguardGolden()
		for i, link := range []tunnel.Link{wireguard4(), wireguard6()} {
			link.PublicKey = keys.Key.Public()
			want[i] = link
			h.apply(link)
		}
		h.check(want...)

		keys.Preshared = tunnel.SecretKey{}
		h.driver.SetWireGuard(keys)
		if have := h.observe()[wireguardPeer(2).Key()]; have == tunnel.Object(wireguardPeer(2)) {
			t.Error("a peer with another pre-shared key is taken for in place")
		}
		h.reconcile(want...)
		h.check(want...)
		for _, peer := range h.device("flannel-wg").Peers {
			if peer.PresharedKey != (wgtypes.Key{}) {
				t.Errorf("peer %s has a pre-shared key", peer.PublicKey)
			}
		}
		if got := h.index("flannel-wg"); got != index {
			t.Errorf("the device was made anew: index %s, was %s", got, index)
		}
	})
}

// TestWireGuardPeerKey gives a peer another key: its subnet moves at once, and
// the old peer goes.
func TestWireGuardPeerKey(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		old, changed := wireguardPeer(2), wireguardPeer(2)
		changed.PublicKey = secret(12).Public()
		h.apply(wireguard4(), old)
		for _, deleteFirst := range []bool{false, true} {
			if deleteFirst {
				h.remove(old)
			}
			h.apply(changed)
			h.remove(old)
			h.check(wireguard4(), changed)
			old, changed = changed, old
		}
	})
}

// TestWireGuardConverges goes through random wants: from whatever there is,
// one pass leads to the next.
func TestWireGuardConverges(t *testing.T) {
	eachWireGuard(t, func(t *testing.T, h *wireguardHost) {
		random := rand.New(rand.NewPCG(1, 2))
		for round := range 60 {
			if random.IntN(5) == 0 {
				h.start(ownKeys)
			}
			var want []tunnel.Object
			subnets, subnets6 := random.Perm(12), random.Perm(12)
			for _, link := range []tunnel.Link{wireguard4(), wireguard6()} {
				if random.IntN(8) == 0 {
					continue
				}
				link.MTU, link.Port = 1380+random.IntN(3), link.Port+2*uint16(random.IntN(3))
				want = append(want, link)
				for i, n := range random.Perm(12)[:random.IntN(12)] {
					peer, subnet := wireguardPeer(byte(n+2)), wireguardPeer(byte(subnets[i])).Subnet
					if link.Name == wireguardName6 {
						peer, subnet = wireguardPeer6(byte(n+2)), wireguardPeer6(byte(subnets6[i])).Subnet
					}
					peer.Subnet, peer.Keepalive = subnet, random.IntN(3)
					peer.Endpoint = netip.AddrPortFrom(peer.Endpoint.Addr(), uint16(1+random.IntN(3)))
					want = append(want, peer)
				}
			}
			h.reconcile(want...)
			h.check(want...)
			if t.Failed() {
				t.Fatalf("round %d", round)
			}
		}
	})
}

// TestWireGuardRoaming holds that the endpoint of a live session is left alone,
// and that of a dead one put back.
func TestWireGuardRoaming(t *testing.T) {
	elsewhere := netip.MustParseAddrPort("198.51.100.7:4500")
	news := wireguardPeer(2)
	news.Endpoint = netip.MustParseAddrPort("192.168.7.200:51820")
	for name, test := range map[string]struct {
		age     time.Duration // of the handshake; 0: there was none
		restart bool
		want    tunnel.WireGuardPeer
		seen    bool // that something is to be done
		end     netip.AddrPort
	}{
		"live":                {age: time.Minute, want: wireguardPeer(2), end: elsewhere},
		"live, clock set":     {age: -time.Hour, want: wireguardPeer(2), end: elsewhere},
		"live, restart":       {age: time.Minute, restart: true, want: wireguardPeer(2), seen: true, end: elsewhere},
		"live, news":          {age: time.Minute, want: news, seen: true, end: news.Endpoint},
		"dead":                {age: 4 * time.Minute, want: wireguardPeer(2), seen: true, end: wireguardPeer(2).Endpoint},
		"dead, restart":       {age: 4 * time.Minute, restart: true, want: wireguardPeer(2), seen: true, end: wireguardPeer(2).Endpoint},
		"never":               {want: wireguardPeer(2), seen: true, end: wireguardPeer(2).Endpoint},
		"dead, news":          {age: time.Hour, want: news, seen: true, end: news.Endpoint},
		"live, news, restart": {age: time.Minute, restart: true, want: news, seen: true, end: elsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			h := fakeHost(t)
			h.apply(wireguard4(), wireguardPeer(2))
			h.fake.alterPeer("flannel-wg", wireguardPeer(2).PublicKey, func(peer *wgtypes.Peer) {
				peer.Endpoint = net.UDPAddrFromAddrPort(elsewhere)
				if test.age != 0 {
					peer.LastHandshakeTime = time.Now().Add(-test.age)
				}
			})
			if test.restart {
				h.start(ownKeys)
			}
			if seen := h.observe()[test.want.Key()] != tunnel.Object(test.want); seen != test.seen {
				t.Errorf("something is to be done: %t, want %t", seen, test.seen)
			}
			h.apply(test.want)
			if got := endpointOf(h.device("flannel-wg").Peers[0]); got != test.end {
				t.Errorf("endpoint is %s, want %s", got, test.end)
			}
			h.check(wireguard4(), test.want)
		})
	}
}

// TestWireGuardGentle holds that nothing that is right is set again: no call
// replaces peers, and the key is given once.
func TestWireGuardGentle(t *testing.T) {
	h := fakeHost(t)
	h.apply(wireguardGolden()...)
	h.apply(wireguardGolden()...)
	h.start(ownKeys)
	h.reconcile(wireguardGolden()...)
	keys := 0
	for _, config := range h.fake.configs {
		if config.ReplacePeers {
			t.Error("a call replaces all peers")
		}
		if config.PrivateKey != nil {
			keys++
		}
	}
	if keys != 2 {
		t.Errorf("the private key was set %d times, want once for each device", keys)
	}
}

// TestWireGuardFaults holds that errors of the control reach the caller with
// the object's name, and that the next attempt succeeds.
func TestWireGuardFaults(t *testing.T) {
	h := fakeHost(t)
	h.fake.failConfigure = unix.EADDRINUSE
	wantText(t, h.applyError(wireguard4()), "apply link flannel-wg", "UDP port 51820")
	if have := h.observe()[wireguard4().Key()]; have == nil || have == tunnel.Object(wireguard4()) {
		t.Errorf("a device without its port: have %+v", have)
	}
	h.fake.failConfigure = nil
	h.apply(wireguard4())
	h.fake.failConfigure = unix.EPERM
	wantText(t, h.applyError(wireguardPeer(2)), "apply wireguard flannel-wg", "operation not permitted", "CAP_NET_ADMIN")
	h.check(wireguard4())
	h.fake.failConfigure = nil
	h.apply(wireguardPeer(2))
	h.fake.failConfigure = unix.EPERM
	if err := h.driver.Delete(t.Context(), wireguardPeer(2)); err == nil {
		t.Error("delete: no error")
	} else {
		wantText(t, err.Error(), "delete wireguard flannel-wg", "CAP_NET_ADMIN")
	}
	h.fake.failConfigure, h.fake.failDevice = nil, unix.EPERM
	wantText(t, h.applyError(wireguard4()), "read WireGuard device flannel-wg", "CAP_NET_ADMIN")
	if _, err := h.driver.Observe(t.Context()); err == nil {
		t.Error("observe: no error")
	}
	if _, err := h.driver.WireGuardSessions(t.Context()); err == nil {
		t.Error("sessions: no error")
	}
	h.fake.failDevice = os.ErrNotExist // the device goes while it is looked at
	if have := h.observe(); len(have) != 0 {
		t.Errorf("have %v, want nothing", have)
	}
	h.fake.failDevice = nil
	h.check(wireguard4(), wireguardPeer(2))
	h.remove(wireguard4(), wireguardPeer(2))
	h.check()

	h.start(ownKeys)
	h.driver.wireguard.connect = func() (control, error) { return nil, unix.EMFILE }
	wantText(t, h.applyError(wireguard4()), "open WireGuard control", "too many open files")
}

func TestWireGuardSessions(t *testing.T) {
	h := fakeHost(t)
	if sessions, err := h.driver.WireGuardSessions(t.Context()); len(sessions) != 0 || err != nil {
		t.Errorf("no device: %v, %v", sessions, err)
	}
	h.apply(wireguard4(), wireguard6(), wireguardPeer(2), wireguardPeer6(2))
	handshake := time.Unix(1700000000, 0)
	h.fake.alterPeer("flannel-wg", wireguardPeer(2).PublicKey, func(peer *wgtypes.Peer) {
		peer.LastHandshakeTime, peer.ReceiveBytes, peer.TransmitBytes = handshake, 12, 34
	})
	sessions, err := h.driver.WireGuardSessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[tunnel.Key]WireGuardSession{
		wireguardPeer(2).Key():  {Endpoint: wireguardPeer(2).Endpoint, LastHandshake: handshake, Received: 12, Sent: 34},
		wireguardPeer6(2).Key(): {Endpoint: wireguardPeer6(2).Endpoint},
	} {
		if sessions[key] != want {
			t.Errorf("%s: got %+v, want %+v", key, sessions[key], want)
		}
	}
}

func TestWireGuardProbe(t *testing.T) {
	h := fakeHost(t)
	before := h.dump()
	if err := h.driver.ProbeWireGuard(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.run("ip link add weft-probe-wg type " + fakeKind) // left by a process that was killed
	h.fake.failDevice = unix.EPERM
	if err := h.driver.ProbeWireGuard(t.Context()); err == nil {
		t.Error("no rights: no error")
	} else {
		wantText(t, err.Error(), "kernel: read WireGuard device", "CAP_NET_ADMIN")
	}
	h.checkForeign(before)
	h.driver.wireguard.kind = "nosuch"
	if err := h.driver.ProbeWireGuard(t.Context()); err == nil {
		t.Error("no WireGuard: no error")
	} else {
		wantText(t, err.Error(), "kernel: RTM_NEWLINK nosuch: operation not supported", "modprobe wireguard")
	}
	h.run("ip link add weft-probe-wg type bridge")
	if err := h.driver.ProbeWireGuard(t.Context()); err == nil {
		t.Error("squatter: no error")
	} else {
		wantText(t, err.Error(), "weft-probe-wg", `type "bridge"`)
	}
}

func TestBadWireGuard(t *testing.T) {
	h := fakeHost(t)
	for want, change := range map[string]func(*tunnel.Link){
		`name "wg0"`:           func(l *tunnel.Link) { l.Name = "wg0" },
		"port: not set":        func(l *tunnel.Link) { l.Port = 0 },
		"MTU: not set":         func(l *tunnel.Link) { l.MTU = 0 },
		"public key: not set":  func(l *tunnel.Link) { l.PublicKey = tunnel.PublicKey{} },
		"driver's private key": func(l *tunnel.Link) { l.PublicKey = secret(5).Public() },
	} {
		link := wireguard4()
		change(&link)
		wantText(t, h.applyError(link), "apply link "+link.Name, want)
	}
	h.check()
	h.apply(wireguard4())
	for want, change := range map[string]func(*tunnel.WireGuardPeer){
		`device wg0 is not weft's`:  func(p *tunnel.WireGuardPeer) { p.Link = "wg0" },
		"device flannel-wg-v6":      func(p *tunnel.WireGuardPeer) { p.Link = "flannel-wg-v6" },
		"public key: not set":       func(p *tunnel.WireGuardPeer) { p.PublicKey = tunnel.PublicKey{} },
		"this host's own":           func(p *tunnel.WireGuardPeer) { p.PublicKey = ownKeys.Key.Public() },
		"endpoint: not set":         func(p *tunnel.WireGuardPeer) { p.Endpoint = netip.AddrPort{} },
		"endpoint [fe80::1%eth0]:1": func(p *tunnel.WireGuardPeer) { p.Endpoint = netip.MustParseAddrPort("[fe80::1%eth0]:1") },
		"endpoint [::ffff:1.2.3.4]": func(p *tunnel.WireGuardPeer) { p.Endpoint = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") },
		"subnet: not set":           func(p *tunnel.WireGuardPeer) { p.Subnet = netip.Prefix{} },
		"want 10.244.2.0/24":        func(p *tunnel.WireGuardPeer) { p.Subnet = netip.MustParsePrefix("10.244.2.7/24") },
		"keepalive 65536":           func(p *tunnel.WireGuardPeer) { p.Keepalive = 65536 },
		"keepalive -1":              func(p *tunnel.WireGuardPeer) { p.Keepalive = -1 },
	} {
		peer := wireguardPeer(2)
		change(&peer)
		wantText(t, h.applyError(peer), "apply wireguard "+peer.Link, want)
	}
	h.check(wireguard4())
	h.start(WireGuard{})
	wantText(t, h.applyError(wireguard4()), "no private key")
}
