package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/pathmtu"
)

// internet is two sites, each on a switch of its own, with a router between
// that may carry less than the links promise.
type internet struct {
	t        *testing.T
	world    *lab.Lab
	sites    []*site
	overhead int
	hushed   bool
}

// newInternet makes the sites, on links of one MTU: the first with an engine,
// the second with a kernel VXLAN device if kernel says so.
func newInternet(t *testing.T, outerFamily, mtu int, kernel bool) *internet {
	t.Helper()
	world := labtest.New(t)
	n := &internet{t: t, world: world, overhead: 50}
	if outerFamily == 6 {
		n.overhead = 70
	}
	search := pathmtu.Defaults()
	search.Raise, search.RaiseMax = time.Second, 2*time.Second
	for i, isKernel := range []bool{false, kernel} {
		s := &site{
			t: t, number: i + 1, kernel: isKernel, device: "weft0", mtu: mtu - n.overhead, workers: 1, search: &search,
			mac: tunnel.MAC{2, 0, 0, 0, 1, byte(i + 1)}, stopped: make(chan error, 1),
		}
		if isKernel {
			s.device = "flannel.7"
		}
		net, err := world.Switch(lab.SwitchConfig{Name: fmt.Sprintf("net%d", s.number), MTU: mtu, Prefixes: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(s.number), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(s.number)}), 64),
		}})
		if err != nil {
			t.Fatal(err)
		}
		s.host = labtest.Host(t, world, lab.HostConfig{Name: fmt.Sprintf("site%d", s.number), Switch: net, MTU: mtu})
		s.outer = s.host.Addr(outerFamily)
		s.pod, err = s.host.Pod(lab.PodConfig{Name: fmt.Sprintf("pod%d", s.number), MTU: s.mtu, Addresses: []netip.Prefix{
			netip.PrefixFrom(s.podAddr(true), 24), netip.PrefixFrom(s.podAddr(false), 64),
		}})
		if err != nil {
			t.Fatal(err)
		}
		n.sites = append(n.sites, s)
	}
	for _, s := range n.sites {
		n.forgetSoon(s)
		s.start(n.sites)
	}
	return n
}

// forgetSoon has a site's kernels forget within seconds, not ten minutes, what
// ICMP errors said. Ordinary users can say so of IPv4 only; see forget.
func (n *internet) forgetSoon(s *site) {
	n.everywhere(s, "sysctl -qw net.ipv4.route.mtu_expires=2")
}

// forget has kernels forget what ICMPv6 errors said.
func (n *internet) forget() {
	for _, s := range n.sites {
		n.everywhere(s, "ip -6 route flush cache")
	}
}

// everywhere runs a command on a site and in its pod.
func (n *internet) everywhere(s *site, command string) {
	n.t.Helper()
	words := strings.Fields(command)
	for _, namespace := range []*lab.Namespace{s.host.Namespace, s.pod} {
		if out, err := namespace.Command(n.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
			n.t.Fatalf("%s on %s: %v: %s", command, namespace.Name(), err, out)
		}
	}
}

// outside runs a command on the router.
func (n *internet) outside(command string, args ...any) {
	n.t.Helper()
	words := strings.Fields(fmt.Sprintf(command, args...))
	if out, err := n.world.Outside().Command(n.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
}

// narrow gives the router's ports an MTU.
func (n *internet) narrow(mtu int) {
	n.t.Helper()
	for _, s := range n.sites {
		n.outside("ip link set net%d mtu %d", s.number, mtu)
	}
}

// hush has the router tell nobody what it does not carry, and nobody receive fragments.
func (n *internet) hush() {
	n.t.Helper()
	n.hushed = true
	n.outside("nft add table inet hush")
	n.outside("nft add chain inet hush out { type filter hook output priority 0 ; }")
	n.outside("nft add rule inet hush out icmp type destination-unreachable drop")
	n.outside("nft add rule inet hush out icmpv6 type packet-too-big drop")
	for _, s := range n.sites {
		s.run("nft add table netdev hush")
		s.run("nft add chain netdev hush in { type filter hook ingress device eth0 priority 0 ; }")
		s.run("nft add rule netdev hush in ip frag-off & 0x3fff != 0 drop")
		s.run("nft add rule netdev hush in exthdr frag exists drop")
	}
}

// link gives the first site's own link an MTU.
func (n *internet) link(mtu int) {
	n.t.Helper()
	if err := n.sites[0].host.Link(lab.LinkProps{MTU: mtu}); err != nil {
		n.t.Fatal(err)
	}
}

// found waits until the first site's engine holds the path to the other site to
// be as large as an outer MTU allows.
func (n *internet) found(outer int) {
	n.t.Helper()
	for _, is4 := range []bool{true, false} {
		network, want := n.sites[1].subnet(is4), outer-n.overhead
		var got int
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if got = n.sites[0].engine.PathMTUs()[network]; got == want {
				break
			}
		}
		if got != want {
			n.t.Errorf("outer MTU %d: inner MTU to %v is %d, want %d", outer, network, got, want)
		}
	}
}

// told is the largest inner packet over an outer MTU that a sender is to keep
// to. IPv6 knows nothing below its minimum: then outer packets are fragmented.
func (n *internet) told(outer int, is4 bool) int {
	if is4 {
		return outer - n.overhead
	}
	return max(outer-n.overhead, 1280)
}

// endless is a TCP connection that always has more to send.
type endless struct {
	name     string
	received atomic.Int64
}

// stream opens one and keeps it going until the test ends.
func (n *internet) stream(name string, from, to end) *endless {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	listener, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(to.addr, 0).String())
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := from.Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		n.t.Fatal(err)
	}
	in, err := listener.Accept()
	if err != nil {
		n.t.Fatal(err)
	}
	s, done := &endless{name: name}, make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		data := make([]byte, 128<<10)
		for {
			if _, err := out.Write(data); err != nil {
				return
			}
			time.Sleep(time.Millisecond) // leaves the processor to others
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		_, _ = io.Copy(countWriter{&s.received}, in)
	}()
	n.t.Cleanup(func() {
		cancel()
		for _, c := range []io.Closer{listener, out, in} {
			_ = c.Close()
		}
		<-done
		<-done
	})
	return s
}

// countWriter counts what is written.
type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(b []byte) (int, error) {
	w.n.Add(int64(len(b)))
	return len(b), nil
}

// flows waits until every stream has brought some megabytes more.
func (n *internet) flows(when string, streams []*endless) {
	n.t.Helper()
	const more = 4 << 20
	var want []int64
	for _, s := range streams {
		want = append(want, s.received.Load()+more)
	}
	for i, s := range streams {
		deadline := time.Now().Add(20 * time.Second)
		for s.received.Load() < want[i] {
			if time.Now().After(deadline) {
				n.t.Errorf("%s: stream %s stalls after %d of %d bytes", when, s.name, s.received.Load()-want[i]+more, more)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// streams are one from each end of the first site in either inner family, and
// back if the other site has an engine, too.
func (n *internet) streams() (all []*endless) {
	n.t.Helper()
	for _, is4 := range []bool{true, false} {
		for name, from := range n.sites[0].ends(is4) {
			to := n.sites[1].ends(is4)[name]
			all = append(all, n.stream(fmt.Sprintf("%v to %v", from.addr, to.addr), from, to))
			if !n.sites[1].kernel {
				all = append(all, n.stream(fmt.Sprintf("%v to %v", to.addr, from.addr), to, from))
			}
		}
	}
	return all
}

// connects opens new streams from a kernel at the other site, which looks for
// no path MTU: it keeps to what the engine lets it announce and hear.
func (n *internet) connects() {
	n.t.Helper()
	if !n.sites[1].kernel {
		return
	}
	for _, is4 := range []bool{true, false} {
		for name, to := range n.sites[0].ends(is4) {
			transfer(n.t, n.sites[1].ends(is4)[name], to)
		}
	}
}

// datagrams sends UDP from the first site: with DF its sender is told what
// fits, and that arrives; without DF anything does. What is on its way back is
// for the other site to see to.
func (n *internet) datagrams(outer int) {
	n.t.Helper()
	for _, is4 := range []bool{true, false} {
		for name, from := range n.sites[0].ends(is4) {
			fits := n.told(outer, is4)
			if fits > outer-n.overhead && n.hushed {
				continue // nothing can carry those: fragments do not pass
			}
			to := n.sites[1].ends(is4)[name]
			receiver, err := to.ListenPacket(n.t.Context(), "udp", netip.AddrPortFrom(to.addr, 0).String())
			if err != nil {
				n.t.Fatal(err)
			}
			conn, err := from.Dial(n.t.Context(), "udp", receiver.LocalAddr().String())
			if err != nil {
				n.t.Fatal(err)
			}
			headers := 48
			if is4 {
				headers = 28
			}
			if err := toldUDP(conn, is4, n.sites[0].mtu-headers, fits); err != nil {
				n.t.Errorf("outer MTU %d: DF from %s %v: %v", outer, name, from.addr, err)
			}
			if err := arrives(conn, receiver, fits-headers); err != nil {
				n.t.Errorf("outer MTU %d: %d bytes with DF from %s %v: %v", outer, fits, name, from.addr, err)
			}
			if err := setDiscovery(conn, is4, false); err != nil {
				n.t.Fatal(err)
			}
			if err := arrives(conn, receiver, 5000); err != nil {
				n.t.Errorf("outer MTU %d: fragments from %s %v: %v", outer, name, from.addr, err)
			}
			_, _ = conn.Close(), receiver.Close()
		}
	}
}

// arrives sends datagrams until one of so many bytes has arrived.
func arrives(from net.Conn, to net.PacketConn, size int) error {
	data := make([]byte, size)
	buffer := make([]byte, 1<<16)
	var refused error
	for range 20 {
		// An ICMP error about an earlier, larger one is told only now.
		if _, refused = from.Write(data); refused != nil && !errors.Is(refused, unix.EMSGSIZE) {
			return refused
		}
		if err := to.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			return err
		}
		for {
			n, _, err := to.ReadFrom(buffer)
			if err != nil {
				break
			}
			if n == size {
				return nil
			}
		}
	}
	return errors.Join(errors.New("does not arrive"), refused)
}

// setDiscovery switches path MTU discovery of a socket on, and with it DF, or off.
func setDiscovery(conn net.Conn, is4, on bool) error {
	level, name, value := unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT
	switch {
	case is4 && on:
		level, name, value = unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	case is4:
		level, name, value = unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	case on:
		value = unix.IPV6_PMTUDISC_DO
	}
	return control(conn, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) })
}

// toldUDP sends datagrams of size payload bytes that may not be fragmented until
// the sending kernel has been told that packets of fits bytes is all.
func toldUDP(conn net.Conn, is4 bool, size, fits int) error {
	if err := setDiscovery(conn, is4, true); err != nil {
		return err
	}
	level, name := unix.SOL_IPV6, unix.IPV6_MTU
	if is4 {
		level, name = unix.SOL_IP, unix.IP_MTU
	}
	told := 0
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		// Too big is what it is to be told.
		if _, err := conn.Write(make([]byte, size)); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		err := control(conn, func(fd int) (err error) {
			told, err = unix.GetsockoptInt(fd, level, name)
			return err
		})
		if err != nil || told == fits {
			return err
		}
	}
	return fmt.Errorf("the sender has been told %d, want %d", told, fits)
}

func control(conn net.Conn, f func(fd int) error) error {
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// mtuCase is a world and what happens to it: a step is named for the log, and
// leaves the underlay with an MTU.
type mtuCase struct {
	name  string
	mtu   int
	hush  bool
	steps []mtuStep
}

type mtuStep struct {
	name string
	do   func(n *internet, mtu int)
	mtu  int
}

func routers(mtus ...int) (steps []mtuStep) {
	for _, mtu := range mtus {
		steps = append(steps, mtuStep{fmt.Sprint("router ", mtu), (*internet).narrow, mtu})
	}
	return steps
}

func links(mtus ...int) (steps []mtuStep) {
	for _, mtu := range mtus {
		steps = append(steps, mtuStep{fmt.Sprint("link ", mtu), (*internet).link, mtu})
	}
	return steps
}

// run changes what the underlay carries under streams that run. No stream
// stalls, the inner MTU becomes right, and senders of datagrams are told it.
func (c mtuCase) run(t *testing.T, outerFamily int, kernel bool) {
	t.Run(fmt.Sprintf("%s/%s%d", c.name, map[bool]string{false: "engine", true: "kernel"}[kernel], outerFamily), func(t *testing.T) {
		n := newInternet(t, outerFamily, c.mtu, kernel)
		if c.hush {
			n.hush()
		}
		streams := n.streams()
		n.flows("before", streams)
		for _, step := range c.steps {
			step.do(n, step.mtu)
			n.forget()
			n.flows(step.name, streams)
			n.found(step.mtu)
			n.forget()
			n.flows(step.name+", found", streams)
			n.datagrams(step.mtu)
			n.connects()
		}
	})
}

// TestMTU is one of each kind: a router that says what it does not carry, one
// that does not, and the own link. TestMTUAll is all of them.
func TestMTU(t *testing.T) {
	mtuCase{"router", 1500, false, routers(1280, 1500)}.run(t, 4, false)
	mtuCase{"silent router", 1500, true, routers(1400, 1500)}.run(t, 6, true)
	mtuCase{"own link", 1500, false, links(1400, 1500)}.run(t, 4, false)
}
