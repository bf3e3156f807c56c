package member

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"

	"github.com/weft-net/weft/netstack"
	weftproxy "github.com/weft-net/weft/netstack/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	own     = netip.MustParseAddr("10.244.2.0")
	other   = netip.MustParseAddr("10.244.1.0")
	overlay = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
)

// newStack makes a Stack that is closed at the end.
func newStack(t *testing.T, addr netip.Addr) *netstack.Stack {
	t.Helper()
	stack, err := netstack.New(netstack.Config{Name: "test", MTU: 1450, Addresses: []netip.Addr{addr}})
	if err != nil {
		t.Fatal(err)
	}
	return stack
}

// wire carries packets between two Stacks until the end, or until it is cut.
func wire(t *testing.T, a, b *netstack.Stack) (cut func()) {
	t.Helper()
	var pumps sync.WaitGroup
	pumps.Go(func() { netstack.Carry(a, b) })
	pumps.Go(func() { netstack.Carry(b, a) })
	cut = sync.OnceFunc(func() {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Error(err)
		}
		pumps.Wait()
	})
	t.Cleanup(cut)
	return cut
}

// start runs a Member until the end of the test.
func start(t *testing.T, config Config) *Member {
	t.Helper()
	config.Logger = slog.New(slog.DiscardHandler)
	m, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return m
}

// freePort is a port of loopback that nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// serve answers every HTTP request with text.
func serve(t *testing.T, listener net.Listener, text string) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
}

// get asks for text by HTTP, again until there is an answer.
func get(t *testing.T, dial func(ctx context.Context, network, addr string) (net.Conn, error), url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 2 * time.Second}
	var last error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		response, err := client.Get(url)
		if err != nil {
			last = err
			continue
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	t.Fatalf("get %s: %v", url, last)
	return ""
}

// via dials on a Stack.
func via(stack *netstack.Stack) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		return stack.DialContext(ctx, network, netip.MustParseAddrPort(addr))
	}
}

// What is exposed is reached on the stack of the moment, and on the next one as
// well; so is what a command has exposed since.
func TestExposedOnEveryStack(t *testing.T) {
	local, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, local, "exposed")
	expose := weftproxy.Expose{Protocol: weftproxy.TCP, Port: 80, Target: local.Addr().String()}
	m := start(t, Config{Exposes: []weftproxy.Expose{expose}})
	if _, err := m.ListenTCP(netip.AddrPort{}); !errors.Is(err, ErrNoStack) {
		t.Errorf("before there is a stack: %v", err)
	}
	for round := range 2 {
		mine, peer := newStack(t, own), newStack(t, other)
		cut := wire(t, mine, peer)
		m.Use(mine, overlay)
		if got := get(t, via(peer), "http://10.244.2.0"); got != "exposed" {
			t.Errorf("round %d: %q", round, got)
		}
		if round == 0 {
			if _, err := m.ports.AddExpose(t.Context(), weftproxy.Expose{Protocol: weftproxy.TCP, Port: 81, Target: local.Addr().String()}); err != nil {
				t.Fatal(err)
			}
		}
		if got := get(t, via(peer), "http://10.244.2.0:81"); got != "exposed" {
			t.Errorf("round %d, port 81: %q", round, got)
		}
		cut()
	}
}

// Programs reach the overlay through the proxy, and nothing else.
func TestProxy(t *testing.T) {
	config := Config{Proxy: freePort(t)}
	m := start(t, config)
	mine, peer := newStack(t, own), newStack(t, other)
	wire(t, mine, peer)
	listener, err := peer.ListenTCP(netip.AddrPortFrom(other, 80))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, listener, "inside")
	m.Use(mine, overlay)
	socks, err := proxy.SOCKS5("tcp", config.Proxy, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dial := socks.(proxy.ContextDialer).DialContext
	if got := get(t, dial, "http://10.244.1.0"); got != "inside" {
		t.Errorf("%q", got)
	}
	if conn, err := dial(t.Context(), "tcp", "192.0.2.1:80"); err == nil {
		conn.Close()
		t.Error("what is outside is reached")
	}
	if rtt, err := m.reach().Ping(t.Context(), other, 100); err != nil || rtt <= 0 {
		t.Errorf("ping: %v, %v", rtt, err)
	}
	dns := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}
	if err := m.SetDNS(dns); err != nil {
		t.Fatal(err)
	}
	if way := m.reach().Way(); way.Proxy != config.Proxy || len(way.DNS) != 1 || way.DNS[0] != dns[0] {
		t.Errorf("%+v", way)
	}
}

func TestTakenPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	forward, err := weftproxy.ParseForward(taken.Addr().String() + "=web:80")
	if err != nil {
		t.Fatal(err)
	}
	for want, config := range map[string]Config{
		"--proxy names another": {Proxy: taken.Addr().String()},
		"forward":               {Forwards: []weftproxy.Forward{forward}},
	} {
		config.Logger = slog.New(slog.DiscardHandler)
		m, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no Logger is missed")
	}
}
