// Package proxy is the ways in and out of a host that has no device: a Dialer
// that knows cluster names and Services, a SOCKS5 and HTTP proxy, ports of
// this host that lead into the overlay (Forward) and ports of the overlay that
// lead to this host (Expose). It sees the overlay through Network alone. It
// must never import netstack, control or Kubernetes, touch routes or devices,
// listen where it was not told to, or hold up one connection for another.
package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"
)

// Network is the overlay as seen from here. *netstack.Stack is one.
type Network interface {
	// DialContext connects to an overlay address; network is "tcp" or "udp".
	DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// ListenTCP and ListenUDP listen on this host's overlay addresses: on all of
	// them if local has the zero Addr.
	ListenTCP(local netip.AddrPort) (net.Listener, error)
	ListenUDP(local netip.AddrPort) (net.PacketConn, error)
}

// The protocols of services, forwards and exposes.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Why a destination cannot be reached, to be tested with errors.Is. What else
// goes wrong is the error of the network.
var (
	ErrOutside   = errors.New("outside the overlay")
	ErrNoBackend = errors.New("no ready backend")
	ErrNoName    = errors.New("no such name")
	ErrNoAnswer  = errors.New("does not answer")
)

const (
	// dialTimeout bounds a dial on behalf of a client that waits, names included.
	dialTimeout = 20 * time.Second
	// handshakeTimeout is how long a client of the proxy may take to say what it
	// wants.
	handshakeTimeout = 10 * time.Second
	// maxConnections bounds the connections of one listener, so that whoever
	// floods it does not take every file descriptor of this process.
	maxConnections = 16384
)

// failures are the errors of several attempts, in one line.
type failures []error

func (f failures) Error() string {
	texts := make([]string, len(f))
	for i, err := range f {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap gives errors.Is all of them.
func (f failures) Unwrap() []error { return f }

// Traffic is what has gone through a listener. In is from those who connect to
// it towards the target.
type Traffic struct {
	Connections int64  `json:"connections"` // open now; for UDP: pairs of client and target
	Total       uint64 `json:"connections_total"`
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
	Dropped     uint64 `json:"dropped"` // datagrams and connections not carried
}

// traffic counts a Traffic.
type traffic struct {
	open                    atomic.Int64
	total, in, out, dropped atomic.Uint64
}

func (t *traffic) snapshot() Traffic {
	return Traffic{
		Connections: t.open.Load(), Total: t.total.Load(),
		BytesIn: t.in.Load(), BytesOut: t.out.Load(), Dropped: t.dropped.Load(),
	}
}
