package datapath_test

import (
	"net"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// setSegment has the kernel cut what is written to a UDP connection (UDP_SEGMENT); 0 ends that.
func setSegment(conn net.Conn, size int) error {
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		return err
	}
	return setErr
}
