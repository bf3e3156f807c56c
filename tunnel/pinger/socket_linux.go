package pinger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ICMP as the kernel numbers it. (ICMP_FILTER is in linux/icmp.h.)
const (
	solRaw     = 255
	icmpFilter = 1

	echoReply4 = 0
	echoReply6 = 129
	icmpLen    = 8
	ipv4Len    = 20
	ipv6Len    = 40
)

// socket sends echo requests of one family and gets the answers.
type socket struct {
	file       *os.File // waits without a thread
	conn       syscall.RawConn
	is4, raw   bool
	identifier uint16 // of requests whose answers come here
}

// openSocket opens the kind of socket that needs no rights but a group's, or else
// a raw one.
func openSocket(is4 bool) (*socket, error) {
	s, ping := open(is4, unix.SOCK_DGRAM)
	if ping == nil {
		return s, nil
	}
	s, raw := open(is4, unix.SOCK_RAW)
	if raw == nil {
		return s, nil
	}
	return nil, fmt.Errorf("no ping socket (%w) and no raw one (%w): have net.ipv4.ping_group_range contain a group of this process, or give it CAP_NET_RAW", ping, raw)
}

func open(is4 bool, kind int) (*socket, error) {
	family, protocol := unix.AF_INET6, unix.IPPROTO_ICMPV6
	if is4 {
		family, protocol = unix.AF_INET, unix.IPPROTO_ICMP
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	s := &socket{is4: is4, raw: kind == unix.SOCK_RAW, file: os.NewFile(uintptr(fd), "icmp")}
	if err = s.prepare(fd); err == nil {
		s.conn, err = s.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// prepare has requests be fragmented nowhere, and only answers come.
func (s *socket) prepare(fd int) error {
	if s.is4 {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("set IP_MTU_DISCOVER: %w", err)
		}
	} else if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
		return fmt.Errorf("set IPV6_MTU_DISCOVER: %w", err)
	}
	if s.raw {
		s.identifier = uint16(rand.Uint32())
		return s.filter(fd)
	}
	var any unix.Sockaddr = &unix.SockaddrInet6{}
	if s.is4 {
		any = &unix.SockaddrInet4{}
	}
	if err := unix.Bind(fd, any); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	// What looks like a port is the identifier that the kernel has chosen.
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("read identifier: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		s.identifier = uint16(name.Port)
	case *unix.SockaddrInet6:
		s.identifier = uint16(name.Port)
	}
	return nil
}

// filter has a raw socket get echo replies alone.
func (s *socket) filter(fd int) error {
	if s.is4 {
		pass := ^uint32(1 << echoReply4)
		if err := unix.SetsockoptInt(fd, solRaw, icmpFilter, int(int32(pass))); err != nil {
			return fmt.Errorf("set ICMP_FILTER: %w", err)
		}
		return nil
	}
	var filter unix.ICMPv6Filter
	for i := range filter.Data {
		filter.Data[i] = ^uint32(0)
	}
	filter.Data[echoReply6>>5] &^= 1 << (echoReply6 & 31)
	if err := unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &filter); err != nil {
		return fmt.Errorf("set ICMP6_FILTER: %w", err)
	}
	return nil
}

// headers is what stands before the ICMP message in a packet to be sent.
func (s *socket) headers() int {
	if s.is4 {
		return ipv4Len
	}
	return ipv6Len
}

// send sends an ICMP message.
func (s *socket) send(from, to netip.Addr, message []byte) error {
	var name unix.Sockaddr = &unix.SockaddrInet6{Addr: to.As16()}
	source := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
	if s.is4 {
		name, source = &unix.SockaddrInet4{Addr: to.As4()}, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	var sent error
	err := s.conn.Control(func(fd uintptr) {
		_, sent = unix.SendmsgN(int(fd), message, source, name, 0)
		if sent != nil { // of the errors that a foreign source brings none is its own
			_, sent = unix.SendmsgN(int(fd), message, nil, name, 0)
		}
	})
	return errors.Join(err, sent)
}

// receive waits for an answer, and returns its data and where it came from.
func (s *socket) receive(buffer []byte) (data []byte, from netip.Addr, err error) {
	for {
		n, name, err := s.read(buffer)
		if err != nil {
			return nil, netip.Addr{}, fmt.Errorf("receive echo replies: %w", err)
		}
		if data, ok := s.parse(buffer[:n]); ok {
			return data, name, nil
		}
	}
}

func (s *socket) read(buffer []byte) (n int, from netip.Addr, err error) {
	var received error
	err = s.conn.Read(func(fd uintptr) bool {
		var name unix.Sockaddr
		n, name, received = unix.Recvfrom(int(fd), buffer, 0)
		switch name := name.(type) {
		case *unix.SockaddrInet4:
			from = netip.AddrFrom4(name.Addr)
		case *unix.SockaddrInet6:
			from = netip.AddrFrom16(name.Addr)
		}
		return !errors.Is(received, unix.EAGAIN)
	})
	return n, from, errors.Join(err, received)
}

// parse returns the data of an answer to us. The kernel has looked at its
// checksum, and does not give a raw socket of IPv6 the IP header.
func (s *socket) parse(message []byte) (data []byte, ok bool) {
	kind := byte(echoReply6)
	if s.is4 {
		kind = echoReply4
	}
	if s.raw && s.is4 {
		if len(message) < ipv4Len || len(message) < int(message[0]&15)*4 {
			return nil, false
		}
		message = message[message[0]&15*4:]
	}
	if len(message) < icmpLen || message[0] != kind || binary.BigEndian.Uint16(message[4:]) != s.identifier {
		return nil, false
	}
	return message[icmpLen:], true
}

func (s *socket) close() error { return s.file.Close() }
