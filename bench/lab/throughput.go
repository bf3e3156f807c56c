package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

// CongestionControls are those of TCP to measure with, in the order in which they
// are tried. The machine's default never applies: it decides more than any tunnel
// does, and a connection that has begun with one that paces, as bbr does, is paced
// for good, even if it is given another one later, as by iperf3.
func CongestionControls() []string { return []string{"cubic", "reno"} }

// Throughput sends one TCP stream from one namespace to an address of another
// for a while and returns the gigabits per second that arrived. The congestion
// control is cubic where the kernel has it.
func Throughput(ctx context.Context, from, to *Namespace, addr netip.Addr, duration time.Duration) (gbps float64, err error) {
	return ThroughputVia(ctx, from, to, netip.AddrPort{}, netip.AddrPortFrom(addr, 0), duration)
}

// ThroughputVia is Throughput where something in between leads what is sent to
// via on to the address at of the other namespace; zero: nothing does.
func ThroughputVia(ctx context.Context, from, to *Namespace, via, at netip.AddrPort, duration time.Duration) (gbps float64, err error) {
	listener, err := to.Listen(ctx, "tcp", at.String())
	if err != nil {
		return 0, fmt.Errorf("measure throughput: %w", err)
	}
	target := listener.Addr().String()
	if via.IsValid() {
		target = via.String()
	}
	dial := func(ctx context.Context) (net.Conn, error) { return from.Dial(ctx, "tcp", target) }
	if gbps, err = ThroughputOver(ctx, listener, dial, duration); err != nil {
		return 0, fmt.Errorf("measure throughput from %s to %s: %w", from.name, to.name, err)
	}
	return gbps, nil
}

// ThroughputOver is Throughput between whatever listener, which it closes, and
// dial are.
func ThroughputOver(ctx context.Context, listener net.Listener, dial func(context.Context) (net.Conn, error), duration time.Duration) (gbps float64, err error) {
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		gbps, err = receiveAll(ctx, listener)
		return err
	})
	group.Go(func() error {
		conn, err := dial(ctx)
		if err != nil {
			listener.Close() // nobody will come
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		return sendFor(conn, duration)
	})
	return gbps, group.Wait()
}

const streamBuffer = 256 << 10

func receiveAll(ctx context.Context, listener net.Listener) (gbps float64, err error) {
	conn, err := listener.Accept()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	start := time.Now()
	buffer := make([]byte, streamBuffer)
	var total int64
	for {
		n, err := conn.Read(buffer)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return float64(total) * 8 / float64(time.Since(start).Nanoseconds()), nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func sendFor(conn net.Conn, duration time.Duration) error {
	if kernels, ok := conn.(*net.TCPConn); ok {
		if err := useCubic(kernels); err != nil {
			return fmt.Errorf("set congestion control: %w", err)
		}
	}
	buffer := make([]byte, streamBuffer)
	for start := time.Now(); time.Since(start) < duration; {
		if _, err := conn.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

// Echo answers on an address of the namespace, over TCP and UDP at one port,
// with what it is sent, until ctx ends. It returns the address and port.
func (n *Namespace) Echo(ctx context.Context, addr netip.AddrPort) (netip.AddrPort, error) {
	listener, err := n.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	bound := listener.Addr().(*net.TCPAddr).AddrPort()
	bound = netip.AddrPortFrom(addr.Addr(), bound.Port())
	packets, err := n.ListenPacket(ctx, "udp", bound.String())
	if err != nil {
		listener.Close()
		return netip.AddrPort{}, err
	}
	ServeEcho(ctx, listener, packets)
	return bound, nil
}

// ServeEcho answers with what it is sent until ctx ends, and then closes both.
func ServeEcho(ctx context.Context, listener net.Listener, packets net.PacketConn) {
	context.AfterFunc(ctx, func() {
		listener.Close()
		packets.Close()
	})
	go echoStreams(ctx, listener)
	go echoPackets(packets)
}

func echoStreams(ctx context.Context, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			io.Copy(conn, conn) // ends when either side does
		}()
	}
}

func echoPackets(conn net.PacketConn) {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buffer)
		if err != nil {
			return
		}
		conn.WriteTo(buffer[:n], from) // a lost answer is the asker's to notice
	}
}
