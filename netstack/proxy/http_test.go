package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHTTPHeaders holds that what a client says to the proxy stays there, and
// that everything else arrives as it was said.
func TestHTTPHeaders(t *testing.T) {
	n := newTwin()
	var got http.Header
	podHTTP(t, n, "10.244.1.7:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		w.Header().Set("Connection", "X-Answer-Hop")
		w.Header().Set("X-Answer-Hop", "1")
		w.Header().Set("X-Answer", "1")
	}))
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	request, err := http.NewRequest(http.MethodGet, "http://10.244.1.7/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Connection": "X-Hop", "X-Hop": "1", "Proxy-Connection": "keep-alive", "Proxy-Authorization": "Basic eDp5", "Te": "gzip",
		"Keep-Alive": "5", "X-Forwarded-For": "192.0.2.1", "Accept": "text/plain", "User-Agent": "tester", "Accept-Encoding": "br",
	} {
		request.Header.Set(name, value)
	}
	response, err := httpClient(t, proxy).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	want := http.Header{"X-Forwarded-For": {"192.0.2.1"}, "Accept": {"text/plain"}, "User-Agent": {"tester"}, "Accept-Encoding": {"br"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("arrived %v, want %v", got, want)
	}
	if response.Header.Get("X-Answer-Hop") != "" || response.Header.Get("X-Answer") != "1" {
		t.Errorf("answer has %v", response.Header)
	}
}

func TestHTTPErrors(t *testing.T) {
	n := newTwin()
	d := newTestDialer(t, n, nil)
	d.SetServices([]Service{web()})
	_, proxy := startServer(t, d, nil)
	for _, test := range []struct {
		request string
		status  int
		says    string
	}{
		{"GET http://192.0.2.1/", http.StatusForbidden, "--allow-outside"},
		{"CONNECT 192.0.2.1:443", http.StatusForbidden, "--allow-outside"},
		{"GET http://127.0.0.1/", http.StatusForbidden, "never reached"},
		{"GET http://10.96.5.5/", http.StatusServiceUnavailable, "no ready backend"},
		{"CONNECT 10.244.1.9:443", http.StatusBadGateway, "refused"},
		{"CONNECT web", http.StatusBadGateway, "HOST:PORT"},
		{"GET https://10.244.1.9/", http.StatusBadRequest, "CONNECT"},
		{"GET ftp://10.244.1.9/", http.StatusBadRequest, "http://"},
		{"GET /", http.StatusNotFound, "/proxy.pac"},
		{"POST /proxy.pac", http.StatusMethodNotAllowed, "GET"},
		{"\x04\x01 x", http.StatusBadRequest, ""},
		{"GET http://[fd00::1", http.StatusBadRequest, ""},
	} {
		conn, err := net.Dial(TCP, proxy)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", test.request)
		method, _, _ := strings.Cut(test.request, " ")
		response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%s: %v", test.request, err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		conn.Close()
		if response.StatusCode != test.status || !strings.Contains(string(body), test.says) {
			t.Errorf("%s: %d %s; want %d with %q", test.request, response.StatusCode, body, test.status, test.says)
		}
	}
}

func TestHTTPPassword(t *testing.T) {
	n := newTwin()
	podHTTP(t, n, "10.244.1.7:80", http.NotFoundHandler())
	_, proxy := startServer(t, newTestDialer(t, n, nil), func(c *ServerConfig) { c.Username, c.Password = "me", "secret" })
	for userinfo, want := range map[string]int{
		"": http.StatusProxyAuthRequired, "me:guess@": http.StatusProxyAuthRequired, "me:secret@": http.StatusNotFound,
	} {
		response, err := httpClient(t, userinfo+proxy).Get("http://10.244.1.7/")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%q: %s, want %d", userinfo, response.Status, want)
		}
		tunnelled, err := httpClient(t, userinfo+proxy).Get("https://10.244.1.7/")
		if err == nil {
			tunnelled.Body.Close()
		}
		if (want != http.StatusNotFound) != strings.Contains(fmt.Sprint(err), "Authentication Required") {
			t.Errorf("%q: CONNECT: %v", userinfo, err)
		}
	}
	response, err := http.Get("http://" + proxy + "/proxy.pac")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("PAC file, which no browser asks for with a password: %s", response.Status)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestHTTPStreams holds that parts of an answer arrive as they come, and that
// an upgraded connection carries both directions.
func TestHTTPStreams(t *testing.T) {
	n := newTwin()
	more := make(chan struct{})
	podHTTP(t, n, "10.244.1.7:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(conn, buffered)
			return
		}
		w.Header().Set("Content-Length", "11")
		io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-more
		io.WriteString(w, "second")
	}))
	_, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	client := httpClient(t, proxy)
	response, err := client.Get("http://10.244.1.7/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	part := make([]byte, 5)
	if _, err := io.ReadFull(response.Body, part); err != nil || string(part) != "first" {
		t.Errorf("got %q, %v", part, err)
	}
	close(more)
	if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != "second" {
		t.Errorf("got %q, %v", rest, err)
	}

	request, err := http.NewRequest(http.MethodGet, "http://10.244.1.7/", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", "echo")
	upgraded, err := client.Transport.RoundTrip(request) // a Client with a timeout hides the writer
	if err != nil {
		t.Fatal(err)
	}
	defer upgraded.Body.Close()
	stream, ok := upgraded.Body.(io.ReadWriteCloser)
	if !ok {
		t.Fatalf("not upgraded: %s", upgraded.Status)
	}
	io.WriteString(stream, "hello")
	if _, err := io.ReadFull(stream, part); err != nil || string(part) != "hello" {
		t.Errorf("got %q, %v", part, err)
	}
}

// TestManyConnections opens and drops ten thousand connections of all kinds,
// in the middle of whatever they were doing.
func TestManyConnections(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	s, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	openings := []string{
		"", "\x05", "\x05\x01\x00\x05\x01", "\x05\x01\x00\x05\x01\x00\x01\x0a\xf4\x01\x07\x00\x50data",
		"GET http://10.244.1.7/ HTTP/1.1\r\n", "CONNECT 10.244.1.7:80 HTTP/1.1\r\nHost: x\r\n\r\ndata",
		"\x05\x01\x00\x05\x01\x00\x01\x0a\xf4\x01\x08\x00\x50", "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
	}
	burst := func(count int) {
		var all sync.WaitGroup
		for worker := range 20 {
			all.Go(func() {
				for i := range count / 20 {
					conn, err := net.Dial(TCP, proxy)
					if err != nil {
						t.Error(err)
						return
					}
					io.WriteString(conn, openings[(worker+i)%len(openings)])
					if i%2 == 0 {
						_ = conn.(*net.TCPConn).SetLinger(0)
					}
					conn.Close()
				}
			})
		}
		all.Wait()
		eventually(t, "all are closed", func() bool { return s.Traffic().Connections == 0 })
	}
	measure := func() (int, uint64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	burst(1000)
	goroutines, heap := measure()
	burst(10000)
	eventually(t, "no goroutine is left behind", func() bool { return runtime.NumGoroutine() <= goroutines+5 })
	if _, now := measure(); now > heap+4<<20 {
		t.Errorf("heap grew from %d KiB to %d KiB", heap>>10, now>>10)
	}
	if total := s.Traffic().Total; total < 11000 {
		t.Errorf("%d connections were counted", total)
	}
}

// TestServerClose holds that Close ends listeners and every kind of connection.
func TestServerClose(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	s, proxy := startServer(t, newTestDialer(t, n, nil), nil)
	var open []net.Conn
	for _, opening := range []string{"", "\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x01\x0a\xf4\x01\x07\x00\x50", "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
		"GET ", "CONNECT 10.244.1.7:80 HTTP/1.1\r\nHost: x\r\n\r\n", "GET /proxy.pac HTTP/1.1\r\nHost: x\r\n\r\n", "GET http://10.244.1.7/ HTTP/1.1\r\nHost: x\r\n\r\n"} {
		conn, err := net.Dial(TCP, proxy)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, opening)
		open = append(open, conn)
	}
	eventually(t, "all are there", func() bool { return s.Traffic().Total == uint64(len(open)) })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for i, conn := range open {
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Errorf("connection %d is open still", i)
		}
	}
	if conn, err := net.Dial(TCP, proxy); err == nil {
		conn.Close()
		t.Error("the listener is open still")
	}
}

func TestPAC(t *testing.T) {
	d := withDNS(t, newTwin(), cluster(), nil)
	outside := web()
	outside.ClusterIPs[0] = ownAddresses[0].Next().Next()
	outside.ClusterIPs = append(outside.ClusterIPs, podNetworks[0].Addr().Prev()) // in no prefix
	d.SetServices([]Service{outside})
	_, proxy := startServer(t, d, nil)
	response, err := http.Get((&url.URL{Scheme: "http", Host: proxy, Path: "/proxy.pac"}).String())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	script, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"function FindProxyForURL(url, host)", `var proxy = "PROXY ` + proxy + `";`, `var domains = ["svc.cluster.local","cluster.local"];`,
		"var prefixes = [[[10,96,0,0],12],[[10,243,255,255],32],[[10,244,0,0],16],[[253,0,0,150,0,0,0,0,0,0,0,0,0,0,0,0],112],[[253,0,2,68,0,0,0,0,0,0,0,0,0,0,0,0],32]];",
	} {
		if !strings.Contains(string(script), want) {
			t.Errorf("PAC file lacks %s:\n%.900s", want, script)
		}
	}
	if got := response.Header.Get("Content-Type"); got != "application/x-ns-proxy-autoconfig" {
		t.Errorf("Content-Type is %s", got)
	}
}

func FuzzHTTP(f *testing.F) {
	for _, seed := range []string{
		"GET http://10.244.1.7/ HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT 10.244.1.7:80 HTTP/1.1\r\nHost: x\r\n\r\n", "GET /proxy.pac HTTP/1.0\r\n\r\n",
		"POST http://10.244.1.7/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "\x04",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		if len(sent) > 0 && sent[0] == socksVersion {
			return
		}
		if answer := fuzzServer(t, sent); len(answer) > 0 && !strings.HasPrefix(string(answer), "HTTP/1.") {
			t.Errorf("answer %q", answer)
		}
	})
}
