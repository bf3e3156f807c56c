package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// endpoint is one of gVisor's, with ways to wait for it. It is what
// connections and listeners are made of.
type endpoint struct {
	tcpip.Endpoint
	network string // "tcp", "udp" or "ping"
	queue   *waiter.Queue
	entries [2]waiter.Entry
	read    side // Read and Accept
	write   side // Write and Connect
	once    sync.Once
	closed  chan struct{} // by Close
	stopped chan struct{} // with the Stack
}

// side is one direction of an endpoint.
type side struct {
	mu sync.Mutex // who holds it tries and waits
	deadline
	ready chan struct{} // holds one if it is worth another try
}

// open makes an endpoint of one family.
func (s *Stack) open(network string, protocol tcpip.TransportProtocolNumber, is4 bool) (*endpoint, error) {
	family, _ := protocolOf(is4)
	queue := new(waiter.Queue)
	ep, err := s.stack.NewEndpoint(protocol, family, queue)
	if err != nil {
		return nil, asError(err)
	}
	return s.newEndpoint(network, ep, queue), nil
}

func (s *Stack) newEndpoint(network string, ep tcpip.Endpoint, queue *waiter.Queue) *endpoint {
	e := &endpoint{Endpoint: ep, network: network, queue: queue, closed: make(chan struct{}), stopped: s.stop}
	const failed = waiter.EventErr | waiter.EventHUp
	e.entries[0], e.read.ready = waiter.NewChannelEntry(waiter.ReadableEvents | failed)
	e.entries[1], e.write.ready = waiter.NewChannelEntry(waiter.WritableEvents | failed)
	e.read.past, e.write.past = make(chan struct{}), make(chan struct{})
	for i := range e.entries {
		queue.EventRegister(&e.entries[i])
	}
	return e
}

// Close implements net.Conn, net.PacketConn and net.Listener. What has been
// written to a connection is still sent.
func (e *endpoint) Close() error {
	first := false
	e.once.Do(func() {
		close(e.closed)
		e.Endpoint.Close()
		for i := range e.entries {
			e.queue.EventUnregister(&e.entries[i])
		}
		e.read.set(time.Time{})
		e.write.set(time.Time{})
		first = true
	})
	if !first {
		return e.fail("close", net.ErrClosed)
	}
	return nil
}

// try calls f until it need not wait, the deadline has passed or the endpoint
// is closed, and turns its error into Go's.
func (e *endpoint) try(s *side, f func() tcpip.Error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for past := s.passed(); ; {
		if err := e.ended(past); err != nil {
			return err
		}
		err := f()
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			if err != nil && e.ended(nil) != nil {
				return net.ErrClosed
			}
			return asError(err)
		}
		select {
		case <-s.ready:
		case <-past:
		case <-e.closed:
		case <-e.stopped:
		}
	}
}

// ended is why there is nothing to wait for any more, if so.
func (e *endpoint) ended(past <-chan struct{}) error {
	select {
	case <-e.closed:
		return net.ErrClosed
	case <-e.stopped:
		return net.ErrClosed
	case <-past:
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// connect opens a connection to an address, or until ctx is done.
func (e *endpoint) connect(ctx context.Context, to netip.AddrPort) error {
	err := e.Connect(fullAddress(to))
	if _, started := err.(*tcpip.ErrConnectStarted); !started {
		return asError(err)
	}
	select {
	case <-e.write.ready:
		return asError(e.LastError())
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopped:
		return net.ErrClosed
	}
}

// fail puts an error into the form that package net uses.
func (e *endpoint) fail(op string, err error) error {
	local, remote := e.LocalAddr(), e.remoteAddr()
	if remote == nil {
		return &net.OpError{Op: op, Net: e.network, Addr: local, Err: err}
	}
	return &net.OpError{Op: op, Net: e.network, Source: local, Addr: remote, Err: err}
}

// LocalAddr implements net.Conn and net.PacketConn.
func (e *endpoint) LocalAddr() net.Addr {
	full, err := e.GetLocalAddress()
	if err != nil {
		return nil
	}
	return e.netAddr(full)
}

func (e *endpoint) remoteAddr() net.Addr {
	full, err := e.GetRemoteAddress()
	if err != nil {
		return nil
	}
	return e.netAddr(full)
}

func (e *endpoint) netAddr(full tcpip.FullAddress) net.Addr {
	at := addrPort(full)
	if e.network == "tcp" {
		return net.TCPAddrFromAddrPort(at)
	}
	return net.UDPAddrFromAddrPort(at)
}

// addrPort is gVisor's address as netip's; an empty one is unspecified.
func addrPort(full tcpip.FullAddress) netip.AddrPort {
	addr, ok := netip.AddrFromSlice(full.Addr.AsSlice())
	if !ok {
		addr = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(addr.Unmap(), full.Port)
}

// fullAddress is the reverse of addrPort; an unspecified address is empty.
func fullAddress(at netip.AddrPort) tcpip.FullAddress {
	full := tcpip.FullAddress{NIC: nicID, Port: at.Port()}
	if addr := at.Addr().Unmap(); addr.IsValid() && !addr.IsUnspecified() {
		full.Addr = tcpip.AddrFromSlice(addr.AsSlice())
	}
	return full
}

// SetDeadline implements net.Conn and net.PacketConn.
func (e *endpoint) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn and net.PacketConn.
func (e *endpoint) SetReadDeadline(t time.Time) error { return e.setDeadline(&e.read.deadline, t) }

// SetWriteDeadline implements net.Conn and net.PacketConn.
func (e *endpoint) SetWriteDeadline(t time.Time) error { return e.setDeadline(&e.write.deadline, t) }

func (e *endpoint) setDeadline(d *deadline, t time.Time) error {
	if err := e.ended(nil); err != nil {
		return e.fail("set deadline", err)
	}
	d.set(t)
	return nil
}

// receive reads what is there, or one datagram.
func (e *endpoint) receive(b []byte, from *tcpip.FullAddress) (n int, err error) {
	err = e.try(&e.read, func() tcpip.Error {
		w := tcpip.SliceWriter(b)
		result, err := e.Endpoint.Read(&w, tcpip.ReadOptions{NeedRemoteAddr: from != nil})
		if n = result.Count; from != nil {
			*from = result.RemoteAddr
		}
		return err
	})
	return n, err
}

// send sends as much of b as there is room for, or a datagram.
func (e *endpoint) send(b []byte, options tcpip.WriteOptions) (n int, err error) {
	var rest bytes.Reader
	err = e.try(&e.write, func() tcpip.Error {
		rest.Reset(b)
		sent, err := e.Endpoint.Write(&rest, options)
		n = int(sent)
		return err
	})
	return n, err
}

// stream is a TCP connection.
type stream struct{ *endpoint }

var _ net.Conn = stream{}

// RemoteAddr implements net.Conn.
func (c stream) RemoteAddr() net.Addr { return c.remoteAddr() }

// Read implements net.Conn.
func (c stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, err := c.receive(b, nil)
	switch {
	case err == nil:
		c.ModerateRecvBuf(n)
	case !errors.Is(err, io.EOF):
		err = c.fail("read", err)
	}
	return n, err
}

// Write implements net.Conn.
func (c stream) Write(b []byte) (n int, err error) {
	for n < len(b) {
		sent, err := c.send(b[n:], tcpip.WriteOptions{})
		if n += sent; err != nil {
			return n, c.fail("write", err)
		}
	}
	return n, nil
}

// CloseRead shuts the reading side down.
func (c stream) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

// CloseWrite shuts the writing side down: the peer reads to the end of the
// stream, and may go on writing.
func (c stream) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

func (c stream) shutdown(how tcpip.ShutdownFlags) error {
	if err := c.Shutdown(how); err != nil {
		return c.fail("shutdown", asError(err))
	}
	return nil
}

// datagrams is a UDP socket, connected or not.
type datagrams struct{ *endpoint }

var (
	_ net.Conn       = datagrams{}
	_ net.PacketConn = datagrams{}
)

// RemoteAddr implements net.Conn; it is nil where there is none.
func (c datagrams) RemoteAddr() net.Addr { return c.remoteAddr() }

// Read implements net.Conn. What does not fit b is lost.
func (c datagrams) Read(b []byte) (int, error) { return c.next(b, nil) }

// ReadFrom implements net.PacketConn. What does not fit b is lost.
func (c datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	var from tcpip.FullAddress
	n, err := c.next(b, &from)
	if err != nil {
		return n, nil, err
	}
	return n, c.netAddr(from), nil
}

func (c datagrams) next(b []byte, from *tcpip.FullAddress) (int, error) {
	n, err := c.receive(b, from)
	if err != nil {
		return n, c.fail("read", err)
	}
	return n, nil
}

// Write implements net.Conn.
func (c datagrams) Write(b []byte) (int, error) { return c.sendWhole(b, nil) }

// WriteTo implements net.PacketConn; to is a *net.UDPAddr.
func (c datagrams) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.fail("write", fmt.Errorf("address is a %T: want a *net.UDPAddr", to))
	}
	full := fullAddress(udp.AddrPort())
	return c.sendWhole(b, &full)
}

func (c datagrams) sendWhole(b []byte, to *tcpip.FullAddress) (int, error) {
	n, err := c.send(b, tcpip.WriteOptions{To: to})
	if err != nil {
		return n, c.fail("write", err)
	}
	return n, nil
}

// deadline is a time that may be moved while it is waited for.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	past  chan struct{} // closed when it has passed, and made anew if it is moved then
}

// set moves the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.past // it is just passing, or has long
	}
	d.timer = nil
	passed := false
	select {
	case <-d.past:
		passed = true
	default:
	}
	left := time.Until(t)
	switch {
	case !t.IsZero() && left <= 0:
		if !passed {
			close(d.past)
		}
		return
	case passed:
		d.past = make(chan struct{})
	}
	if !t.IsZero() {
		past := d.past
		d.timer = time.AfterFunc(left, func() { close(past) })
	}
}

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past
}
