package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Dialer *Dialer
	// Username and Password are asked of clients if either is set.
	Username, Password string
	Logger             *slog.Logger
}

// Server is a SOCKS5 and HTTP proxy into what its Dialer reaches. Both are
// served on the same listeners: SOCKS5 begins with a byte that no HTTP request
// begins with. An HTTP request for /proxy.pac itself is answered with a PAC file.
type Server struct {
	config  ServerConfig
	ctx     context.Context
	cancel  context.CancelFunc
	group   sync.WaitGroup
	count   traffic
	http    *http.Server
	forward *http.Transport
}

// NewServer returns a Server that listens nowhere yet.
func NewServer(config ServerConfig) (*Server, error) {
	switch {
	case config.Dialer == nil:
		return nil, errors.New("make proxy: Dialer is missing")
	case config.Logger == nil:
		return nil, errors.New("make proxy: Logger is missing")
	case len(config.Username) > 255 || len(config.Password) > 255:
		return nil, errors.New("make proxy: Username and Password: want at most 255 bytes each (RFC 1929)")
	}
	s := &Server{config: config}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http, s.forward = s.newHTTP()
	return s, nil
}

// Serve serves listener, which it owns from here on, until it is closed or
// the Server is; that is no error. It may be called for several listeners.
func (s *Server) Serve(listener net.Listener) error {
	s.group.Add(1)
	defer s.group.Done()
	defer listener.Close()
	broken := false
	var last error
	accept(s.ctx, &s.group, listener, &s.count, func(err error) {
		if (err != nil) != broken {
			broken = err != nil
			s.config.Logger.Warn("proxy listener", "listener", listener.Addr().String(), "err", err)
		}
		last = err
	}, s.serve)
	if s.ctx.Err() == nil && last != nil && !errors.Is(last, net.ErrClosed) {
		return fmt.Errorf("serve proxy on %s: %w", listener.Addr(), last)
	}
	return nil
}

// Traffic is what clients have sent and received, protocol overhead included.
func (s *Server) Traffic() Traffic { return s.count.snapshot() }

// Close closes all listeners and connections and waits for their end.
func (s *Server) Close() error {
	s.cancel()
	err := s.http.Close()
	s.forward.CloseIdleConnections()
	s.group.Wait()
	return err
}

// serve finds out what a client speaks and serves it to its end.
func (s *Server) serve(client *counted) {
	defer closeOn(s.ctx, client)()
	_ = client.SetReadDeadline(time.Now().Add(handshakeTimeout))
	var first [1]byte
	if _, err := io.ReadFull(client, first[:]); err != nil {
		return
	}
	conn := &prefixed{Conn: client, prefix: first[:]}
	if first[0] == socksVersion {
		s.serveSOCKS(client, conn)
		return
	}
	_ = s.http.Serve(&single{conn: conn}) // returns as soon as it has taken the one connection; sets deadlines itself
	<-client.gone
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

// NetConn returns the connection below.
func (p *prefixed) NetConn() net.Conn { return p.Conn }

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// single is a listener of one connection, for servers that want a listener.
type single struct {
	conn net.Conn
	gone bool
}

// Accept returns the connection once.
func (l *single) Accept() (net.Conn, error) {
	if l.gone {
		return nil, net.ErrClosed
	}
	l.gone = true
	return l.conn, nil
}

// Close leaves the connection open: it belongs to who has accepted it.
func (l *single) Close() error { return nil }

// Addr is the connection's.
func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }
