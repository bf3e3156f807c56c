package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

// sharing is how a socket takes its port.
type sharing int

const (
	alone      sharing = iota // nobody may have it, now or later
	firstOfAll                // nobody may have it now
	another                   // along with those that have it already
)

// openSocket opens a socket on addr with everything but offloads set.
func openSocket(config Config, addr netip.AddrPort, sharing sharing) (fd int, err error) {
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return -1, fmt.Errorf("this kernel has the address family switched off: %w", err)
	}
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	if err := configure(fd, config, addr, sharing); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func configure(fd int, config Config, addr netip.AddrPort, sharing sharing) error {
	type option struct{ level, name, value int }
	options := []option{
		{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1},
		{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
		{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1},
	}
	if addr.Addr().Is4() {
		options = []option{
			{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
			{unix.SOL_IP, unix.IP_RECVTOS, 1},
		}
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
		}
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, config.ReceiveBuffer)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, config.SendBuffer)
	if sharing == another {
		if err := share(fd); err != nil {
			return err
		}
	}
	if err := bind(fd, addr); err != nil {
		return err
	}
	if sharing == firstOfAll {
		return share(fd)
	}
	return nil
}

func share(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("share port: %w", err)
	}
	return nil
}

// setBuffer asks past the limit of the system, then within it. What was granted
// is read back, so that neither answer matters.
func setBuffer(fd, force, name, bytes int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, name, bytes)
	}
}

func bind(fd int, addr netip.AddrPort) error {
	var name unix.Sockaddr = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().Is4() {
		name = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	err := unix.Bind(fd, name)
	switch {
	case errors.Is(err, unix.EADDRINUSE) && addr.Port() == 0:
		return fmt.Errorf("no port is free (see: sysctl net.ipv4.ip_local_port_range): %w", err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("port %d is taken by a kernel VXLAN device (see: ip -d link show type vxlan) or by another agent (see: ss -lunp): %w", addr.Port(), err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%v is not an address of this host: %w", addr.Addr(), err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("port %d needs CAP_NET_BIND_SERVICE: %w", addr.Port(), err)
	case err != nil:
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("get socket name: %w", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port)), nil
	}
	return netip.AddrPort{}, fmt.Errorf("get socket name: not an internet address: %T", name)
}

// openSender opens a socket on a port of its own that only sends: whatever
// arrives there is dropped by a filter and so never fills its buffer.
func openSender(config Config) (int, error) {
	fd, err := openSocket(config, netip.AddrPortFrom(config.Addr.Addr(), 0), alone)
	if err != nil {
		return -1, err
	}
	if err := dropAll(fd); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// socketDrops asks how many datagrams came while the receive buffer of fd was
// full. SO_RXQ_OVFL would tell with every datagram, but must not be set: of a
// datagram that crossed a veth from a TCP sender on the same machine a kernel
// with hardened usercopy refuses to copy the number, and ends the thread
// (usercopy: Kernel memory exposure attempt).
func socketDrops(fd int) uint64 {
	var memory [9]uint32 // SK_MEMINFO_VARS, the last being SK_MEMINFO_DROPS
	length := uint32(unsafe.Sizeof(memory))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&memory)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(memory[len(memory)-1])
}

// grantedBuffers reads the buffers back. The kernel reports twice what it was
// asked for, the other half being for its own bookkeeping.
func grantedBuffers(receiver, sender int) Buffers {
	receive, _ := unix.GetsockoptInt(receiver, unix.SOL_SOCKET, unix.SO_RCVBUF)
	send, _ := unix.GetsockoptInt(sender, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return Buffers{Receive: receive / 2, Send: send / 2}
}

// bufferShortfall says how to get the buffers that were asked for.
func bufferShortfall(config Config, granted Buffers) (why []string) {
	for _, b := range []struct {
		name, sysctl string
		want, have   int
	}{
		{"receive", "net.core.rmem_max", config.ReceiveBuffer, granted.Receive},
		{"send", "net.core.wmem_max", config.SendBuffer, granted.Send},
	} {
		if b.have < b.want {
			why = append(why, fmt.Sprintf("%s buffer is %d of %d bytes: sysctl -w %s=%d", b.name, b.have, b.want, b.sysctl, b.want))
		}
	}
	return why
}

// options is what probe asks a socket.
type options struct {
	get func(name int) error        // is the UDP option known?
	set func(name, value int) error // set the UDP option
}

func socketOptions(fd int) options {
	return options{
		get: func(name int) error { _, err := unix.GetsockoptInt(fd, unix.SOL_UDP, name); return err },
		set: func(name, value int) error { return unix.SetsockoptInt(fd, unix.SOL_UDP, name, value) },
	}
}

// probe turns on what the kernel has and is known to do right.
func probe(config Config, kernel linux.Version, opts options) (o tunnel.Offloads) {
	// The kernel's own caps are 64, and 128 from 6.9 on; one less keeps clear of
	// off-by-one bugs at the cap.
	o.MaxSegments = 63
	if kernel.AtLeast(6, 9, 0) {
		o.MaxSegments = 127
	}
	if why := gsoMissing(config, kernel, opts); why != "" {
		o.Why = append(o.Why, "runs are sent as single datagrams: "+why)
	} else {
		o.UDP = true
	}
	if why := groMissing(config, kernel, opts); why != "" {
		o.Why = append(o.Why, "datagrams are received one by one: "+why)
	}
	return o
}

func gsoMissing(config Config, kernel linux.Version, opts options) string {
	switch err := opts.get(unix.UDP_SEGMENT); {
	case config.GSO == tunnel.Off:
		return "switched off"
	case err != nil:
		return fmt.Sprintf("UDP_SEGMENT: %v", err)
	case config.GSO != tunnel.On && kernel.AtLeast(7, 0, 0) && !kernel.AtLeast(7, 1, 5):
		// These corrupt a run whose segments are all equal, silently.
		return fmt.Sprintf("kernel %v corrupts them: use 7.1.5 or later", kernel)
	}
	return ""
}

func groMissing(config Config, kernel linux.Version, opts options) string {
	if config.GRO == tunnel.Off {
		return "switched off"
	}
	if config.GRO != tunnel.On && !kernel.AtLeast(5, 12, 0) {
		return fmt.Sprintf("kernel %v joins them wrongly: use 5.12 or later", kernel)
	}
	if err := opts.set(unix.UDP_GRO, 1); err != nil {
		return fmt.Sprintf("UDP_GRO: %v", err)
	}
	return ""
}
