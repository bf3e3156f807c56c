package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	socksclient "golang.org/x/net/proxy"
)

func TestSOCKSErrors(t *testing.T) {
	n := newTwin()
	d := withDNS(t, n, cluster(), nil)
	d.SetServices([]Service{dnsService("10.244.0.2:53"), web()})
	_, proxy := startServer(t, d, nil)
	for to, want := range map[string]string{
		"192.0.2.1:80":                     "connection not allowed by ruleset",
		"127.0.0.1:22":                     "connection not allowed by ruleset",
		"10.96.5.5:80":                     "host unreachable",
		"nobody:80":                        "host unreachable",
		"10.244.3.3:80":                    "connection refused",
		"a b:80":                           "general SOCKS server failure",
		strings.Repeat("a.", 127) + "a:80": "general SOCKS server failure",
		strings.Repeat("x", 255) + ":80":   "general SOCKS server failure",
		"[::ffff:169.254.169.254]:80":      "connection not allowed by ruleset",
		"[fd00:96::5]:80":                  "host unreachable",
		"[fd00:244:77::1]:80":              "connection refused",
	} {
		conn, err := socksDial(t, proxy, to, nil)
		if err == nil {
			conn.Close()
		}
		wantError(t, err, want)
	}
}

func TestSOCKSNames(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", greet("web"))
	n.pod(t, "[fd00:244:1::6]:80", greet("v6"))
	_, proxy := startServer(t, withDNS(t, n, cluster(), nil), nil)
	for to, want := range map[string]string{"web.default:80": "web", "v6.default:80": "v6"} {
		conn, err := socksDial(t, proxy, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		readAll(t, conn, want)
	}
}

func TestSOCKSPassword(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", greet("in"))
	_, proxy := startServer(t, newTestDialer(t, n, nil), func(c *ServerConfig) { c.Username, c.Password = "me", "secret" })
	conn, err := socksDial(t, proxy, "10.244.1.7:80", &socksclient.Auth{User: "me", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	readAll(t, conn, "in")
	_, err = socksDial(t, proxy, "10.244.1.7:80", nil)
	wantError(t, err, "no acceptable authentication methods")
	for _, auth := range []socksclient.Auth{{User: "me", Password: "guess"}, {User: "you", Password: "secret"}} {
		_, err = socksDial(t, proxy, "10.244.1.7:80", &auth)
		wantError(t, err, "username/password authentication failed")
	}
}

// TestSOCKSBytes says what goes back for bytes that are not a plain CONNECT.
func TestSOCKSBytes(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	const hello, accepted = "\x05\x01\x00", "\x05\x00"
	const zero = "\x00\x01\x00\x00\x00\x00\x00\x00"
	for _, test := range []struct{ name, send, want string }{
		{"refused method", "\x05\x01\x02", "\x05\xff"},
		{"no methods", "\x05\x00", "\x05\xff"},
		{"many methods", "\x05\x03\x02\x01\x00", accepted},
		{"bind", hello + "\x05\x02\x00\x01\x0a\xf4\x01\x07\x00\x50", accepted + "\x05\x07" + zero},
		{"unknown command", hello + "\x05\x09\x00\x01\x0a\xf4\x01\x07\x00\x50", accepted + "\x05\x07" + zero},
		{"unknown address type", hello + "\x05\x01\x00\x02", accepted + "\x05\x08" + zero},
		{"empty name", hello + "\x05\x01\x00\x03\x00\x00\x50", accepted + "\x05\x01" + zero},
		{"name with NUL", hello + "\x05\x01\x00\x03\x01\x00\x00\x50", accepted + "\x05\x01" + zero},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial(TCP, proxy)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, test.send)
			conn.(*net.TCPConn).CloseWrite()
			// A server that leaves bytes unread resets after its answer.
			if got, err := io.ReadAll(conn); !strings.HasPrefix(string(got), test.want) || err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %x, %v; want %x", got, err, test.want)
			}
		})
	}
}

// pipeListener is a listener whose connections are pipes, for a bubble.
type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

// TestHalfOpenClients holds that who stops in the middle of saying what he
// wants is let go, and that who has said it is not.
func TestHalfOpenClients(t *testing.T) {
	for _, said := range []string{"", "\x05", "\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x03\x10web", "GET http://10.244.1.7/ HTTP/1.1\r\nHost"} {
		synctest.Test(t, func(t *testing.T) {
			s, err := NewServer(ServerConfig{Dialer: newTestDialer(t, newTwin(), nil), Logger: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			listener := newPipeListener()
			go s.Serve(listener)
			conn := listener.dial()
			go func() {
				for _, b := range []byte(said) {
					conn.Write([]byte{b})
				}
			}()
			begun := time.Now()
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("after %q: %v", said, err)
			}
			if took := time.Since(begun); took < handshakeTimeout || took > handshakeTimeout+time.Second {
				t.Errorf("after %q let go in %v, want %v", said, took, handshakeTimeout)
			}
			s.Close()
		})
	}
}

// pipes is an overlay where everybody answers with what he was sent.
type pipes struct {
	nowhere
	group sync.WaitGroup
}

func (p *pipes) DialContext(context.Context, string, netip.AddrPort) (net.Conn, error) {
	near, far := net.Pipe()
	p.group.Go(func() { echo(far) })
	return near, nil
}

// TestSilentTunnels holds that the time for saying what one wants does not
// bound what comes after it.
func TestSilentTunnels(t *testing.T) {
	for said, answer := range map[string]string{
		"\x05\x01\x00\x05\x01\x00\x01\x0a\xf4\x01\x07\x00\x50": "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00",
		"CONNECT 10.244.1.7:80 HTTP/1.1\r\nHost: x\r\n\r\n":    "HTTP/1.1 200 Connection established\r\n\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			overlay := &pipes{}
			s, err := NewServer(ServerConfig{Dialer: newTestDialer(t, overlay, nil), Logger: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			listener := newPipeListener()
			go s.Serve(listener)
			conn := listener.dial()
			go io.WriteString(conn, said)
			got := make([]byte, len(answer))
			if _, err := io.ReadFull(conn, got); err != nil {
				t.Fatalf("%q: %v after %q", said, err, got)
			}
			for range 3 {
				time.Sleep(100 * time.Hour)
				if _, err := io.WriteString(conn, "x"); err != nil {
					t.Fatalf("%q: %v", said, err)
				}
				if _, err := io.ReadFull(conn, got[:1]); err != nil || got[0] != 'x' {
					t.Fatalf("%q: got %q, %v", said, got[0], err)
				}
			}
			s.Close()
			overlay.group.Wait()
		})
	}
}

// associated is a client of UDP ASSOCIATE.
type associated struct {
	net.Conn // UDP
	control  net.Conn
}

func associate(t *testing.T, proxy string) associated {
	t.Helper()
	control, err := net.Dial(TCP, proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { control.Close() })
	_ = control.SetDeadline(time.Now().Add(20 * time.Second))
	io.WriteString(control, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
	reply := make([]byte, 2+4)
	if _, err := io.ReadFull(control, reply); err != nil || string(reply[:5]) != "\x05\x00\x05\x00\x00" {
		t.Fatalf("reply %x, %v", reply, err)
	}
	size := 4
	if reply[5] == socksIPv6 {
		size = 16
	}
	bound := make([]byte, size+2)
	if _, err := io.ReadFull(control, bound); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(bound[:size])
	conn, err := net.Dial(UDP, netip.AddrPortFrom(ip, binary.BigEndian.Uint16(bound[size:])).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return associated{conn, control}
}

// socksDatagram is payload for a target, "host:port".
func socksDatagram(target, payload string) string {
	host, port, err := splitHostPort(target)
	if err != nil {
		panic(err)
	}
	address := []byte{socksName, byte(len(host))}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		address = append([]byte{socksIPv4}, ip.AsSlice()...)
	} else if err == nil {
		address = append([]byte{socksIPv6}, ip.AsSlice()...)
	} else {
		address = append(address, host...)
	}
	return "\x00\x00\x00" + string(binary.BigEndian.AppendUint16(address, port)) + payload
}

func TestAssociate(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.7:53", same)
	n.podUDP(t, "[fd00:244:1::7]:53", same)
	d := withDNS(t, n, cluster(), nil)
	d.SetServices([]Service{dnsService("10.244.0.2:53"), web("10.244.1.7:53")})
	s, proxy := startServer(t, d, nil)
	client := associate(t, proxy)
	for _, to := range []string{"10.244.1.7:53", "[fd00:244:1::7]:53", "web.default:53", "10.96.5.5:7", "[fd00:96::5]:7"} {
		datagram := socksDatagram(to, "ask "+to)
		if got := exchangeUDP(t, client, datagram); got != datagram {
			t.Errorf("%s: got %q, want %q", to, got, datagram)
		}
	}
	if c := s.Traffic().Connections; c != 1+5 {
		t.Errorf("%d open, want the client and five targets", c)
	}
	client.control.Close()
	eventually(t, "the association has ended", func() bool { return s.Traffic().Connections == 0 })
	eventually(t, "its socket is closed", func() bool {
		_, err := client.Write([]byte("x"))
		return err != nil
	})
}

// TestAssociateDrops holds that what cannot be carried is dropped and counted,
// and that the association goes on.
func TestAssociateDrops(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.7:53", same)
	n.podUDP(t, "10.244.1.8:53", func([]byte) []byte { return make([]byte, 65500) })
	s, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	client := associate(t, proxy)
	good := socksDatagram("10.244.1.7:53", "good")
	if got := exchangeUDP(t, client, good); got != good {
		t.Fatalf("got %q", got)
	}
	stranger, err := net.Dial(UDP, client.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	fragment := "\x00\x00\x01" + good[3:]
	for i, test := range []struct {
		name     string
		from     net.Conn
		datagram string
	}{
		{"fragment", client, fragment},
		{"last fragment", client, "\x00\x00\x82" + good[3:]},
		{"no header", client, "x"},
		{"reserved bytes", client, "\x01" + good[1:]},
		{"no target", client, "\x00\x00\x00\x03\xffshort"},
		{"outside", client, socksDatagram("192.0.2.1:53", "x")},
		{"another port", stranger, good},
		// The header on top makes the answer larger than UDP carries.
		{"answer too large", client, socksDatagram("10.244.1.8:53", "x")},
	} {
		if _, err := io.WriteString(test.from, test.datagram); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		eventually(t, test.name+" is counted", func() bool { return s.Traffic().Dropped >= uint64(i+1) })
	}
	if got := exchangeUDP(t, client, good); got != good {
		t.Errorf("got %q", got)
	}
	if dropped := s.Traffic().Dropped; dropped != 8 {
		t.Errorf("%d dropped, want 8", dropped)
	}
}

// TestAssociateLarge holds that datagrams are never cut: 8 KiB and more go
// through whole.
func TestAssociateLarge(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.7:53", same)
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	client := associate(t, proxy)
	for _, size := range []int{0, 1, 8 << 10, 20000, 65000} {
		datagram := socksDatagram("10.244.1.7:53", strings.Repeat("x", size))
		if got := exchangeUDP(t, client, datagram); got != datagram {
			t.Errorf("%d bytes: got %d back", size, len(got))
		}
	}
}

// slowTwin is a twin where one address is dialled only when release is closed.
type slowTwin struct {
	*twin
	slow    netip.AddrPort
	release chan struct{}
}

func (n slowTwin) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if to == n.slow {
		<-n.release
	}
	return n.twin.DialContext(ctx, network, to)
}

// TestAssociateDialsApart holds that a target that takes long to dial does not
// hold up others, and gets what was sent meanwhile.
func TestAssociateDialsApart(t *testing.T) {
	n := slowTwin{newTwin(), netip.MustParseAddrPort("10.244.1.8:53"), make(chan struct{})}
	n.podUDP(t, "10.244.1.7:53", same)
	n.podUDP(t, "10.244.1.8:53", same)
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	client := associate(t, proxy)
	slow := socksDatagram("10.244.1.8:53", "slow")
	io.WriteString(client, slow)
	good := socksDatagram("10.244.1.7:53", "good")
	if got := exchangeUDP(t, client, good); got != good {
		t.Errorf("got %q", got)
	}
	close(n.release)
	_ = client.SetReadDeadline(time.Now().Add(20 * time.Second))
	buffer := make([]byte, 100)
	size, err := client.Read(buffer)
	for err == nil && string(buffer[:size]) == good { // answers to what was sent twice
		size, err = client.Read(buffer)
	}
	if err != nil || string(buffer[:size]) != slow {
		t.Errorf("got %q, %v", buffer[:size], err)
	}
}

// nowhere is a Network that reaches nothing.
type nowhere struct{}

func (nowhere) DialContext(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, syscall.ECONNREFUSED
}
func (nowhere) ListenTCP(netip.AddrPort) (net.Listener, error)   { return nil, syscall.EADDRINUSE }
func (nowhere) ListenUDP(netip.AddrPort) (net.PacketConn, error) { return nil, syscall.EADDRINUSE }

// fuzzServer sends bytes to a proxy as one client and waits until it is done.
func fuzzServer(t *testing.T, sent []byte) []byte {
	d, err := NewDialer(DialerConfig{Network: nowhere{}, Overlay: podNetworks, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ServerConfig{Dialer: d, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	listener := newPipeListener()
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	conn := listener.dial()
	answered := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(conn)
		answered <- all
	}()
	_, _ = conn.Write(sent) // until the server has enough of it
	conn.Close()
	all := <-answered
	s.Close()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	return all
}

func FuzzSOCKS(f *testing.F) {
	for _, seed := range []string{
		"\x01\x00\x05\x01\x00\x01\x0a\xf4\x01\x07\x00\x50data", "\x01\x00\x05\x01\x00\x03\x03web\x00\x50", "\x01\x02",
		"\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", "\x01\x00\x05\x02\x00\x04", "\xff",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		answer := fuzzServer(t, append([]byte{socksVersion}, sent...))
		if len(answer) > 0 && answer[0] != socksVersion {
			t.Errorf("answer %x", answer)
		}
	})
}

func FuzzSOCKSDatagram(f *testing.F) {
	for _, seed := range []string{socksDatagram("10.244.1.7:53", "x"), socksDatagram("[fd00::1]:53", ""), socksDatagram("web:53", "x"), "\x00\x00\x01"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		target, payload, err := parseSOCKSDatagram(datagram)
		if err != nil {
			return
		}
		if again := append(append([]byte{0, 0, 0}, target...), payload...); !bytes.Equal(again, datagram) {
			t.Errorf("%x is %x and %x", datagram, target, payload)
		}
		if !strings.Contains(socksHostPort(target), ":") {
			t.Errorf("target %x is %q", target, socksHostPort(target))
		}
	})
}
