package datapath_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// sendRaw sends a UDP datagram with its header as given, and IPv4 options.
func (s *site) sendRaw(to netip.Addr, datagram, options []byte) {
	s.t.Helper()
	err := s.host.Do(func() error {
		family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
		if to.Is4() {
			family, address = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if len(options) > 0 {
			if err := unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, string(options)); err != nil {
				return err
			}
		}
		return unix.Sendto(fd, datagram, 0, address)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// outerDatagram is the UDP datagram that brings an inner packet of the outer
// family, with so much payload, from one site to another's pod.
func outerDatagram(from, to *site, source netip.Addr, size int) []byte {
	is4 := from.outer.Is4()
	inner := tunneltest.Packet{
		Source: netip.AddrPortFrom(source, 9), Destination: netip.AddrPortFrom(to.podAddr(is4), 9),
		Protocol: tunneltest.UDP, Payload: make([]byte, size),
	}
	etherType, headers := uint16(0x86dd), 40
	if is4 {
		etherType, headers = 0x0800, 20
	}
	outer := tunneltest.Packet{
		Source: netip.AddrPortFrom(from.outer, interopPort), Destination: netip.AddrPortFrom(to.outer, interopPort),
		Protocol: tunneltest.UDP, Payload: tunneltest.Frame(testVNI, to.mac, from.mac, etherType, inner.Bytes()),
	}
	return outer.Bytes()[headers:]
}

// TestInteropOuter is what only a kernel below a real socket can show of the
// forgery matrix: cases 17 to 19. The outer packet may come in any lawful form,
// an unlawful one does not arrive, and in no form does a forged inner source.
func TestInteropOuter(t *testing.T) {
	for _, outerFamily := range []int{4, 6} {
		t.Run(fmt.Sprint(outerFamily), func(t *testing.T) {
			sites := newSites(t, outerFamily, lab.OffloadFull, false, true)
			user, kernel := sites[0], sites[1]
			is4 := outerFamily == 4
			datagram := func(source netip.Addr, size int) []byte { return outerDatagram(kernel, user, source, size) }
			genuine, forged := kernel.podAddr(is4), kernel.podAddr(is4).Prev().Prev().Prev()
			tests := []struct {
				name    string
				size    int
				change  func(datagram []byte)
				options []byte
				arrives bool
			}{
				{"plain", 10, nil, nil, true},
				{"17 fragments", 5000, nil, nil, true},
				{"19 wrong checksum", 10, func(d []byte) { d[6] ^= 1 }, nil, false},
				{"19 no checksum", 10, func(d []byte) { clear(d[6:8]) }, nil, true},
			}
			if is4 {
				tests = append(tests, tests[0])
				tests[4].name, tests[4].options = "18 options", []byte{7, 7, 4, 0, 0, 0, 0, 0}
			}
			for _, test := range tests {
				before := user.engine.Stats()
				for _, source := range []netip.Addr{forged, genuine} {
					d := datagram(source, test.size)
					if test.change != nil {
						test.change(d)
					}
					kernel.sendRaw(user.outer, d, test.options)
				}
				var want uint64
				if test.arrives {
					want = 1
				}
				// The genuine twin, sent last, says when all has been looked at.
				kernel.sendRaw(user.outer, datagram(genuine, 20), nil)
				after := user.waitFor(engine.RxPackets, before.Value(engine.RxPackets)+want+1)
				if got := after.Value(engine.RxDropSource) - before.Value(engine.RxDropSource); got != want {
					t.Errorf("%s: %d forged packets refused, want %d", test.name, got, want)
				}
				// What the pod answered may have been large enough to have the path probed.
				answers := after.Value(engine.ProbeAnswers) - before.Value(engine.ProbeAnswers)
				if got := after.Value(engine.RxDatagrams) - before.Value(engine.RxDatagrams) - answers; got != 2*want+1 {
					t.Errorf("%s: %d datagrams arrived", test.name, got)
				}
			}
		})
	}
}

// waitFor waits until a counter has reached a value.
func (s *site) waitFor(c engine.Counter, value uint64) engine.Stats {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if stats := s.engine.Stats(); stats.Value(c) >= value {
			return stats
		}
	}
	s.t.Fatalf("%v is %d, want %d", c, s.engine.Stats().Value(c), value)
	return engine.Stats{}
}
