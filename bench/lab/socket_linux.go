package lab

import (
	"errors"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// setDontFragment makes the socket send no fragments.
func setDontFragment(conn syscall.Conn, to netip.Addr) error {
	return setOption(conn, func(fd int) error {
		if to.Is6() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
}

// useCubic makes a TCP connection use the congestion control that most
// machines use, where the kernel has it, so that measurements compare.
func useCubic(conn syscall.Conn) error {
	err := setOption(conn, func(fd int) error {
		return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}

func setOption(conn syscall.Conn, set func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = set(int(fd)) }); err != nil {
		return err
	}
	return setErr
}
