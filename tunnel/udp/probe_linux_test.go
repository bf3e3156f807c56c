package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

// TestProbeSocket sends over a router with a smaller MTU behind it: a probe is
// not cut anywhere, an ICMP error about it is remembered by the system, and yet
// the next probe leaves whole again.
func TestProbeSocket(t *testing.T) {
	world := labtest.New(t)
	narrow, err := world.Switch(lab.SwitchConfig{Name: "narrow", MTU: 1400, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("192.168.65.0/24"), netip.MustParsePrefix("fd65::/64"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	near := labtest.Host(t, world, lab.HostConfig{Name: "near"})
	distant := labtest.Host(t, world, lab.HostConfig{Name: "distant", Switch: narrow})
	for _, family := range []int{4, 6} {
		headers := 48
		if family == 4 {
			headers = 28
		}
		var probe *ProbeSocket
		var ordinary, to *Socket
		near.Do(func() error {
			probe = openTestProbe(t, near.Addr(family))
			ordinary = listen(t, on(near.Addr(family)))
			return nil
		})
		distant.Do(func() error { to = listen(t, on(distant.Addr(family))); return nil })
		send := func(size int) []byte {
			t.Helper()
			data := pattern(size - headers)
			if err := probe.Send(to.Local(), data); err != nil {
				t.Fatal(err)
			}
			return data
		}
		waitPathMTU(t, probe, to.Local().Addr(), 1500)
		for range 2 { // the second time with the path MTU known
			send(1500)
			waitPathMTU(t, probe, to.Local().Addr(), 1400)
			want := send(1400)
			if got, _ := receive(t, to, 1); !bytes.Equal(got[0], want) {
				t.Errorf("IPv%d: received %d bytes, want only the %d that fit", family, len(got[0]), len(want))
			}
		}
		over := pattern(1501 - headers)
		if err := probe.Send(to.Local(), over); !errors.Is(err, tunnel.ErrTooBig) {
			t.Errorf("IPv%d: larger than the interface allows: %v, want %v", family, err, tunnel.ErrTooBig)
		}
		mustSend(t, ordinary, tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{over}})
		if got, _ := receive(t, to, 1); !bytes.Equal(got[0], over) {
			t.Errorf("IPv%d: an ordinary datagram arrived as %d bytes, want %d", family, len(got[0]), len(over))
		}
	}
}

func openTestProbe(t *testing.T, local netip.Addr) *ProbeSocket {
	t.Helper()
	s, err := OpenProbe(local, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// waitPathMTU waits until the kernel believes in a path MTU.
func waitPathMTU(t *testing.T, s *ProbeSocket, to netip.Addr, want int) {
	t.Helper()
	var mtu int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var err error
		if mtu, err = s.PathMTU(to); err != nil {
			t.Fatal(err)
		}
		if mtu == want {
			return
		}
	}
	t.Fatalf("path MTU to %v is %d, want %d", to, mtu, want)
}

// TestPathMTUOfEach asks about several addresses with one socket; bound to no
// address it chooses another source for each.
func TestPathMTUOfEach(t *testing.T) {
	world := labtest.New(t)
	host := labtest.Host(t, world, lab.HostConfig{Name: "a"})
	for i, unspecified := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		family, loopback := 4+2*i, loopbacks[i]
		var s *ProbeSocket
		host.Do(func() error { s = openTestProbe(t, unspecified); return nil })
		for range 2 {
			for addr, want := range map[netip.Addr]int{loopback: 65535 + i, host.Addr(family).Next(): 1500} {
				if mtu, err := s.PathMTU(addr); err != nil || mtu != want {
					t.Errorf("path MTU to %v: %d, %v, want %d", addr, mtu, err, want)
				}
			}
		}
		other := loopbacks[1-i]
		if _, err := s.PathMTU(other); err == nil {
			t.Errorf("%v tells the path MTU to %v", unspecified, other)
		}
		if err := s.Send(netip.AddrPortFrom(other, 9), nil); !errors.Is(err, errFamily) {
			t.Errorf("%v sends to %v: %v", unspecified, other, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		_, err := s.PathMTU(loopback)
		if sent := s.Send(netip.AddrPortFrom(loopback, 9), nil); !errors.Is(err, tunnel.ErrClosed) || !errors.Is(sent, tunnel.ErrClosed) {
			t.Errorf("closed socket: %v, %v", err, sent)
		}
	}
}

func TestProbeSocketErrors(t *testing.T) {
	for addr, want := range map[netip.Addr]string{
		{}:                                      "want a local address",
		netip.MustParseAddr("::ffff:127.0.0.1"): "want a local address",
		netip.MustParseAddr("192.0.2.1"):        "192.0.2.1 is not an address of this host",
	} {
		if _, err := OpenProbe(addr, true); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenProbe(%v): %v, want %q", addr, err, want)
		}
	}
}

// TestProbeSharesPort holds that a probe leaves from the port of a group, and
// that the group goes on to get all that comes there.
func TestProbeSharesPort(t *testing.T) {
	for _, addr := range loopbacks {
		for _, count := range []int{1, 3} {
			sockets := group(t, on(addr), count)
			probe, err := sockets[0].OpenProbe(true)
			if err != nil {
				t.Fatal(err)
			}
			const senders = 40
			to := listen(t, on(addr))
			for range senders {
				mustSend(t, listen(t, on(addr)), tunnel.Datagrams{Addr: sockets[0].Local(), Parts: parts(pattern(100))})
			}
			if err := probe.Send(to.Local(), pattern(100)); err != nil {
				t.Fatal(err)
			}
			if _, runs := receive(t, to, 1); runs[0].Addr != sockets[0].Local() {
				t.Errorf("a probe came from %v, want %v", runs[0].Addr, sockets[0].Local())
			}
			total := 0
			for _, runs := range drainGroup(t, sockets) {
				for _, d := range runs {
					total += len(cut(d.Data, d.SegmentSize))
				}
			}
			if total != senders {
				t.Errorf("%d of %d datagrams arrived beside a probe socket", total, senders)
			}
			if err := probe.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
