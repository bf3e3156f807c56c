package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// web is a Service with two ClusterIPs.
func web(backends ...string) Service {
	var all []netip.AddrPort
	for _, backend := range backends {
		all = append(all, netip.MustParseAddrPort(backend))
	}
	return Service{
		Namespace: "default", Name: "web",
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.5.5"), netip.MustParseAddr("fd00:96::5")},
		Ports: []ServicePort{
			{Name: "http", Protocol: TCP, Port: 80, Backends: all},
			{Name: "echo", Protocol: UDP, Port: 7, Backends: all},
		},
	}
}

// ask dials and returns what is said there.
func ask(t *testing.T, d *Dialer, to string) (string, error) {
	t.Helper()
	conn, err := d.DialContext(testContext(t), TCP, to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	return string(text), err
}

func TestDialRefused(t *testing.T) {
	n := newTwin()
	d := newTestDialer(t, n, nil)
	d.SetServices([]Service{web()})
	ctx := testContext(t)
	for _, test := range []struct {
		network, to string
		is          error
		says        string
	}{
		{TCP, "192.0.2.1:80", ErrOutside, "dial 192.0.2.1:80: 192.0.2.1 is outside the overlay: start with --allow-outside"},
		{UDP, "[2001:db8::1]:53", ErrOutside, "--allow-outside"},
		{TCP, "127.0.0.1:80", ErrOutside, "never reached"},
		{TCP, "[::ffff:127.0.0.1]:80", ErrOutside, "never reached"},
		{TCP, "0.0.0.0:80", ErrOutside, "never reached"},
		{TCP, "169.254.169.254:80", ErrOutside, "never reached"},
		{TCP, "10.96.5.5:80", ErrNoBackend, "service default/web, tcp port 80: no ready backend"},
		{UDP, "[fd00:96::5]:7", ErrNoBackend, "service default/web, udp port 7: no ready backend"},
		{TCP, "10.96.5.5:81", nil, "service default/web (10.96.5.5) has no tcp port 81"},
		{TCP, "10.96.7.7:80", ErrNoBackend, "no service has the address 10.96.7.7"},
		{TCP, "10.244.1.7:80", nil, "refused"},
		{"tcp6", "10.244.1.7:80", nil, "no IPv6 address"},
		{"udp4", "[fd00:244::1]:80", nil, "no IPv4 address"},
		{"unix", "10.244.1.7:80", nil, `network "unix": want tcp or udp`},
		{TCP, "10.244.1.7", nil, "want HOST:PORT"},
		{TCP, ":80", nil, "want HOST:PORT"},
		{TCP, "a]:80", nil, "HOST:PORT"},
		{TCP, "10.244.1.7:0", nil, "1 to 65535"},
		{TCP, "[fe80::1%eth0]:80", nil, "zones"},
	} {
		conn, err := d.DialContext(ctx, test.network, test.to)
		if err == nil {
			conn.Close()
		}
		wantError(t, err, test.says)
		if test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: %v is not %v", test.to, err, test.is)
		}
	}
}

// TestDialOutside holds that the operating system dials what is outside, by
// address, and never what only this host may reach.
func TestDialOutside(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", greet("inside"))
	var dialled []string
	d := withDNS(t, n, cluster(), func(c *DialerConfig) {
		c.Outside = true
		c.DialOutside = func(_ context.Context, network, address string) (net.Conn, error) {
			dialled = append(dialled, network+" "+address)
			near, far := net.Pipe()
			far.Close()
			return near, nil
		}
		c.LookupOutside = func(_ context.Context, name string) ([]netip.Addr, error) {
			switch name {
			case "printer.home":
				return []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.9")}, nil
			case "localhost":
				return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
			}
			return nil, errors.New("unknown")
		}
	})
	for _, to := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "printer.home:631", "web.default:80"} {
		if _, err := ask(t, d, to); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	if want := []string{"tcp 192.0.2.1:80", "tcp [2001:db8::1]:80", "tcp 192.0.2.9:631"}; !slices.Equal(dialled, want) {
		t.Errorf("dialled %v, want %v", dialled, want)
	}
	for _, to := range []string{"127.0.0.1:80", "localhost:80", "[::1]:80", "[fe80::1]:80", "224.0.0.1:80", "nobody:80", "10.96.9.9:80"} {
		if _, err := ask(t, d, to); err == nil {
			t.Errorf("%s was dialled", to)
		}
	}
}

// TestDialBackends holds that connections are shared out among the backends,
// and go to others while one refuses.
func TestDialBackends(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.1:8080", greet("one"))
	n.pod(t, "10.244.1.2:8080", greet("two"))
	n.pod(t, "[fd00:244::3]:8080", greet("three"))
	d := newTestDialer(t, n, nil)
	count := func(to string) map[string]int {
		seen := map[string]int{}
		for range 12 {
			said, err := ask(t, d, to)
			if err != nil {
				t.Fatal(err)
			}
			seen[said]++
		}
		return seen
	}
	d.SetServices([]Service{web("10.244.1.1:8080", "10.244.1.2:8080", "[fd00:244::3]:8080")})
	if seen := count("10.96.5.5:80"); seen["one"] != 6 || seen["two"] != 6 {
		t.Errorf("IPv4: %v, want six each of its family", seen)
	}
	if seen := count("[fd00:96::5]:80"); seen["three"] != 12 {
		t.Errorf("IPv6: %v, want the one of its family", seen)
	}
	d.SetServices([]Service{web("10.244.1.9:8080", "10.244.1.2:8080")})
	if seen := count("10.96.5.5:80"); seen["two"] != 12 {
		t.Errorf("beside one that refuses: %v", seen)
	}
	if seen := count("[fd00:96::5]:80"); seen["two"] != 12 {
		t.Errorf("with backends of the other family alone: %v", seen)
	}
	d.SetServices([]Service{web("10.244.1.9:8080", "10.244.1.10:8080")})
	_, err := ask(t, d, "10.96.5.5:80")
	wantError(t, err, "service default/web, tcp port 80: backend 10.244.1.", "10.244.1.9:8080: ", "10.244.1.10:8080: ", "refused; ")
}

// TestDialBackendOutside holds that a Service does not lead out of the overlay.
func TestDialBackendOutside(t *testing.T) {
	d := newTestDialer(t, newTwin(), nil)
	d.SetServices([]Service{web("127.0.0.1:22", "192.0.2.1:443")})
	_, err := ask(t, d, "10.96.5.5:80")
	wantError(t, err, "127.0.0.1 is outside the overlay and never reached", "192.0.2.1 is outside the overlay: start with")
	if !errors.Is(err, ErrOutside) {
		t.Errorf("%v is not ErrOutside", err)
	}
}

func TestAvoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &balanced{backends: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.1:1"), netip.MustParseAddrPort("10.244.1.2:1")}}
		var avoid avoided
		avoid.add(frontend{TCP, b.backends[0]})
		for range 4 {
			if first := b.order(&avoid, TCP)[0]; first != b.backends[1] {
				t.Errorf("first is %v although it is to be avoided", first)
			}
			b.order(&avoid, UDP)
		}
		time.Sleep(avoidFor)
		seen := map[netip.AddrPort]bool{}
		for range 2 {
			seen[b.order(&avoid, TCP)[0]] = true
		}
		if len(seen) != 2 {
			t.Errorf("after the time only %v is first", seen)
		}
		avoid.add(frontend{TCP, b.backends[1]})
		if len(avoid.until) != 1 {
			t.Errorf("%d remembered, want the one", len(avoid.until))
		}
	})
}

// TestDialUDPBackends holds that a UDP connection stays with its backend, and
// that one that is found dead is passed over by the next.
func TestDialUDPBackends(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.2:7", func([]byte) []byte { return []byte("two") })
	// Somebody was there once: the system says that the port is closed now.
	dead := n.podUDP(t, "10.244.1.1:7", nil)
	closed, err := net.ListenPacket(UDP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.ports[frontend{UDP, dead}] = closed.LocalAddr().String()
	n.mu.Unlock()
	closed.Close()

	d := newTestDialer(t, n, nil)
	d.SetServices([]Service{web("10.244.1.1:7", "10.244.1.2:7")})
	refused := false
	for range 6 {
		conn, err := d.DialContext(testContext(t), UDP, "10.96.5.5:7")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = conn.Write([]byte("x"))
		if err == nil {
			_, err = conn.Read(make([]byte, 10))
		}
		if err != nil && refused {
			t.Errorf("the backend that is dead was taken again: %v", err)
		}
		refused = refused || err != nil
		conn.Close()
	}
	if !refused {
		t.Error("the dead backend was never tried: this proves nothing")
	}
}

// TestLongLived holds that open connections live through every change.
func TestLongLived(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.1:80", echo)
	d := withDNS(t, n, cluster(), nil)
	d.SetServices([]Service{dnsService("10.244.0.2:53"), web("10.244.1.1:80")})
	conn, err := d.DialContext(testContext(t), TCP, "10.96.5.5:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d.SetServices(nil)
	d.SetOverlay(nil, nil)
	if err := d.SetDNS(nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := roundTrip(t, conn, "still here"); got != "still here" {
		t.Errorf("got %q", got)
	}
	_, err = ask(t, d, "10.244.1.1:80")
	if !errors.Is(err, ErrOutside) {
		t.Errorf("a new one: %v, want ErrOutside", err)
	}
}

func TestSettingsRefused(t *testing.T) {
	d := newTestDialer(t, newTwin(), nil)
	wantError(t, d.SetDNS(nil, []string{"a..b"}), "search domain", "a..b")
	wantError(t, d.SetDNS([]netip.AddrPort{{}}, nil), "DNS server", "10.96.0.10:53")
	_, err := NewDialer(DialerConfig{Logger: quiet()})
	wantError(t, err, "Network")
}

// TestServicesOverlap holds that who comes first by name has an address, in
// whatever order the Services are given.
func TestServicesOverlap(t *testing.T) {
	thief := web("10.244.6.6:80")
	thief.Namespace = "evil"
	for _, services := range [][]Service{{thief, web("10.244.1.1:80")}, {web("10.244.1.1:80"), thief}} {
		table := newServiceTable(services)
		if got := table.names[netip.MustParseAddr("10.96.5.5")]; got != "default/web" {
			t.Errorf("the address belongs to %s", got)
		}
		if got := table.ports[frontend{TCP, netip.MustParseAddrPort("10.96.5.5:80")}].backends[0].String(); got != "10.244.1.1:80" {
			t.Errorf("the port leads to %s", got)
		}
	}
}
