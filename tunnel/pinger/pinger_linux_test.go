package pinger

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// site is a host with a VTEP for either inner family.
type site struct {
	*lab.Host
	t      *testing.T
	mac    tunnel.MAC
	number int
}

func (s *site) network(family int) netip.Prefix {
	if family == 4 {
		return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", s.number))
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", s.number))
}

func (s *site) local(family int) tunnel.Local {
	return tunnel.Local{Subnet: s.network(family), MAC: s.mac, VNI: 1}
}

func (s *site) outer() netip.AddrPort { return netip.AddrPortFrom(s.Addr(4), 8472) }

// way is how others reach the site past their routes.
func (s *site) way(from *site, family int) VXLAN {
	return VXLAN{Local: from.local(family), To: s.outer(), MAC: s.mac}
}

func (s *site) run(format string, args ...any) {
	s.t.Helper()
	line := fmt.Sprintf(format, args...)
	var out []byte
	err := s.Do(func() (err error) {
		words := strings.Fields(line)
		out, err = exec.CommandContext(s.t.Context(), words[0], words[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", line, err, out)
	}
}

// newSites are two hosts that reach each other by kernel VXLAN.
func newSites(t *testing.T) (a, b *site) {
	t.Helper()
	world := labtest.New(t)
	var sites [2]*site
	for i := range sites {
		host := labtest.Host(t, world, lab.HostConfig{Name: string(rune('a' + i))})
		sites[i] = &site{Host: host, t: t, number: i + 1, mac: tunnel.MAC{2, 0, 0, 0, 0, byte(i + 1)}}
	}
	for i, s := range sites {
		peer := sites[1-i]
		s.run("ip link add flannel.1 address %s mtu 1450 type vxlan id 1 dstport 8472 local %s dev eth0 nolearning", s.mac, s.Addr(4))
		for _, family := range []int{4, 6} {
			s.run("ip addr add %s/%d dev flannel.1 nodad", s.network(family).Addr(), s.network(family).Addr().BitLen())
		}
		s.run("ip link set flannel.1 up")
		s.run("bridge fdb append %s dev flannel.1 dst %s", peer.mac, peer.Addr(4))
		for _, family := range []int{4, 6} {
			network := peer.network(family)
			s.run("ip neigh add %s lladdr %s dev flannel.1", network.Addr(), peer.mac)
			s.run("ip route add %s via %s dev flannel.1 onlink", network, network.Addr())
		}
	}
	return sites[0], sites[1]
}

// pinging is a Pinger that runs on a site.
type pinging struct {
	*Pinger
	t        *testing.T
	answered chan uint64
	last     uint64 // token
}

func newPinging(t *testing.T, s *site) *pinging {
	t.Helper()
	p := &pinging{t: t, answered: make(chan uint64, 100)}
	err := s.Do(func() (err error) {
		p.Pinger, err = Open(Config{Outer: []netip.Addr{s.Addr(4)}, Answered: func(token uint64) { p.answered <- token }})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return p
}

// lostToken is that of probes that are to be lost.
const lostToken = 404

// want sends a probe until it is answered: hosts that are new lose the first
// packets to each other.
func (p *pinging) want(what string, send func(token uint64) error) {
	p.t.Helper()
	p.last += 1<<32 + 1
	token := p.last
	for range 100 {
		if err := send(token); err != nil {
			p.t.Errorf("%s: %v", what, err)
			return
		}
		again := time.After(100 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case got := <-p.answered:
				if got == token {
					return
				}
				if got == lostToken {
					p.t.Errorf("%s: a probe that cannot have arrived was answered", what)
				}
			case <-again:
				waiting = false
			}
		}
	}
	p.t.Errorf("%s: no answer", what)
}

// byRoute and inVXLAN are the two ways to send from one site to another.
func (p *pinging) byRoute(from, to *site, family, size int) func(token uint64) error {
	return func(token uint64) error {
		return p.Ping(from.network(family).Addr(), to.network(family).Addr(), size, token)
	}
}

func (p *pinging) inVXLAN(from, to *site, family, size int) func(token uint64) error {
	return func(token uint64) error {
		return p.PingVXLAN(to.way(from, family), to.network(family).Addr(), size, token)
	}
}

// TestPing holds that probes by the kernel's routes and past them are answered,
// with a ping socket as with a raw one, in both families, up to the MTU.
func TestPing(t *testing.T) {
	for _, group := range []string{"1 0", "0 0"} {
		t.Run("ping group "+group, func(t *testing.T) {
			a, b := newSites(t)
			labtest.Sysctl(t, a.Namespace, "net/ipv4/ping_group_range", group)
			p := newPinging(t, a)
			for _, family := range []int{4, 6} {
				if raw := p.of(a.network(family).Addr()).answers.raw; raw != (group == "1 0") {
					t.Errorf("IPv%d: the socket is raw: %v", family, raw)
				}
				from, to := a.network(family).Addr(), b.network(family).Addr()
				for _, size := range []int{100, 1450} {
					what := fmt.Sprintf("IPv%d, %d bytes", family, size)
					p.want(what, p.byRoute(a, b, family, size))
					p.want(what+" in VXLAN", p.inVXLAN(a, b, family, size))
				}
				if err := p.Ping(from, to, 1451, 3); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("IPv%d: larger than the MTU: %v", family, err)
				}
				if err := p.PingVXLAN(b.way(a, family), to, 1451, 3); !errors.Is(err, tunnel.ErrTooBig) {
					t.Errorf("IPv%d: larger than the MTU, in VXLAN: %v", family, err)
				}
				// What does not arrive is not answered, and the next probe is.
				wrong := b.way(a, family)
				wrong.MAC[5]++
				if err := p.PingVXLAN(wrong, to, 100, lostToken); err != nil {
					t.Error(err)
				}
				p.want("after one that was lost", p.byRoute(a, b, family, 100))
			}
		})
	}
}

// TestPastTheRoutes holds that a way which the kernel's routes do not take is
// probed, while they lead elsewhere or nowhere; the answer comes as the peer sees fit.
func TestPastTheRoutes(t *testing.T) {
	a, b := newSites(t)
	p := newPinging(t, a)
	a.run("ip route replace %s via %s", b.network(4), b.Addr(4))
	a.run("ip -6 route replace blackhole %s", b.network(6))
	for _, family := range []int{4, 6} {
		p.want(fmt.Sprintf("IPv%d in VXLAN", family), p.inVXLAN(a, b, family, 100))
	}
	p.want("by the direct route", p.byRoute(a, b, 4, 100))
	if err := p.Ping(a.network(6).Addr(), b.network(6).Addr(), 100, 3); err == nil {
		t.Error("no error from a blackhole")
	}
	// The way itself is closed: nothing else carries its probes.
	b.run("ip link set flannel.1 down")
	b.run("ip addr add %s/32 dev lo", b.network(4).Addr())
	if err := p.PingVXLAN(b.way(a, 4), b.network(4).Addr(), 100, lostToken); err != nil {
		t.Error(err)
	}
	b.run("ip route replace %s via %s", a.network(4), a.Addr(4))
	p.want("by the direct route alone", p.byRoute(a, b, 4, 100))
}

// TestForeignSource holds that a host which does not have its network address
// probes from another.
func TestForeignSource(t *testing.T) {
	a, b := newSites(t)
	p := newPinging(t, a)
	for _, family := range []int{4, 6} {
		a.run("ip addr del %s/%d dev flannel.1", a.network(family).Addr(), a.network(family).Addr().BitLen())
		a.run("ip -%d route replace %s via %s", family, b.network(family), b.Addr(family))
		p.want(fmt.Sprintf("IPv%d", family), p.byRoute(a, b, family, 100))
	}
}

// TestNoRights holds that what is missing is said, and only of what needs it.
func TestNoRights(t *testing.T) {
	a, b := newSites(t)
	labtest.Sysctl(t, a.Namespace, "net/ipv4/ping_group_range", "1 0")
	var p *Pinger
	err := a.Do(func() (err error) {
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		p, err = Open(Config{Outer: []netip.Addr{a.Addr(4)}, Answered: func(uint64) {}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, family := range []int{4, 6} {
		from, to := a.network(family).Addr(), b.network(family).Addr()
		for _, err := range []error{p.Ping(from, to, 100, 1), p.PingVXLAN(b.way(a, family), to, 100, 1)} {
			if !errors.Is(err, ErrUnable) || !strings.Contains(err.Error(), "CAP_NET_RAW") || !strings.Contains(err.Error(), "ping_group_range") {
				t.Errorf("IPv%d: %v", family, err)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(Config{}); err == nil || !strings.Contains(err.Error(), "Answered") {
		t.Errorf("without Answered: %v", err)
	}
	a, b := newSites(t)
	err := a.Do(func() error {
		_, err := Open(Config{Outer: []netip.Addr{a.Addr(4), a.Addr(4)}, Answered: func(uint64) {}})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "one per family") {
		t.Errorf("two addresses of one family: %v", err)
	}
	p := newPinging(t, a)
	way := b.way(a, 4)
	way.To = netip.AddrPortFrom(b.Addr(6), 8472)
	if err := p.PingVXLAN(way, b.network(4).Addr(), 100, 1); !errors.Is(err, ErrUnable) || !strings.Contains(err.Error(), "no outer address") {
		t.Errorf("without an outer address: %v", err)
	}
	for _, size := range []int{-1, 30, 1 << 17} {
		if err := p.Ping(a.network(4).Addr(), b.network(4).Addr(), size, 1); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
}

// TestTokenOf holds that only the host that was asked answers.
func TestTokenOf(t *testing.T) {
	a, b := newSites(t)
	p := newPinging(t, a)
	to := b.network(4).Addr()
	data := p.data(7, to)
	change := func(at int) []byte {
		other := append([]byte(nil), data...)
		other[at] ^= 1
		return other
	}
	for _, test := range []struct {
		data []byte
		from netip.Addr
		want bool
	}{
		{data, to, true},
		{append(data, 0, 0), to, true},
		{data[:tokenLen-1], to, false},
		{change(0), to, false},
		{change(15), to, false},
		{change(19), to, false},
		{data, to.Next(), false},
	} {
		if token, ok := p.tokenOf(test.data, test.from); ok != test.want || ok && token != 7 {
			t.Errorf("%x from %v: %d, %v", test.data, test.from, token, ok)
		}
	}
}

// FuzzParse holds that no message panics.
func FuzzParse(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 7, 0, 0, 1}, true, false)
	f.Add([]byte{0x45, 19: 0, 20: 0, 25: 7, 30: 1}, true, true)
	f.Add([]byte{129, 0, 0, 0, 0, 7, 0, 0}, false, true)
	f.Fuzz(func(t *testing.T, message []byte, is4, raw bool) {
		s := &socket{is4: is4, raw: raw, identifier: 7}
		if data, ok := s.parse(message); ok && len(data) > len(message)-icmpLen {
			t.Errorf("%d bytes of data in %d", len(data), len(message))
		}
	})
}
