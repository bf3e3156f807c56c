package netstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

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

// BenchmarkLoopback is TCP between two Stacks over UDP sockets of the system.
func BenchmarkLoopback(b *testing.B) {
	for _, flows := range []int{1, 128} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			from, to := onLoopback(b)
			benchmark(b, from.dial, to.listen, flows)
		})
	}
}

// BenchmarkStock is BenchmarkLoopback with gVisor as it comes: its channel
// endpoint, which knows no super-packets, and a packet per call.
func BenchmarkStock(b *testing.B) {
	near, far := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.2:0"))
	var sockets [2]*net.UDPConn
	for i, at := range []*net.UDPAddr{near, far} {
		socket, err := net.ListenUDP("udp4", at)
		if err != nil {
			b.Fatal(err)
		}
		sockets[i] = socket
	}
	from := newStock(b, near4, sockets[0], sockets[1].LocalAddr())
	to := newStock(b, far4, sockets[1], sockets[0].LocalAddr())
	benchmark(b, func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
		return gonet.DialContextTCP(ctx, from, fullAddress(at), ipv4.ProtocolNumber)
	}, func(bool) (net.Listener, error) {
		return gonet.ListenTCP(to, fullAddress(netip.AddrPortFrom(far4, 80)), ipv4.ProtocolNumber)
	}, 1)
}

// newStock makes a gVisor stack on a channel endpoint that has a UDP socket.
func newStock(b *testing.B, addr netip.Addr, socket *net.UDPConn, to net.Addr) *stack.Stack {
	b.Helper()
	link := channel.New(1024, testMTU, "")
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := s.CreateNIC(nicID, link); err != nil {
		b.Fatal(err)
	}
	full := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix()}
	if err := s.AddProtocolAddress(nicID, full, stack.AddressProperties{}); err != nil {
		b.Fatal(err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	ctx, stop := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error {
		for {
			pkt := link.ReadContext(ctx)
			if pkt == nil {
				return nil
			}
			view := pkt.ToView()
			pkt.DecRef()
			socket.WriteTo(view.AsSlice(), to)
			view.Release()
		}
	})
	group.Go(func() error {
		for data := make([]byte, 1<<16); ; {
			n, err := socket.Read(data)
			if err != nil {
				return nil
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(data[:n])})
			link.InjectInbound(ipv4.ProtocolNumber, pkt)
			pkt.DecRef()
		}
	})
	b.Cleanup(func() {
		stop()
		socket.Close()
		group.Wait()
		s.Close()
		s.Wait()
	})
	return s
}

// benchmark reports how fast streams are.
func benchmark(b *testing.B, dial dialFunc, listen listenFunc, flows int) {
	var sum float64
	for range b.N {
		gbps, err := pour(b.Context(), dial, listen, true, flows, 2*time.Second)
		if err != nil {
			b.Fatal(err)
		}
		sum += gbps
	}
	b.ReportMetric(sum/float64(b.N), "Gbit/s")
}

// BenchmarkWrite is what a TCP super-packet costs on its way in, up to where
// gVisor finds that its connection is none.
func BenchmarkWrite(b *testing.B) {
	s := alone(b)
	readAll(b, s, func(tunnel.Incoming) {})
	data, offload := tunneltest.Packet{
		Source: netip.AddrPortFrom(far4, 1000), Destination: netip.AddrPortFrom(near4, 80),
		Protocol: tunneltest.TCP, Flags: tunneltest.RST, Payload: make([]byte, 60000),
	}.Super(1400)
	out := []tunnel.Outgoing{{Offload: offload, Parts: [][]byte{data[:40], data[40:]}}}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(out); err != nil {
			b.Fatal(err)
		}
	}
}
