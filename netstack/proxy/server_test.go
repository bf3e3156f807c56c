package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	socksclient "golang.org/x/net/proxy"
)

// startServer returns the address of a proxy that ends with the test.
func startServer(t *testing.T, d *Dialer, edit func(*ServerConfig)) (*Server, string) {
	t.Helper()
	config := ServerConfig{Dialer: d, Logger: quiet()}
	if edit != nil {
		edit(&config)
	}
	s, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(listener) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, listener.Addr().String()
}

func socksDial(t *testing.T, proxy, to string, auth *socksclient.Auth) (net.Conn, error) {
	t.Helper()
	// The client's own type hides that one direction can be closed.
	var raw keepConn
	dialer, err := socksclient.SOCKS5(TCP, proxy, auth, &raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dialer.Dial(TCP, to); err != nil {
		if raw.Conn != nil {
			raw.Close()
		}
		return nil, err
	}
	return raw.Conn, nil
}

// keepConn is a dialer that keeps the connection.
type keepConn struct{ net.Conn }

func (k *keepConn) Dial(network, address string) (conn net.Conn, err error) {
	k.Conn, err = net.Dial(network, address)
	return k.Conn, err
}

func httpClient(t *testing.T, proxy string) *http.Client {
	t.Helper()
	at, err := url.Parse("http://" + proxy)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(at)}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// podHTTP runs a web server at an overlay address.
func podHTTP(t *testing.T, n *twin, at string, handler http.Handler) *httptest.Server {
	t.Helper()
	listener, err := n.ListenTCP(netip.MustParseAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	return server
}

func TestSOCKSConnect(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	n.pod(t, "[fd00:244:1::7]:80", echo)
	s, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	for _, to := range []string{"10.244.1.7:80", "[fd00:244:1::7]:80"} {
		conn, err := socksDial(t, proxy, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := roundTrip(t, conn, "through"); got != "through" {
			t.Errorf("%s answered %q", to, got)
		}
	}
	eventually(t, "both are counted", func() bool { c := s.Traffic(); return c.Total == 2 && c.Connections == 0 })
}

func TestHTTPProxy(t *testing.T) {
	n := newTwin()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host+r.URL.String()) })
	podHTTP(t, n, "10.244.1.7:80", handler)
	podHTTP(t, n, "[fd00:244:1::7]:8080", handler)
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	client := httpClient(t, proxy)
	for _, to := range []string{"10.244.1.7", "[fd00:244:1::7]:8080"} {
		response, err := client.Get("http://" + to + "/x?y=1;2")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if want := to + "/x?y=1;2"; err != nil || string(body) != want {
			t.Errorf("got %q, %v; want %q", body, err, want)
		}
	}
}

func TestHTTPConnect(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:443", echo)
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	conn, err := net.Dial(TCP, proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The tunnel's first bytes come along with the request.
	if _, err := io.WriteString(conn, "CONNECT 10.244.1.7:443 HTTP/1.1\r\nHost: x\r\n\r\nearly "); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("response %v, %v", response, err)
	}
	defer response.Body.Close()
	if _, err := io.WriteString(conn, "late"); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(reader)
	if string(all) != "early late" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
}
