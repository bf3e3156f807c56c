package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The overlay of the tests: pods, Services, and this host's own addresses.
var (
	podNetworks  = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/32")}
	serviceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")}
	ownAddresses = []netip.Addr{netip.MustParseAddr("10.244.9.1"), netip.MustParseAddr("fd00:244:9::1")}
)

// twin is an overlay made of loopback sockets: each overlay address and port
// that somebody listens on stands for a socket of 127.0.0.1 or ::1.
type twin struct {
	mu    sync.Mutex
	ports map[frontend]string
}

func newTwin() *twin { return &twin{ports: map[frontend]string{}} }

func (n *twin) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	at, ok := n.ports[frontend{network, to}]
	n.mu.Unlock()
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: syscall.ECONNREFUSED}
	}
	return new(net.Dialer).DialContext(ctx, network, at)
}

func (n *twin) ListenTCP(local netip.AddrPort) (net.Listener, error) {
	loopback := "127.0.0.1:0"
	if local.Addr().Is6() {
		loopback = "[::1]:0"
	}
	listener, err := net.Listen(TCP, loopback)
	if err != nil {
		return nil, err
	}
	if err := n.put(TCP, local, listener.Addr()); err != nil {
		listener.Close()
		return nil, err
	}
	return &twinListener{listener, func() { n.take(TCP, local) }}, nil
}

func (n *twin) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	loopback := "127.0.0.1:0"
	if local.Addr().Is6() {
		loopback = "[::1]:0"
	}
	conn, err := net.ListenPacket(UDP, loopback)
	if err != nil {
		return nil, err
	}
	if err := n.put(UDP, local, conn.LocalAddr()); err != nil {
		conn.Close()
		return nil, err
	}
	return &twinPacketConn{conn, func() { n.take(UDP, local) }}, nil
}

// each calls f with what local stands for.
func each(local netip.AddrPort, f func(netip.AddrPort)) {
	if local.Addr().IsValid() {
		f(local)
		return
	}
	for _, own := range ownAddresses {
		f(netip.AddrPortFrom(own, local.Port()))
	}
}

func (n *twin) put(protocol string, local netip.AddrPort, at net.Addr) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	each(local, func(a netip.AddrPort) {
		if _, taken := n.ports[frontend{protocol, a}]; taken {
			err = fmt.Errorf("listen %s %s: %w", protocol, a, syscall.EADDRINUSE)
		}
	})
	if err == nil {
		each(local, func(a netip.AddrPort) { n.ports[frontend{protocol, a}] = at.String() })
	}
	return err
}

func (n *twin) take(protocol string, local netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	each(local, func(a netip.AddrPort) { delete(n.ports, frontend{protocol, a}) })
}

type twinListener struct {
	net.Listener
	gone func()
}

func (l *twinListener) Close() error {
	l.gone()
	return l.Listener.Close()
}

type twinPacketConn struct {
	net.PacketConn
	gone func()
}

func (c *twinPacketConn) Close() error {
	c.gone()
	return c.PacketConn.Close()
}

// pod runs handle for each stream that arrives at an overlay address.
func (n *twin) pod(t *testing.T, at string, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	address := netip.MustParseAddrPort(at)
	listener, err := n.ListenTCP(address)
	if err != nil {
		t.Fatal(err)
	}
	serveStreams(t, listener, handle)
	return address
}

// serveStreams runs handle for each connection until the test ends.
func serveStreams(t *testing.T, listener net.Listener, handle func(net.Conn)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() {
		accept(ctx, &group, listener, &traffic{}, func(error) {}, func(c *counted) {
			defer closeOn(ctx, c)()
			handle(c.Conn)
		})
	})
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
}

// echo answers with what it was sent, and ends when the client does.
func echo(conn net.Conn) {
	_, _ = io.Copy(conn, conn)
}

// greet says text and closes.
func greet(text string) func(net.Conn) {
	return func(conn net.Conn) { _, _ = io.WriteString(conn, text) }
}

// podUDP answers each datagram that arrives at an overlay address with what
// answer makes of it; nil is no answer.
func (n *twin) podUDP(t *testing.T, at string, answer func([]byte) []byte) netip.AddrPort {
	t.Helper()
	address := netip.MustParseAddrPort(at)
	conn, err := n.ListenUDP(address)
	if err != nil {
		t.Fatal(err)
	}
	serveUDP(t, conn, answer)
	return address
}

func serveUDP(t *testing.T, conn net.PacketConn, answer func([]byte) []byte) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if reply := answer(buffer[:n]); err == nil && reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
}

func same(datagram []byte) []byte { return datagram }

// newTestDialer is a Dialer on n; edit may change its config.
func newTestDialer(t *testing.T, n Network, edit func(*DialerConfig)) *Dialer {
	t.Helper()
	config := DialerConfig{Network: n, Overlay: podNetworks, Services: serviceCIDRs, Logger: quiet()}
	if edit != nil {
		edit(&config)
	}
	d, err := NewDialer(config)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// testContext bounds what would otherwise hang.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// roundTrip sends text, closes that direction and returns all that comes back.
func roundTrip(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := closeWrite(conn); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("after %q: %v", all, err)
	}
	return string(all)
}

// exchangeUDP sends a datagram until an answer comes back, which it returns.
func exchangeUDP(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	buffer := make([]byte, maxDatagram)
	for range 20 {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(buffer)
		if err == nil {
			return string(buffer[:n])
		}
	}
	t.Fatalf("no answer to %q", text)
	return ""
}

// eventually waits until check is true.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for range 2000 {
		if check() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("in vain waited until %s", what)
}

// wantError checks that err says all of texts.
func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error is %v, want it to say %q", err, text)
		}
	}
}
