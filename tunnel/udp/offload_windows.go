package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

// selfTest bounds the wait for a run that was sent to this host itself.
const selfTest = 200 * time.Millisecond

// cutsRuns looks whether the system cuts runs of datagrams: whether it knows
// UDP_SEND_MSG_SIZE (Windows 10 2004), and whether a run sent over the loopback
// arrives as it should, for there are drivers that know and do not do it.
func cutsRuns(is4 bool) error {
	loopback := netip.IPv6Loopback()
	if is4 {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	small := Config{ReceiveBuffer: tunnel.MaxPacket, SendBuffer: tunnel.MaxPacket}
	fd, err := openSocket(small, netip.AddrPortFrom(loopback, 0))
	if err != nil {
		return fmt.Errorf("open socket to test it: %w", err)
	}
	defer func() { _ = windows.Closesocket(fd) }()
	if _, err := windows.GetsockoptInt(fd, windows.IPPROTO_UDP, windows.UDP_SEND_MSG_SIZE); err != nil {
		return fmt.Errorf("UDP_SEND_MSG_SIZE: %w", err)
	}
	local, err := localAddr(fd)
	if err != nil {
		return err
	}
	sender, receiver := &sender{}, &receiver{}
	sender.init()
	receiver.init()
	want := [][]byte{[]byte("aaaa"), []byte("bbbb"), []byte("cc")}
	run := tunnel.Datagrams{Addr: local, Parts: want}
	if err := sender.give(fd, &run, len(want[0]), 0); err != nil {
		return fmt.Errorf("UDP_SEND_MSG_SIZE: send: %w", err)
	}
	into := make([]byte, tunnel.MaxPacket)
	for deadline := time.Now().Add(selfTest); len(want) > 0; {
		n, err := receiver.take(fd, into)
		switch {
		case errors.Is(err, windows.WSAEWOULDBLOCK) && time.Now().Before(deadline):
			time.Sleep(time.Millisecond)
		case err != nil:
			return fmt.Errorf("UDP_SEND_MSG_SIZE: a run that was sent did not arrive: %w", err)
		case !bytes.Equal(into[:n], want[0]):
			return fmt.Errorf("UDP_SEND_MSG_SIZE: a datagram of %d bytes arrived where one of %d was sent", n, len(want[0]))
		default:
			want = want[1:]
		}
	}
	return nil
}
