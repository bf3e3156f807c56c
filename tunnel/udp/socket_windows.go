package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

// What golang.org/x/sys/windows lacks of ws2def.h, ws2ipdef.h and winsock2.h.
const (
	soExclusiveAddrUse = -5 // ^SO_REUSEADDR: nobody may take the port as well
	ipRecvECN          = 50 // IP_RECVECN and IPV6_RECVECN; as control message IP_ECN and IPV6_ECN
	fionBio            = 0x8004667e
	fdRead             = 1
	winsock            = 0x0202 // version 2.2
)

// procEventSelect is WSAEventSelect, which golang.org/x/sys/windows lacks.
var procEventSelect = windows.NewLazySystemDLL("ws2_32.dll").NewProc("WSAEventSelect")

// openSocket opens a socket on addr that never waits.
func openSocket(config Config, addr netip.AddrPort) (fd windows.Handle, err error) {
	family := windows.AF_INET6
	if addr.Addr().Is4() {
		family = windows.AF_INET
	}
	fd, err = windows.WSASocket(int32(family), windows.SOCK_DGRAM, windows.IPPROTO_UDP, nil, 0,
		windows.WSA_FLAG_OVERLAPPED|windows.WSA_FLAG_NO_HANDLE_INHERIT)
	if errors.Is(err, windows.WSAEAFNOSUPPORT) {
		return windows.InvalidHandle, fmt.Errorf("this system has the address family switched off: %w", err)
	}
	if err != nil {
		return windows.InvalidHandle, fmt.Errorf("open socket: %w", err)
	}
	if err := configure(fd, config, addr); err != nil {
		return windows.InvalidHandle, errors.Join(err, windows.Closesocket(fd))
	}
	return fd, nil
}

func configure(fd windows.Handle, config Config, addr netip.AddrPort) error {
	if err := control(fd, fionBio, 1); err != nil {
		return fmt.Errorf("make socket non-blocking: %w", err)
	}
	if err := windows.SetsockoptInt(fd, windows.SOL_SOCKET, soExclusiveAddrUse, 1); err != nil {
		return fmt.Errorf("keep port to ourselves: %w", err)
	}
	if addr.Addr().Is6() {
		if err := windows.SetsockoptInt(fd, windows.IPPROTO_IPV6, windows.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("keep IPv4 out of an IPv6 socket: %w", err)
		}
	}
	// A peer that is not there must not end a receive of what others send. Where
	// these are refused, Receive passes over the errors.
	_ = control(fd, windows.SIO_UDP_CONNRESET, 0)
	_ = control(fd, windows.SIO_UDP_NETRESET, 0)
	// What was granted is read back.
	_ = windows.SetsockoptInt(fd, windows.SOL_SOCKET, windows.SO_RCVBUF, config.ReceiveBuffer)
	_ = windows.SetsockoptInt(fd, windows.SOL_SOCKET, windows.SO_SNDBUF, config.SendBuffer)
	return bind(fd, addr)
}

// control is ioctlsocket with one number.
func control(fd windows.Handle, code, value uint32) error {
	var returned uint32
	return windows.WSAIoctl(fd, code, (*byte)(unsafe.Pointer(&value)), uint32(unsafe.Sizeof(value)), nil, 0, &returned, nil, 0)
}

func bind(fd windows.Handle, addr netip.AddrPort) error {
	var name windows.Sockaddr = &windows.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().Is4() {
		name = &windows.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	err := windows.Bind(fd, name)
	switch {
	case errors.Is(err, windows.WSAEADDRINUSE):
		return fmt.Errorf("port %d is taken by another program (see: netstat -abno -p udp): %w", addr.Port(), err)
	case errors.Is(err, windows.WSAEADDRNOTAVAIL):
		return fmt.Errorf("%v is not an address of this host: %w", addr.Addr(), err)
	case errors.Is(err, windows.WSAEACCES):
		return fmt.Errorf("port %d is kept from programs (see: netsh interface ipv4 show excludedportrange udp): %w", addr.Port(), err)
	case err != nil:
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

func localAddr(fd windows.Handle) (netip.AddrPort, error) {
	name, err := windows.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("get socket name: %w", err)
	}
	switch name := name.(type) {
	case *windows.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), nil
	case *windows.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("get socket name: not an internet address: %T", name)
}

// signalArrival has event set whenever something can be received on fd.
func signalArrival(fd, event windows.Handle) error {
	if failed, _, err := procEventSelect.Call(uintptr(fd), uintptr(event), fdRead); failed != 0 {
		return fmt.Errorf("ask to be told of arrivals: %w", err)
	}
	return nil
}

// receiveECN asks for the ECN bits of what arrives, which Windows 11 and
// Server 2022 know.
func receiveECN(fd windows.Handle, is4 bool) error {
	level := windows.IPPROTO_IPV6
	if is4 {
		level = windows.IPPROTO_IP
	}
	return windows.SetsockoptInt(fd, level, ipRecvECN, 1)
}

// grantedBuffers reads the buffers back.
func grantedBuffers(receiver, sender windows.Handle) Buffers {
	receive, _ := windows.GetsockoptInt(receiver, windows.SOL_SOCKET, windows.SO_RCVBUF)
	send, _ := windows.GetsockoptInt(sender, windows.SOL_SOCKET, windows.SO_SNDBUF)
	return Buffers{Receive: receive, Send: send}
}
