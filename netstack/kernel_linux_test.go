package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/udp"
)

// kernelSite is a host of the lab with a kernel VXLAN device, whose addresses
// are those of site 2.
type kernelSite struct {
	t    testing.TB
	host *lab.Host
}

// withKernel makes a Stack on one host of the lab and a kernel's VXLAN device on
// another, which are peers.
func withKernel(t testing.TB, offload lab.Offload) (*site, *kernelSite) {
	t.Helper()
	world, err := lab.New(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	var hosts [2]*lab.Host
	for i := range hosts {
		if hosts[i], err = world.Host(lab.HostConfig{Name: fmt.Sprintf("site%d", i+1)}); err != nil {
			t.Fatal(err)
		}
		if err := hosts[i].Link(lab.LinkProps{Offload: offload}); err != nil {
			t.Fatal(err)
		}
	}
	const port = 8472
	var socket tunnel.Socket
	err = hosts[0].Do(func() (err error) {
		socket, err = udp.Listen(udp.Config{Addr: netip.AddrPortFrom(hosts[0].Addr(4), port), SendSockets: 8})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s, k := newSite(t, 1, socket), &kernelSite{t, hosts[1]}
	mac := tunnel.MAC{2, 0, 0, 0, 0, 2}
	k.run("ip link add flannel.7 address %v mtu %d type vxlan id 7 local %v dev eth0 dstport %d nolearning",
		mac, testMTU, hosts[1].Addr(4), port)
	k.run("ip link set flannel.7 up")
	k.run("bridge fdb add %v dst %v dev flannel.7", s.mac, hosts[0].Addr(4))
	var kernel []tunnel.Peer
	for _, is4 := range []bool{true, false} {
		k.run("ip addr add %v/%d dev flannel.7 nodad", k.addr(is4), k.addr(is4).BitLen())
		k.run("ip neigh add %v lladdr %v dev flannel.7 nud permanent", s.addr(is4), s.mac)
		k.run("ip route add %v via %v dev flannel.7 onlink src %v", subnet(1, is4), s.addr(is4), k.addr(is4))
		kernel = append(kernel, tunnel.Peer{
			Name: "kernel", Prefixes: []netip.Prefix{subnet(2, is4)}, MAC: mac, VNI: 7, MTU: testMTU,
			Endpoint: netip.AddrPortFrom(hosts[1].Addr(4), port),
		})
	}
	run(t, s)
	if err := s.engine.SetPeers(kernel); err != nil {
		t.Fatal(err)
	}
	return s, k
}

func (k *kernelSite) addr(is4 bool) netip.Addr { return subnet(2, is4).Addr() }

// run runs a command on the host.
func (k *kernelSite) run(command string, args ...any) {
	k.t.Helper()
	words := strings.Fields(fmt.Sprintf(command, args...))
	if out, err := k.host.Command(k.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		k.t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
}

func (k *kernelSite) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return k.host.Dial(ctx, "tcp", to.String())
}

func (k *kernelSite) listen(is4 bool) (net.Listener, error) {
	return k.host.Listen(k.t.Context(), "tcp", netip.AddrPortFrom(k.addr(is4), 0).String())
}

// dialer and listener are the two ends of streams.
type (
	dialFunc   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	listenFunc func(is4 bool) (net.Listener, error)
)

func (s *site) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return s.DialContext(ctx, "tcp", to)
}

func (s *site) listen(is4 bool) (net.Listener, error) {
	return s.ListenTCP(netip.AddrPortFrom(s.addr(is4), 0))
}

// pour has flows streams send for a while, and returns the gigabits per second
// that arrived meanwhile.
func pour(ctx context.Context, dial dialFunc, listen listenFunc, is4 bool, flows int, duration time.Duration) (float64, error) {
	listener, err := listen(is4)
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	group, ctx := errgroup.WithContext(ctx)
	var froms, tos []net.Conn
	for range flows {
		// One after the other, and before there is traffic: the kernel makes larger
		// packets for connections that began with a short round trip.
		from, err := dial(ctx, listener.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			return 0, err
		}
		defer from.Close()
		to, err := listener.Accept()
		if err != nil {
			return 0, err
		}
		defer to.Close()
		defer context.AfterFunc(ctx, func() { from.Close(); to.Close() })()
		froms, tos = append(froms, from), append(tos, to)
	}
	var total atomic.Int64
	for i := range flows {
		group.Go(func() error {
			buffer := make([]byte, 256<<10)
			for {
				n, err := tos[i].Read(buffer)
				if total.Add(int64(n)); err != nil {
					return nil
				}
			}
		})
		group.Go(func() error {
			buffer := make([]byte, 256<<10)
			for {
				if _, err := froms[i].Write(buffer); err != nil {
					return nil
				}
			}
		})
	}
	time.Sleep(duration / 4) // to leave slow start behind
	before, start := total.Load(), time.Now()
	time.Sleep(duration)
	gbps := float64(total.Load()-before) * 8 / float64(time.Since(start).Nanoseconds())
	group.Go(func() error { return errDone })
	if err := group.Wait(); !errors.Is(err, errDone) {
		return 0, err
	}
	return gbps, nil
}

var errDone = errors.New("done")

// BenchmarkKernel is TCP between a Stack and a kernel's VXLAN device.
func BenchmarkKernel(b *testing.B) {
	s, k := withKernel(b, lab.OffloadFull)
	for _, flows := range []int{1, 128} {
		for _, way := range []struct {
			name   string
			dial   dialFunc
			listen listenFunc
		}{{"out", s.dial, k.listen}, {"in", k.dial, s.listen}} {
			b.Run(fmt.Sprintf("%s-%d", way.name, flows), func(b *testing.B) {
				var sum float64
				for range b.N {
					gbps, err := pour(b.Context(), way.dial, way.listen, true, flows, 2*time.Second)
					if err != nil {
						b.Fatal(err)
					}
					sum += gbps
				}
				b.ReportMetric(sum/float64(b.N), "Gbit/s")
			})
		}
	}
}
