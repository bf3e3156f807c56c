//go:build !linux && !windows

package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// fullWait is how long Send waits for a full socket.
const fullWait = time.Millisecond

// Socket is a UDP socket of the net package, and implements tunnel.Socket with
// one system call per datagram. It sends no runs and carries no ECN bits.
type Socket struct {
	local   netip.AddrPort
	conn    *net.UDPConn   // receives, and sends where it is the only one
	senders []*net.UDPConn // never empty
	buffers Buffers
	closed  atomic.Bool

	mu     sync.Mutex
	joined []byte // the parts of the datagram being sent
}

// Listen opens a Socket.
func Listen(config Config) (*Socket, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Socket{joined: make([]byte, 0, tunnel.MaxPacket)}
	if err := s.open(config); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %v: %w", config.Addr, err), s.Close())
	}
	for _, why := range s.Offloads().Why {
		config.Logger.Info("UDP socket is slower than it could be", "addr", s.local, "reason", why)
	}
	return s, nil
}

func (s *Socket) open(config Config) (err error) {
	if s.conn, err = s.openConn(config, config.Addr); err != nil {
		return err
	}
	s.local = s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	s.local = netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
	if config.SendSockets <= 1 {
		s.senders = []*net.UDPConn{s.conn}
		return nil
	}
	for range config.SendSockets {
		conn, err := s.openConn(config, netip.AddrPortFrom(config.Addr.Addr(), 0))
		if err != nil {
			return fmt.Errorf("open send socket: %w", err)
		}
		s.senders = append(s.senders, conn)
	}
	return nil
}

func (s *Socket) openConn(config Config, addr netip.AddrPort) (*net.UDPConn, error) {
	network := "udp6" // with an IPv6 address this never takes IPv4
	if addr.Addr().Is4() {
		network = "udp4"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, err
	}
	s.buffers = Buffers{
		Receive: largest(config.ReceiveBuffer, conn.SetReadBuffer),
		Send:    largest(config.SendBuffer, conn.SetWriteBuffer),
	}
	return conn, nil
}

// largest sets the largest buffer the system allows, found by halving, and
// returns it: these systems refuse what is too large instead of bounding it.
func largest(bytes int, set func(int) error) int {
	const smallest = 64 << 10
	for ; bytes >= smallest; bytes /= 2 {
		if set(bytes) == nil {
			return bytes
		}
	}
	return 0
}

// Local is the bound address and port.
func (s *Socket) Local() netip.AddrPort { return s.local }

// Offloads says that runs are not taken.
func (s *Socket) Offloads() tunnel.Offloads {
	return tunnel.Offloads{Why: []string{
		"runs are sent as single datagrams: not done on this system",
		"datagrams are received one by one: not done on this system",
	}}
}

// Buffers are the socket buffers granted; 0 is the system's default.
func (s *Socket) Buffers() Buffers { return s.buffers }

// Lost is zero: these systems do not tell a socket about its losses.
func (s *Socket) Lost() (truncated, overflow uint64) { return 0, 0 }

// Receive waits for one datagram.
func (s *Socket) Receive(batch []tunnel.Datagrams, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena {
		return 0, errArena
	}
	if len(batch) == 0 {
		return 0, nil
	}
	n, addr, err := s.conn.ReadFromUDPAddrPort(arena)
	switch {
	case errors.Is(err, net.ErrClosed):
		return 0, tunnel.ErrClosed
	case err != nil:
		return 0, fmt.Errorf("receive: %w", err)
	}
	batch[0] = tunnel.Datagrams{Addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), Data: arena[:n:n]}
	return 1, nil
}

// Send sends batch as tunnel.Socket says, one system call per datagram.
func (s *Socket) Send(batch []tunnel.Datagrams) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		if s.closed.Load() {
			return i, tunnel.ErrClosed
		}
		if err := s.sendOne(&batch[i]); err != nil {
			return i, err
		}
	}
	return len(batch), nil
}

func (s *Socket) sendOne(d *tunnel.Datagrams) error {
	bytes := size(d)
	switch {
	case d.SegmentSize > 0 && d.SegmentSize < bytes:
		return errRunOff
	case bytes > maxPayload:
		return errPayload
	case d.Addr.Addr().Is4() != s.local.Addr().Is4():
		return errFamily
	}
	s.joined = s.joined[:0]
	for _, part := range d.Parts {
		s.joined = append(s.joined, part...)
	}
	conn := s.senders[int(d.Flow)%len(s.senders)]
	if err := conn.SetWriteDeadline(time.Now().Add(fullWait)); err != nil {
		return sendError(err)
	}
	if _, err := conn.WriteToUDPAddrPort(s.joined, d.Addr); err != nil {
		return sendError(err)
	}
	return nil
}

func sendError(err error) error {
	switch {
	case errors.Is(err, net.ErrClosed):
		return tunnel.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, errnoNoBuffers):
		return fmt.Errorf("send: %w: %w", tunnel.ErrFull, err)
	case errors.Is(err, errnoTooBig):
		return fmt.Errorf("send: %w: %w", tunnel.ErrTooBig, err)
	}
	return fmt.Errorf("send: %w", err)
}

// Close ends a Receive that waits and frees the sockets.
func (s *Socket) Close() error {
	s.closed.Store(true)
	var errs []error
	for _, conn := range append([]*net.UDPConn{s.conn}, s.senders...) {
		if conn == nil {
			continue
		}
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
