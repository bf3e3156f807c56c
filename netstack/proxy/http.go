package proxy

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"
)

// newHTTP makes the HTTP half of the server, and what it reaches targets with.
func (s *Server) newHTTP() (*http.Server, *http.Transport) {
	errorLog := slog.NewLogLogger(s.config.Logger.Handler(), slog.LevelDebug)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return s.config.Dialer.DialContext(ctx, network, address)
		},
		DisableCompression: true, // what the client asked for is what it gets
		MaxIdleConns:       256,
		IdleConnTimeout:    90 * time.Second,
	}
	requests := &httputil.ReverseProxy{
		Rewrite:       rewriteRequest,
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      errorLog,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), httpStatus(err))
		},
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodConnect && !r.URL.IsAbs():
			s.serveOwn(w, r)
		case !s.mayUse(r):
			w.Header().Set("Proxy-Authenticate", `Basic realm="weft"`)
			http.Error(w, "this proxy wants a user name and a password", http.StatusProxyAuthRequired)
		case r.Method == http.MethodConnect:
			s.serveConnect(w, r)
		case r.URL.Scheme != "http" || r.URL.Host == "":
			http.Error(w, "want a URL with http:// and a host; for https use CONNECT", http.StatusBadRequest)
		default:
			requests.ServeHTTP(w, r)
		}
	})
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          errorLog,
	}, transport
}

// rewriteRequest leaves a request as it is: ReverseProxy has removed what was
// for the proxy alone (RFC 9110, 7.6.1), and also what clients may say about
// proxies in front of them, which is not ours to remove.
func rewriteRequest(r *httputil.ProxyRequest) {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = values
		}
	}
	r.Out.URL.RawQuery = r.In.URL.RawQuery
	r.Out.Host = r.In.Host
}

// mayUse checks the client's password, if one is wanted.
func (s *Server) mayUse(r *http.Request) bool {
	if s.config.Username == "" && s.config.Password == "" {
		return true
	}
	scheme, encoded, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
	given, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	want := s.config.Username + ":" + s.config.Password
	return err == nil && strings.EqualFold(scheme, "Basic") && subtle.ConstantTimeCompare(given, []byte(want)) == 1
}

// serveOwn answers requests to the proxy itself.
func (s *Server) serveOwn(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/proxy.pac" {
		http.Error(w, "this is weft's proxy: set it as HTTP or SOCKS5 proxy, or give a browser the URL /proxy.pac", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "want GET", http.StatusMethodNotAllowed)
		return
	}
	// Where the client has reached us, and not what it says in Host, which could
	// carry anything into the script.
	self, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		http.Error(w, "own address is unknown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
	w.Header().Set("Cache-Control", "no-cache")
	_, _ = w.Write(s.config.Dialer.pac(self.String()))
}

// serveConnect makes a tunnel (RFC 9110, 9.3.6).
func (s *Server) serveConnect(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	far, err := s.config.Dialer.DialContext(ctx, TCP, r.Host)
	if err != nil {
		http.Error(w, err.Error(), httpStatus(err))
		return
	}
	near, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		far.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := near.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		reset(far)
		near.Close()
		return
	}
	relay(s.ctx, withBuffered(near, buffered.Reader), far)
}

// withBuffered gives back what the HTTP server has read ahead.
func withBuffered(conn net.Conn, reader *bufio.Reader) net.Conn {
	ahead, _ := reader.Peek(reader.Buffered())
	return &prefixed{Conn: conn, prefix: append([]byte(nil), ahead...)}
}

// httpStatus says in HTTP's numbers why a dial failed.
func httpStatus(err error) int {
	switch {
	case errors.Is(err, ErrOutside):
		return http.StatusForbidden
	case errors.Is(err, ErrNoBackend):
		return http.StatusServiceUnavailable
	case errors.Is(err, ErrNoAnswer), isTimeout(err):
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}
