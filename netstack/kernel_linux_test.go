package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
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
	world := labtest.New(t)
	var hosts [2]*lab.Host
	for i := range hosts {
		hosts[i] = labtest.Host(t, world, lab.HostConfig{Name: fmt.Sprintf("site%d", i+1)})
		if err := hosts[i].Link(lab.LinkProps{Offload: offload}); err != nil {
			t.Fatal(err)
		}
	}
	const port = 8472
	var socket tunnel.Socket
	err := hosts[0].Do(func() (err error) {
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

// echo is a port of the host that answers with what it is sent.
func (k *kernelSite) echo(is4 bool) netip.AddrPort {
	k.t.Helper()
	at, err := k.host.Echo(k.t.Context(), netip.AddrPortFrom(k.addr(is4), 0))
	if err != nil {
		k.t.Fatal(err)
	}
	return at
}

// TestKernel: a Stack and a kernel's VXLAN host carry everything to each other,
// on links that cut and sum as virtual ones do and as wires do.
func TestKernel(t *testing.T) {
	for _, offload := range []lab.Offload{lab.OffloadFull, lab.OffloadNone} {
		s, k := withKernel(t, offload)
		for _, is4 := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s-v4=%v", offload, is4), func(t *testing.T) {
				ctx := timeout(t, 30*time.Second)
				if err := transfer(ctx, s.dial, k.listen, is4, 10<<20); err != nil {
					t.Errorf("to the kernel: %v", err)
				}
				if err := transfer(ctx, k.dial, s.listen, is4, 10<<20); err != nil {
					t.Errorf("from the kernel: %v", err)
				}
				for _, size := range []int{0, 56, 1400, 4000, 20000} {
					if _, err := s.Ping(ctx, k.addr(is4), size); err != nil {
						t.Error(err)
					}
					if _, err := k.host.Ping(ctx, lab.Probe{To: s.addr(is4), PayloadBytes: size, Timeout: 5 * time.Second}); err != nil {
						t.Error(err)
					}
				}
				conn, err := s.DialContext(ctx, "udp", k.echo(is4))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				for _, size := range []int{1, 1398, 4000, 30000} {
					sent, got := bytes.Repeat([]byte{byte(size)}, size), make([]byte, 1<<16)
					conn.SetDeadline(time.Now().Add(5 * time.Second))
					if _, err := conn.Write(sent); err != nil {
						t.Fatal(err)
					}
					if n, err := conn.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
						t.Errorf("UDP: %d of %d bytes: %v", n, size, err)
					}
				}
				closed := netip.AddrPortFrom(k.addr(is4), 9)
				if _, err := s.dial(ctx, closed); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial a closed port of the kernel: %v", err)
				}
				if _, err := k.dial(ctx, netip.AddrPortFrom(s.addr(is4), 9)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial a closed port from the kernel: %v", err)
				}
			})
		}
		s.engine.Stats().Each(func(name string, value uint64) {
			if strings.Contains(name, "_drop_") && name != engine.TxDropNoPeer.String() && value != 0 {
				t.Errorf("%s is %d", name, value)
			}
		})
	}
}

// BenchmarkKernel is TCP between a Stack and a kernel's VXLAN device.
func BenchmarkKernel(b *testing.B) {
	s, k := withKernel(b, lab.OffloadFull)
	for _, flows := range []int{1, 128} {
		for _, way := range []struct {
			name   string
			dial   dialFunc
			listen listenFunc
		}{{"out", s.dial, k.listen}, {"in", k.dial, s.listen}} {
			b.Run(fmt.Sprintf("%s-%d", way.name, flows), func(b *testing.B) { benchmark(b, way.dial, way.listen, flows) })
		}
	}
}
