package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// connect opens a TCP connection and gives both its ends.
func connect(t testing.TB, from, to *site, is4 bool) (dialled, accepted net.Conn) {
	t.Helper()
	listener, err := to.listen(is4)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err = from.dial(timeout(t, 10*time.Second), listener.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	if accepted, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

// TestDatagrams: UDP of all sizes is echoed, in fragments where it must be, to
// sockets on one address, on one family and on all.
func TestDatagrams(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		for _, test := range []struct {
			listen, dial netip.Addr
		}{
			{b.addr(true), b.addr(true)},
			{b.addr(false), b.addr(false)},
			{b.addr(true).Next(), b.addr(true).Next()},
			{netip.IPv4Unspecified(), b.addr(true)},
			{netip.IPv6Unspecified(), b.addr(false)},
			{netip.Addr{}, b.addr(true)},
			{netip.Addr{}, b.addr(false)},
		} {
			socket, err := b.ListenUDP(netip.AddrPortFrom(test.listen, 0))
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				buffer := make([]byte, 1<<16)
				for {
					n, from, err := socket.ReadFrom(buffer)
					if err != nil {
						return
					}
					socket.WriteTo(buffer[:n], from)
				}
			}()
			port := socket.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			conn, err := a.DialContext(t.Context(), "udp", netip.AddrPortFrom(test.dial, port))
			if err != nil {
				t.Fatal(err)
			}
			for _, size := range []int{0, 1, 64, 1398, 1422, 1500, 4000, 60000} {
				sent, got := bytes.Repeat([]byte{byte(size), 7}, size)[:size], make([]byte, 1<<16)
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := conn.Write(sent); err != nil {
					t.Fatalf("%v: write %d: %v", test.dial, size, err)
				}
				if n, err := conn.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
					t.Fatalf("%v: read %d of %d: %v", test.dial, n, size, err)
				}
			}
			if _, err := conn.Write(make([]byte, 1<<16)); !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("oversized datagram: %v", err)
			}
			conn.Close()
			socket.Close()
		}
	})
}

// TestRefused: closed ports say so at once, of either family and protocol.
func TestRefused(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		for _, is4 := range []bool{true, false} {
			to := netip.AddrPortFrom(b.addr(is4), 9)
			if _, err := a.dial(timeout(t, 5*time.Second), to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("dial tcp %v: %v", to, err)
			}
			conn, err := a.DialContext(t.Context(), "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			conn.Write([]byte("anyone?"))
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			for err = nil; err == nil; {
				if _, err = conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					break
				} else if err == nil {
					continue
				}
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("udp %v: %v", to, err)
			}
			conn.Close()
		}
	})
}

// TestBadDials: what cannot be dialled or listened on says why.
func TestBadDials(t *testing.T) {
	only4, err := New(Config{Name: "weft0", MTU: 1400, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.0")}})
	if err != nil {
		t.Fatal(err)
	}
	defer only4.Close()
	for _, test := range []struct{ network, to string }{
		{"tcp", "[fd00::1]:80"}, {"udp", "[fd00::1]:80"}, {"sctp", "10.244.1.1:80"}, {"tcp", "0.0.0.0:80"},
	} {
		if conn, err := only4.DialContext(t.Context(), test.network, netip.MustParseAddrPort(test.to)); err == nil {
			conn.Close()
			t.Errorf("dial %v was not refused", test)
		}
	}
	first, err := only4.ListenTCP(netip.MustParseAddrPort("10.244.1.0:80"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := only4.ListenTCP(netip.MustParseAddrPort("10.244.1.0:80")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port in use: %v", err)
	}
	if _, err := only4.ListenUDP(netip.MustParseAddrPort("10.244.1.9:80")); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("foreign address: %v", err)
	}
	go first.Close()
	if _, err := first.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	// Its own listener is reached without a wire.
	own, err := only4.ListenTCP(netip.MustParseAddrPort("10.244.1.0:81"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	conn, err := only4.DialContext(t.Context(), "tcp", netip.MustParseAddrPort("10.244.1.0:81"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// TestConfig: bad settings are refused, and say what is wrong.
func TestConfig(t *testing.T) {
	good := Config{Name: "weft0", MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.0"), netip.MustParseAddr("fd00::")}}
	for name, spoil := range map[string]func(*Config){
		"name":      func(c *Config) { c.Name = "" },
		"none":      func(c *Config) { c.Addresses = nil },
		"small":     func(c *Config) { c.MTU = 67 },
		"large":     func(c *Config) { c.MTU = 1 << 16 },
		"v6":        func(c *Config) { c.MTU = 1279 },
		"twice":     func(c *Config) { c.Addresses = append(c.Addresses, c.Addresses[0]) },
		"multicast": func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("224.0.0.1")} },
		"mapped":    func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")} },
	} {
		config := good
		spoil(&config)
		if s, err := New(config); err == nil {
			s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	s, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SetMTU(1000); err == nil {
		t.Error("an MTU that IPv6 does not allow was accepted")
	}
}

// TestHalves: a connection that is closed one way goes on the other way, a
// deadline may be moved while it is waited for, and a reset is told.
func TestHalves(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		near, far := connect(t, a, b, true)
		go func() {
			near.Write([]byte("question"))
			near.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if got, err := io.ReadAll(far); err != nil || string(got) != "question" {
			t.Fatalf("read %q: %v", got, err)
		}
		go func() {
			far.Write([]byte("answer"))
			far.Close()
		}()
		if got, err := io.ReadAll(near); err != nil || string(got) != "answer" {
			t.Fatalf("read %q: %v", got, err)
		}

		near, far = connect(t, a, b, false)
		time.AfterFunc(50*time.Millisecond, func() { near.SetReadDeadline(time.Unix(1, 0)) })
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read past its deadline: %v", err)
		}
		near.SetReadDeadline(time.Time{})
		// Closing with unread data resets.
		near.Write([]byte("unread"))
		far.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := far.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		far.Close()
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read from a reset connection: %v", err)
		}
	})
}

// TestLoss: a wire that loses and reorders delays streams, and changes nothing.
func TestLoss(t *testing.T) {
	a, b := onWire(t, tunneltest.WireConfig{Seed: 1, Loss: 0.01, Reorder: 0.01}, tunnel.Offloads{})
	group, ctx := errgroup.WithContext(timeout(t, 2*time.Minute))
	for i := range 4 {
		group.Go(func() error { return transfer(ctx, a.dial, b.listen, i%2 == 0, 2<<20) })
		group.Go(func() error { return transfer(ctx, b.dial, a.listen, i%2 == 0, 2<<20) })
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// TestMTU: streams live through changes of the MTU, of either end.
func TestMTU(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		ctx := timeout(t, time.Minute)
		group, ctx := errgroup.WithContext(ctx)
		done := make(chan struct{})
		group.Go(func() error {
			defer close(done)
			inner, ctx := errgroup.WithContext(ctx)
			for _, is4 := range []bool{true, false} {
				inner.Go(func() error { return transfer(ctx, a.dial, b.listen, is4, 30<<20) })
				inner.Go(func() error { return transfer(ctx, b.dial, a.listen, is4, 30<<20) })
			}
			return inner.Wait()
		})
		group.Go(func() error {
			for i := 0; ; i++ {
				select {
				case <-done:
					return nil
				case <-time.After(10 * time.Millisecond):
				}
				mtu := []int{1450, 1280, 1400}[i%3]
				if err := errors.Join(a.SetMTU(mtu), b.SetMTU([]int{1300, 1450}[i%2])); err != nil {
					return err
				}
			}
		})
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestPathMTU: streams adapt to paths that come to carry less and less. Who
// sends waits for the engine, which tells it of the MTU meanwhile: neither must
// wait for the other.
func TestPathMTU(t *testing.T) {
	a, b := onWire(t, tunneltest.WireConfig{}, tunneltest.AllOffloads())
	group, ctx := errgroup.WithContext(timeout(t, time.Minute))
	for i := range 16 {
		group.Go(func() error { return transfer(ctx, a.dial, b.listen, i%2 == 0, 4<<20) })
		group.Go(func() error { return transfer(ctx, b.dial, a.listen, i%2 == 0, 4<<20) })
	}
	group.Go(func() error {
		for mtu := testMTU; mtu > 1280; mtu -= 5 {
			time.Sleep(10 * time.Millisecond)
			for here, there := range map[*site]*site{a: b, b: a} {
				smaller := peers(there)
				for i := range smaller {
					smaller[i].MTU = mtu
				}
				if err := here.engine.SetPeers(smaller); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	for _, s := range []*site{a, b} {
		if s.engine.Stats().Value(engine.TxICMP) == 0 {
			t.Errorf("%s was not told of the MTU", s.name)
		}
	}
}

// TestChurn: connections that are opened and dropped leave nothing behind.
func TestChurn(t *testing.T) {
	const connections = 10000
	a, b := onWire(t, tunneltest.WireConfig{}, tunneltest.AllOffloads())
	wait := tcpip.TCPTimeWaitTimeoutOption(10 * time.Millisecond)
	for _, s := range []*site{a, b} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &wait); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := b.ListenTCP(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	churn := func(count int) {
		group, ctx := errgroup.WithContext(timeout(t, time.Minute))
		group.SetLimit(50)
		for i := range count {
			group.Go(func() error {
				conn, err := a.dial(ctx, netip.AddrPortFrom(b.addr(i%2 == 0), port))
				if err != nil {
					return err
				}
				if i%3 > 0 {
					conn.Write([]byte("hello"))
				}
				return conn.Close()
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	settle := func(what string, is func() bool) {
		t.Helper()
		for limit := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s stays", what)
			}
			runtime.GC()
		}
	}
	gone := func() bool {
		return len(a.stack.RegisteredEndpoints())+len(b.stack.RegisteredEndpoints()) <= 2 &&
			len(a.stack.CleanupEndpoints())+len(b.stack.CleanupEndpoints()) == 0
	}
	churn(500)
	settle("an endpoint", gone)
	goroutines, heap := runtime.NumGoroutine(), heapBytes()
	churn(connections)
	settle("an endpoint", gone)
	settle("a goroutine", func() bool { return runtime.NumGoroutine() <= goroutines })
	settle("memory", func() bool { return heapBytes() < heap+8<<20 })
}

func heapBytes() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestClose: Close ends everything there is, while there is traffic both ways.
func TestClose(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		var group sync.WaitGroup
		for i := range 16 {
			from, to := a, b
			if i%2 == 0 {
				from, to = b, a
			}
			near, far := connect(t, from, to, i%4 < 2)
			group.Go(func() { io.Copy(io.Discard, far) })
			group.Go(func() {
				for buffer := make([]byte, 64<<10); ; {
					if _, err := near.Write(buffer); err != nil {
						return
					}
				}
			})
		}
		listener, err := a.ListenTCP(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		socket, err := a.ListenUDP(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept: %v", err)
			}
		})
		group.Go(func() {
			if _, _, err := socket.ReadFrom(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read from UDP: %v", err)
			}
		})
		group.Go(func() { // an address that never answers
			if _, err := a.dial(context.Background(), netip.MustParseAddrPort("10.244.2.77:80")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("dial: %v", err)
			}
		})
		time.Sleep(100 * time.Millisecond)
		if err := errors.Join(a.Close(), b.Close(), a.Close()); err != nil {
			t.Error(err)
		}
		group.Wait()
		if _, err := a.dial(context.Background(), netip.MustParseAddrPort("10.244.2.0:80")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("dial after close: %v", err)
		}
		if n, err := a.Write([]tunnel.Outgoing{{Parts: [][]byte{make([]byte, 40)}}}); n != 0 || !errors.Is(err, tunnel.ErrClosed) {
			t.Errorf("write after close: %d, %v", n, err)
		}
	})
}
