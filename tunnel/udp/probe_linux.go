package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// ProbeSocket sends datagrams that are fragmented nowhere: the outer DF bit is
// set, and what the kernel has learned of a path is not looked at. Nothing is
// received on it. It may be used by several goroutines.
type ProbeSocket struct {
	local netip.Addr
	runs  bool

	mu     sync.Mutex // no descriptor may be freed while a call still uses it
	closed bool
	sender int
	asker  int // is only connected
}

// OpenProbe opens a ProbeSocket in the network namespace of the calling thread,
// on a local address, or the unspecified one of a family. It sends from any free
// port. Runs says whether it is to send runs.
func OpenProbe(local netip.Addr, runs bool) (*ProbeSocket, error) {
	if !local.IsValid() || local.Is4In6() {
		return nil, fmt.Errorf("open probe socket on %v: want a local address or 0.0.0.0 or ::", local)
	}
	return openProbes(netip.AddrPortFrom(local, 0), runs, func(int) error { return nil })
}

// OpenProbe opens a ProbeSocket, as the function does, that sends from the port of
// the group of s. All that comes there the group goes on to receive.
func (s *Socket) OpenProbe(runs bool) (*ProbeSocket, error) {
	return openProbes(s.local, runs, func(fd int) error {
		// The program that steers the group does not know the last one bound, so that
		// nothing is steered to it. But whether datagrams are joined the kernel asks the
		// one that it finds without that program, which may be this.
		joins, err := unix.GetsockoptInt(s.fd, unix.SOL_UDP, unix.UDP_GRO)
		if err == nil && joins != 0 {
			err = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, joins)
		}
		if err != nil {
			return fmt.Errorf("join datagrams as the group does: %w", err)
		}
		return share(fd)
	})
}

// openProbes opens both sockets; prepare is for the sender, before it is bound.
func openProbes(from netip.AddrPort, runs bool, prepare func(fd int) error) (s *ProbeSocket, err error) {
	s = &ProbeSocket{local: from.Addr(), runs: runs, sender: -1, asker: -1}
	if s.sender, err = openProbe(from, prepare); err == nil {
		s.asker, err = openProbe(netip.AddrPortFrom(from.Addr(), 0), func(int) error { return nil })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open probe socket on %v: %w", from, err), s.free())
	}
	return s, nil
}

func openProbe(from netip.AddrPort, prepare func(fd int) error) (int, error) {
	local := from.Addr()
	family, level := unix.AF_INET6, unix.SOL_IPV6
	options := map[int]int{
		unix.IPV6_V6ONLY: 1, unix.IPV6_MTU_DISCOVER: unix.IPV6_PMTUDISC_PROBE, unix.IPV6_DONTFRAG: 1,
	}
	if local.Is4() {
		family, level = unix.AF_INET, unix.SOL_IP
		options = map[int]int{unix.IP_MTU_DISCOVER: unix.IP_PMTUDISC_PROBE}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	for name, value := range options {
		if err := unix.SetsockoptInt(fd, level, name, value); err != nil {
			return -1, errors.Join(fmt.Errorf("set socket option %d of level %d: %w", name, level, err), unix.Close(fd))
		}
	}
	if err := errors.Join(dropAll(fd), prepare(fd), bind(fd, from)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// dropAll has the kernel drop what arrives on fd, for nobody reads it.
func dropAll(fd int) error {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	program := unix.SockFprog{Len: 1, Filter: &drop}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("attach drop filter: %w", err)
	}
	return nil
}

// Local is the address the socket was opened on.
func (s *ProbeSocket) Local() netip.Addr { return s.local }

// Send sends one datagram. ErrTooBig means that it is larger than the
// interface's MTU, ErrFull that the socket is full.
func (s *ProbeSocket) Send(to netip.AddrPort, datagram []byte) error {
	return s.send(to, datagram, nil)
}

// SendRun sends a run of datagrams of segment bytes, the last of which may be
// shorter, in one call (UDP_SEGMENT). Errors are those of Send, or ErrOffload
// where runs are not to be sent, or cannot be.
func (s *ProbeSocket) SendRun(to netip.AddrPort, run []byte, segment int) error {
	if !s.runs {
		return errRunOff
	}
	var c control
	used := c.add(0, unix.SOL_UDP, unix.UDP_SEGMENT, uint32(segment), 2)
	return s.send(to, run, c.bytes()[:used])
}

func (s *ProbeSocket) send(to netip.AddrPort, data, control []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return tunnel.ErrClosed
	case to.Addr().Is4() != s.local.Is4():
		return errFamily
	}
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	if to.Addr().Is4() {
		name = &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	_, err := unix.SendmsgN(s.sender, data, control, name, 0)
	var errno unix.Errno
	if errors.As(err, &errno) {
		return sendError(errno, len(control) > 0)
	}
	return err
}

// PathMTU is the largest outer packet in bytes, IP header included, that the
// kernel believes to get to an address: the route's or the interface's MTU, or
// less where an ICMP error said so.
func (s *ProbeSocket) PathMTU(to netip.Addr) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return 0, tunnel.ErrClosed
	case to.Is4() != s.local.Is4():
		return 0, fmt.Errorf("ask for the path MTU to %v: not of the socket's family", to)
	}
	mtu, err := pathMTU(s.asker, to)
	if err != nil {
		return 0, fmt.Errorf("ask for the path MTU to %v: %w", to, err)
	}
	return mtu, nil
}

// pathMTU connects fd, because the kernel tells the path MTU of a connected
// socket only.
func pathMTU(fd int, to netip.Addr) (int, error) {
	// To no family: the source address that the last connection chose is forgotten.
	var name unix.RawSockaddrInet6
	if err := connect(fd, &name, unix.SizeofSockaddrInet6); err != nil {
		return 0, err
	}
	const anyPort = 9
	if err := connect(fd, &name, putName(&name, netip.AddrPortFrom(to, anyPort))); err != nil {
		return 0, err
	}
	if to.Is4() {
		return unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
	}
	return unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU)
}

func connect(fd int, name *unix.RawSockaddrInet6, length uint32) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(name)), uintptr(length))
	if errno != 0 {
		return fmt.Errorf("connect: %w", errno)
	}
	return nil
}

// Close frees the socket.
func (s *ProbeSocket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.free(); err != nil {
		return fmt.Errorf("close probe socket on %v: %w", s.local, err)
	}
	return nil
}

func (s *ProbeSocket) free() error {
	var errs []error
	for _, fd := range []int{s.sender, s.asker} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
