package netstack

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

// TestLinger holds that a Close after SetLinger(0) is seen as a reset, and any
// other as an end.
func TestLinger(t *testing.T) {
	a, b := onWire(t, tunneltest.WireConfig{}, tunneltest.AllOffloads())
	listener, err := b.ListenTCP(netip.AddrPortFrom(netip.Addr{}, 80))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for seconds, want := range map[int]error{0: syscall.ECONNRESET, -1: io.EOF} {
		for _, is4 := range []bool{true, false} {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			near, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(b.addr(is4), 80))
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := far.(interface{ SetLinger(int) error }).SetLinger(seconds); err != nil {
				t.Error(err)
			}
			far.Close()
			_ = near.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := near.Read(make([]byte, 1)); !errors.Is(err, want) {
				t.Errorf("after SetLinger(%d), IPv4 %v: read: %v; want %v", seconds, is4, err, want)
			}
		}
	}
}
