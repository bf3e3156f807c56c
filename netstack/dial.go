package netstack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// backlog is how many connections wait for Accept.
	backlog = 4096
	// keepalive is how long a connection is idle before the peer is asked whether
	// it is still there, and between two such questions; as package net does.
	keepalive = 15 * time.Second
)

// DialContext connects to an address of the overlay; network is "tcp" or "udp".
// A TCP connection has CloseRead and CloseWrite as *net.TCPConn has. Errors
// wrap what package net's wrap, as syscall.ECONNREFUSED.
func (s *Stack) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	conn, err := s.dial(ctx, network, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s %v: %w", network, to, err)
	}
	return conn, nil
}

func (s *Stack) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	protocol := tcp.ProtocolNumber
	switch network {
	case "tcp":
	case "udp":
		protocol = udp.ProtocolNumber
	default:
		return nil, fmt.Errorf("network is %q: want tcp or udp", network)
	}
	if err := s.reaches(to.Addr()); err != nil {
		return nil, err
	}
	e, err := s.open(network, protocol, to.Addr().Is4())
	if err != nil {
		return nil, err
	}
	if err := e.connect(ctx, to); err != nil {
		e.abandon()
		return nil, err
	}
	if protocol == udp.ProtocolNumber {
		return datagrams{e}, nil
	}
	return e.stream(), nil
}

// reaches reports an address that nothing can be sent to.
func (s *Stack) reaches(to netip.Addr) error {
	switch {
	case s.closing.Load():
		return net.ErrClosed
	case !to.IsValid() || to.IsUnspecified():
		return fmt.Errorf("address is %v: want that of a host", to)
	case !s.source[to.Is4()].IsValid():
		return fmt.Errorf("%s has no address of the family of %v: add one to Addresses", s.name, to)
	}
	return nil
}

// stream makes a connection of an open TCP endpoint.
func (e *endpoint) stream() stream {
	options := e.SocketOptions()
	options.SetDelayOption(false)
	options.SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepalive), tcpip.KeepaliveIntervalOption(keepalive)
	// They are refused to a connection that has ended already, which Read will tell.
	_ = e.SetSockOpt(&idle)
	_ = e.SetSockOpt(&interval)
	return stream{e}
}

// abandon closes an endpoint that nobody has seen.
func (e *endpoint) abandon() {
	// The only error of Close is that it was called before.
	_ = e.Close()
}

// ListenTCP listens on an address and port of the Stack; port 0 is any free one.
// An unspecified address means all of its family, the zero Addr all there are.
func (s *Stack) ListenTCP(local netip.AddrPort) (net.Listener, error) {
	e, err := s.bind("tcp", tcp.ProtocolNumber, local)
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %v: %w", local, err)
	}
	if err := e.Listen(backlog); err != nil {
		e.abandon()
		return nil, fmt.Errorf("listen on tcp %v: %w", local, asError(err))
	}
	return listener{s, e}, nil
}

// ListenUDP opens a UDP socket; local is as in ListenTCP.
func (s *Stack) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	e, err := s.bind("udp", udp.ProtocolNumber, local)
	if err != nil {
		return nil, fmt.Errorf("listen on udp %v: %w", local, err)
	}
	return datagrams{e}, nil
}

// bind makes an endpoint with a local address and port.
func (s *Stack) bind(network string, protocol tcpip.TransportProtocolNumber, local netip.AddrPort) (*endpoint, error) {
	addr := local.Addr().Unmap()
	switch {
	case s.closing.Load():
		return nil, net.ErrClosed
	case addr.IsValid() && !addr.IsUnspecified() && !slices.Contains(s.addresses, addr):
		return nil, fmt.Errorf("%w: %s has %v", syscall.EADDRNOTAVAIL, s.name, s.addresses)
	}
	e, err := s.open(network, protocol, addr.Is4())
	if err != nil {
		return nil, err
	}
	// Without an address an IPv6 endpoint has IPv4 too, written as IPv6.
	e.SocketOptions().SetV6Only(addr.IsValid())
	if err := e.Bind(fullAddress(local)); err != nil {
		e.abandon()
		return nil, asError(err)
	}
	return e, nil
}

// listener takes TCP connections in.
type listener struct {
	stack *Stack
	*endpoint
}

var _ net.Listener = listener{}

// Addr implements net.Listener.
func (l listener) Addr() net.Addr { return l.LocalAddr() }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	var (
		ep    tcpip.Endpoint
		queue *waiter.Queue
	)
	err := l.try(&l.read, func() (err tcpip.Error) {
		ep, queue, err = l.Endpoint.Accept(nil)
		return err
	})
	if err != nil {
		return nil, l.fail("accept", err)
	}
	return l.stack.newEndpoint("tcp", ep, queue).stream(), nil
}
