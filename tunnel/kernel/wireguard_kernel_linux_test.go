//go:build e2e

package kernel

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

// With the build tag e2e the kernel must have WireGuard; bench/e2e runs these
// tests in a guest whose kernel does.
var kernelHosts = map[string]func(*testing.T) *wireguardHost{
	"kernel": func(t *testing.T) *wireguardHost {
		return addWireGuardHost(t, labtest.New(t), lab.HostConfig{Name: "a", Addresses: underlay}, ownKeys)
	},
}

// TestWireGuardKernelProbe holds that the probe tells a kernel that has WireGuard.
func TestWireGuardKernelProbe(t *testing.T) {
	h := kernelHosts["kernel"](t)
	before := h.dump()
	if err := h.driver.ProbeWireGuard(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.checkForeign(before)
	// As in the agent, whose namespace every thread is in.
	driver, err := Open(Config{Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	if err := driver.ProbeWireGuard(t.Context()); err != nil {
		t.Error(err)
	}
}

// pair are two hosts that are each other's peer, for both inner families over
// both outer ones.
type pair struct {
	hosts [2]*wireguardHost
	keys  [2]WireGuard
	want  [2][]tunnel.Object
}

func newPair(t *testing.T) *pair {
	t.Helper()
	world := labtest.New(t)
	p := &pair{keys: [2]WireGuard{{Key: secret(1), Preshared: secret(9)}, {Key: secret(2), Preshared: secret(9)}}}
	for i, name := range []string{"a", "b"} {
		p.hosts[i] = addWireGuardHost(t, world, lab.HostConfig{Name: name}, p.keys[i])
		p.hosts[i].run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
	}
	p.plan()
	p.reconcile()
	return p
}

// subnets are the inner prefixes of the two hosts.
var subnets = [2][2]netip.Prefix{
	{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")},
}

// plan computes what each host should have with the present keys.
func (p *pair) plan() {
	for i := range p.hosts {
		p.want[i] = nil
		for f, link := range []tunnel.Link{wireguard4(), wireguard6()} {
			link.PublicKey = p.keys[i].Key.Public()
			own, other := subnets[i][f], subnets[1-i][f]
			p.want[i] = append(p.want[i], link,
				tunnel.Address{Link: link.Name, Prefix: netip.PrefixFrom(own.Addr(), own.Addr().BitLen())},
				tunnel.WireGuardPeer{
					Link: link.Name, PublicKey: p.keys[1-i].Key.Public(), Subnet: other,
					Endpoint: netip.AddrPortFrom(p.hosts[1-i].Addr([]int{4, 6}[f]), link.Port),
				},
				tunnel.Route{Prefix: other, Link: link.Name})
		}
	}
}

func (p *pair) reconcile() {
	for i, h := range p.hosts {
		h.reconcile(p.want[i]...)
		h.check(p.want[i]...)
	}
}

// ping sends from one host to the other, for each family.
func (p *pair) ping(from int) {
	h := p.hosts[from]
	h.t.Helper()
	for _, subnet := range subnets[1-from] {
		var err error
		for range 20 { // the first handshake may be lost to address resolution
			if _, err = h.Ping(h.t.Context(), lab.Probe{To: subnet.Addr(), PayloadBytes: 1200, DontFragment: true}); err == nil {
				break
			}
		}
		if err != nil {
			h.t.Errorf("from %d to %s: %v", from, subnet, err)
		}
	}
}

// TestWireGuardKernelOverlay carries packets between two hosts, while one
// restarts, roams, and changes its key.
func TestWireGuardKernelOverlay(t *testing.T) {
	p := newPair(t)
	a, b := p.hosts[0], p.hosts[1]
	p.ping(0)
	p.ping(1)
	sessions, err := a.driver.WireGuardSessions(t.Context())
	if err != nil || len(sessions) != 2 {
		t.Fatalf("sessions: %v, %v", sessions, err)
	}
	for key, session := range sessions {
		if time.Since(session.LastHandshake) > time.Minute || session.Received == 0 || session.Sent == 0 || !session.Endpoint.IsValid() {
			t.Errorf("%s: %+v", key, session)
		}
	}

	// A restart costs no session.
	a.start(p.keys[0])
	a.reconcile(p.want[0]...)
	a.check(p.want[0]...)
	after, err := a.driver.WireGuardSessions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for key, session := range sessions {
		if after[key].LastHandshake != session.LastHandshake {
			t.Errorf("%s: another handshake after a restart", key)
		}
	}

	// b sends from elsewhere: a follows, takes it for in place, and keeps to it.
	port := 40000
	b.configure("flannel-wg", wgtypes.Config{ListenPort: &port})
	p.ping(1)
	peer := p.want[0][2].(tunnel.WireGuardPeer)
	roamed := netip.AddrPortFrom(peer.Endpoint.Addr(), uint16(port))
	endpoint := func() netip.AddrPort { return endpointOf(a.device("flannel-wg").Peers[0]) }
	if endpoint() != roamed {
		t.Fatalf("endpoint is %s, want %s", endpoint(), roamed)
	}
	p.reconcile()
	if endpoint() != roamed {
		t.Errorf("the endpoint of a live session was changed to %s", endpoint())
	}
	// The session is over for who looks ten minutes later.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	now.Sec += 600
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	if have := a.observe()[peer.Key()]; have == tunnel.Object(peer) {
		t.Error("the endpoint of a dead session is taken for the published one")
	}
	p.reconcile()
	if endpoint() != peer.Endpoint {
		t.Errorf("endpoint is %s, want the published %s", endpoint(), peer.Endpoint)
	}

	// b goes by another key, and the secret between the two is another one.
	p.keys[0].Preshared, p.keys[1] = secret(8), WireGuard{Key: secret(3), Preshared: secret(8)}
	for i, h := range p.hosts {
		h.driver.SetWireGuard(p.keys[i])
	}
	p.plan()
	p.reconcile()
	p.ping(0)
	p.ping(1)
}
