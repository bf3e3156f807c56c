package udp

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
)

func TestPortTaken(t *testing.T) {
	host := labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "a"})
	taken := func(where string, f func() error) {
		t.Helper()
		err := host.Do(f)
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "kernel VXLAN device") {
			t.Errorf("%s: %v, want %v and who may have the port", where, err, unix.EADDRINUSE)
		}
	}
	try := func(addr string) func() error {
		return func() error {
			s, err := Listen(Config{Addr: netip.MustParseAddrPort(addr)})
			if err != nil {
				return err
			}
			return s.Close()
		}
	}
	if err := host.Do(try("192.0.2.1:8472")); err == nil || !strings.Contains(err.Error(), "192.0.2.1 is not an address of this host") {
		t.Errorf("foreign address: %v", err)
	}
	for _, addr := range []string{"0.0.0.0:8472", "[::]:8472"} {
		if err := host.Do(try(addr)); err != nil {
			t.Error(err)
		}
	}
	host.Do(func() error {
		listen(t, Config{Addr: netip.MustParseAddrPort("0.0.0.0:8472")})
		return nil
	})
	if err := host.Do(try("[::]:8472")); err != nil {
		t.Errorf("the IPv6 port is not free beside the IPv4 one: %v", err)
	}
	taken("another agent", try("0.0.0.0:8472"))

	out, err := host.Command(context.Background(), "ip", "link", "add", "vx", "up", "type", "vxlan", "id", "1", "dstport", "4789", "dev", "eth0").CombinedOutput()
	if err != nil {
		t.Fatalf("add vxlan device: %v: %s", err, out)
	}
	taken("kernel VXLAN", try("0.0.0.0:4789"))

	labtest.Sysctl(t, host.Namespace, "net/ipv4/ip_local_port_range", "8472 8472")
	if err := host.Do(try("0.0.0.0:0")); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "no port is free") {
		t.Errorf("no free port: %v", err)
	}
}

func TestBuffers(t *testing.T) {
	config := on(loopbacks[0])
	config.ReceiveBuffer, config.SendBuffer = 1<<20, 1<<19
	s := listen(t, config)
	granted := s.Buffers()
	want := Buffers{Receive: 1 << 20, Send: 1 << 19}
	// Without rights on the machine the sysctls bound them, and Offloads says so.
	short := granted != want
	if granted.Receive > want.Receive || granted.Send > want.Send || short != strings.Contains(strings.Join(s.Offloads().Why, "\n"), "mem_max") {
		t.Errorf("granted %+v of %+v, reasons %q", granted, want, s.Offloads().Why)
	}
	why := bufferShortfall(Config{ReceiveBuffer: 100, SendBuffer: 100}, Buffers{Receive: 99, Send: 100})
	if len(why) != 1 || !strings.Contains(why[0], "receive buffer is 99 of 100 bytes: sysctl -w net.core.rmem_max=100") {
		t.Errorf("shortfall of the receive buffer: %q", why)
	}
}
