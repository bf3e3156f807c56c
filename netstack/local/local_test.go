package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/netstack/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback is an Overlay that is this machine.
type loopback struct{}

var errForbidden = errors.New("10.0.0.1:80 is outside the overlay: --allow-outside lets it be reached")

func (loopback) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if address == "10.0.0.1:80" {
		return nil, errForbidden
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, network, address)
}

func (loopback) LookupNetIP(_ context.Context, host string) ([]netip.Addr, error) {
	if host != "web" {
		return nil, fmt.Errorf("resolve %s: no such name", host)
	}
	return []netip.Addr{netip.MustParseAddr("10.244.1.7")}, nil
}

func (loopback) Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error) {
	if to != netip.MustParseAddr("10.244.1.7") {
		return 0, fmt.Errorf("ping %v: no answer", to)
	}
	return time.Duration(size) * time.Microsecond, nil
}

// nowhere is a Network that reaches nothing.
type nowhere struct{}

var errNowhere = errors.New("reaches nothing")

func (nowhere) DialContext(context.Context, string, netip.AddrPort) (net.Conn, error) {
	return nil, errNowhere
}
func (nowhere) ListenTCP(netip.AddrPort) (net.Listener, error)   { return nil, errNowhere }
func (nowhere) ListenUDP(netip.AddrPort) (net.PacketConn, error) { return nil, errNowhere }

// newClient serves the overlay on a unix socket as an agent would.
func newClient(t *testing.T) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.DiscardHandler)
	dialer, err := proxy.NewDialer(proxy.DialerConfig{Network: nowhere{}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ports, err := proxy.NewPorts(proxy.PortsConfig{Network: nowhere{}, Dialer: dialer, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ports.Close() })
	mux := http.NewServeMux()
	for path, handler := range Handlers(loopback{}, ports, slog.New(slog.DiscardHandler)) {
		mux.Handle("/v1/"+path, handler)
	}
	server := &http.Server{Handler: mux, ReadTimeout: 100 * time.Millisecond}
	ended := make(chan error)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return &Client{Dial: func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}}
}

// upper answers each connection with what it sends, in capitals, once its
// sending is over.
func upper(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			got, _ := io.ReadAll(conn)
			conn.Write(bytes.ToUpper(got))
			conn.Close()
		}
	}()
	return listener.Addr().String()
}

func TestDialTCP(t *testing.T) {
	client := newClient(t)
	conn, err := client.DialContext(t.Context(), "tcp", upper(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	time.Sleep(200 * time.Millisecond) // longer than a request may take
	text := strings.Repeat("to the overlay ", 100000)
	go func() {
		io.WriteString(conn, text)
		conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || string(got) != strings.ToUpper(text) {
		t.Errorf("got %d bytes of %d, %v", len(got), len(text), err)
	}
}

func TestDialUDP(t *testing.T) {
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buffer := make([]byte, 65536)
		for {
			n, from, err := echo.ReadFrom(buffer)
			if err != nil {
				return
			}
			echo.WriteTo(buffer[:n], from)
		}
	}()
	conn, err := newClient(t).DialContext(t.Context(), "udp", echo.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buffer := make([]byte, 65536)
	for _, size := range []int{0, 1, 1400, maxDatagram} {
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := conn.Write(sent); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buffer); err != nil || !bytes.Equal(buffer[:n], sent) {
			t.Fatalf("%d bytes came back as %d, %v", size, n, err)
		}
	}
	if _, err := conn.Write(make([]byte, maxDatagram+1)); err == nil {
		t.Error("a datagram that cannot be is sent")
	}
	// What does not fit is lost, and the next datagram is whole.
	for _, sent := range []string{"longer than the buffer", "next"} {
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := conn.Read(buffer[:6]); err != nil || string(buffer[:n]) != "longer" {
		t.Errorf("%q, %v", buffer[:n], err)
	}
	if n, err := conn.Read(buffer); err != nil || string(buffer[:n]) != "next" {
		t.Errorf("%q, %v", buffer[:n], err)
	}
}

func TestRefusals(t *testing.T) {
	client := newClient(t)
	for _, test := range []struct{ network, address, want string }{
		{"tcp", "10.0.0.1:80", "--allow-outside"},
		{"icmp", "127.0.0.1:80", "want POST with network=tcp"},
		{"tcp", "", "address=host:port"},
		{"tcp", "127.0.0.1:1", "refused"},
	} {
		if _, err := client.DialContext(t.Context(), test.network, test.address); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("dial %s %s: %v, want %q", test.network, test.address, err, test.want)
		}
	}
	for _, test := range []struct {
		host string
		size int
		want string
	}{{"nobody", 1, "no such name"}, {"10.244.1.8", 1, "no answer"}, {"web", -1, "want 0 to"}, {"web", maxPing + 1, "want 0 to"}} {
		if _, err := client.Ping(t.Context(), test.host, test.size); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("ping %s with %d: %v, want %q", test.host, test.size, err, test.want)
		}
	}
	if err := client.Call(t.Context(), http.MethodGet, "other", nil, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("another resource: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.DialContext(ctx, "tcp", "127.0.0.1:1"); err == nil {
		t.Error("dials when nobody waits any more")
	}
}

func (loopback) Way() Way { return way }

var way = Way{Proxy: "127.0.0.1:1080", DNS: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}, Search: []string{"cluster.local"}}

func TestWay(t *testing.T) {
	if got, err := newClient(t).Way(t.Context()); err != nil || !reflect.DeepEqual(got, way) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPing(t *testing.T) {
	want := Pong{Address: netip.MustParseAddr("10.244.1.7"), Size: 56, RTT: 56 * time.Microsecond}
	if got, err := newClient(t).Ping(t.Context(), "web", 56); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

func TestPorts(t *testing.T) {
	client := newClient(t)
	added, err := client.AddPort(t.Context(), proxy.KindForward, "127.0.0.1:0=10.244.1.7:80")
	if err != nil || added.ID == "" || added.State != proxy.StateListening {
		t.Fatalf("%+v, %v", added, err)
	}
	// What is accepted is reset, as nowhere is reached: that may be before the
	// dial returns.
	switch conn, err := net.Dial("tcp", added.Listen[0]); {
	case err == nil:
		conn.Close()
	case errors.Is(err, syscall.ECONNREFUSED):
		t.Fatalf("the port is gone with the request: %v", err)
	}
	if all, err := client.Ports(t.Context()); err != nil || len(all) != 1 || all[0].ID != added.ID {
		t.Errorf("%+v, %v", all, err)
	}
	for _, test := range []struct{ kind, spec, want string }{
		{"forward", "80", "LOCAL=HOST:PORT"}, {"expose", "80=", "expose"}, {"expose", "8080", "reaches nothing"}, {"both", "80", "want forward or expose"},
	} {
		if _, err := client.AddPort(t.Context(), proxy.Kind(test.kind), test.spec); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s: %v, want %q", test.kind, test.spec, err, test.want)
		}
	}
	if err := client.RemovePort(t.Context(), "another"); !errors.Is(err, ErrRefused) {
		t.Errorf("another is removed: %v", err)
	}
	if err := client.RemovePort(t.Context(), added.ID); err != nil {
		t.Error(err)
	}
	if all, err := client.Ports(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := client.Call(t.Context(), http.MethodPatch, portsPath, nil, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("another method: %v", err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 3, 'a', 'b', 'c', 0, 0, 255})
	f.Fuzz(func(_ *testing.T, stream []byte) {
		a, b := net.Pipe()
		defer b.Close()
		go func() {
			a.Write(stream)
			a.Close()
		}()
		frames, buffer := newFrames(b), make([]byte, 100)
		for {
			if _, err := frames.Read(buffer); err != nil {
				return
			}
		}
	})
}
