package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

// TestPartsAndSizes sends datagrams in parts, from sockets of many ports, and
// from none at all to the largest.
func TestPartsAndSizes(t *testing.T) {
	for _, addr := range loopbacks {
		config := on(addr)
		config.SendSockets = 4
		from, to := listen(t, config), listen(t, on(addr))
		ports := map[uint16]bool{}
		for i, size := range []int{0, 1, 2, 3, 1450, 9000, maxPayload} {
			want := pattern(size)
			mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), Parts: parts(want), Flow: uint32(i), ECN: 1})
			got, runs := receive(t, to, 1)
			if !bytes.Equal(got[0], want) || runs[0].Addr.Addr() != addr {
				t.Errorf("%v: %d bytes arrived as %d from %v", addr, size, len(got[0]), runs[0].Addr)
			}
			if to.ecn && runs[0].ECN != 1 {
				t.Errorf("%v: ECN bits 1 arrived as %d", addr, runs[0].ECN)
			}
			ports[runs[0].Addr.Port()] = true
		}
		if len(ports) != config.SendSockets || ports[from.Local().Port()] {
			t.Errorf("%v: sent from ports %v, want %d others than %v", addr, ports, config.SendSockets, from.Local())
		}
	}
}

// TestRuns: what Offloads promises is kept, and what it does not is refused.
func TestRuns(t *testing.T) {
	for _, addr := range loopbacks {
		from, to := listen(t, on(addr)), listen(t, on(addr))
		run := tunnel.Datagrams{Addr: to.Local(), Parts: parts(pattern(5000)), SegmentSize: 1200}
		if !from.Offloads().UDP {
			if n, err := from.Send([]tunnel.Datagrams{run}); n != 0 || !errors.Is(err, tunnel.ErrOffload) {
				t.Errorf("%v: a run is sent although that is off: %d, %v", addr, n, err)
			}
			continue
		}
		mustSend(t, from, run)
		want := cut(pattern(5000), 1200)
		got, _ := receive(t, to, len(want))
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%v: datagram %d of %d bytes, want %d", addr, i, len(got[i]), len(want[i]))
			}
		}
	}
}

// TestNobodyThere: an answer that a port is closed ends no receive.
func TestNobodyThere(t *testing.T) {
	for _, addr := range loopbacks {
		gone, s, other := listen(t, on(addr)), listen(t, on(addr)), listen(t, on(addr))
		to := gone.Local()
		if err := gone.Close(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_, _ = s.Send([]tunnel.Datagrams{{Addr: to, Parts: [][]byte{{1}}}})
		}
		mustSend(t, other, tunnel.Datagrams{Addr: s.Local(), Parts: [][]byte{{2}}})
		if got, _ := receive(t, s, 1); got[0][0] != 2 {
			t.Errorf("%v: got %v", addr, got)
		}
	}
}

// TestSamePort: both families on one port, and no second socket on either.
func TestSamePort(t *testing.T) {
	first := listen(t, on(netip.IPv4Unspecified()))
	port := first.Local().Port()
	second := Config{Addr: netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
	listen(t, second)
	for _, config := range []Config{{Addr: first.Local()}, second} {
		s, err := Listen(config)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "taken by another program") {
			t.Errorf("Listen(%v) a second time: %v", config.Addr, err)
		}
	}
}

func TestProbe(t *testing.T) {
	works := func(bool) error { return nil }
	refused := func(bool) error { return windows.WSAEINVAL }
	all := Buffers{Receive: DefaultBuffer, Send: DefaultBuffer}
	for _, tt := range []struct {
		name    string
		gso     tunnel.Switch
		cuts    func(bool) error
		granted Buffers
		runs    bool
		want    []string
	}{
		{"all there", tunnel.Auto, works, all, true, nil},
		{"switched off", tunnel.Off, works, all, false, []string{"single datagrams: switched off"}},
		{"refused", tunnel.On, refused, all, false, []string{"single datagrams: " + windows.WSAEINVAL.Error()}},
		{"small buffers", tunnel.Auto, works, Buffers{Receive: 1, Send: 2}, true, []string{"receive buffer is 1 of", "send buffer is 2 of"}},
	} {
		config, err := Config{Addr: netip.MustParseAddrPort("127.0.0.1:0"), GSO: tt.gso}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		got := probe(config, tt.granted, tt.cuts)
		if why := strings.Join(got.Why, "\n"); got.UDP != tt.runs || len(got.Why) != len(tt.want)+1 || !containsAll(why, tt.want) {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

func TestAncillary(t *testing.T) {
	var a ancillary
	used := a.add(0, windows.IPPROTO_UDP, windows.UDP_SEND_MSG_SIZE, 1400)
	used = a.add(used, windows.IPPROTO_IP, ipRecvECN, 3)
	for kind, want := range map[int32]uint32{windows.UDP_SEND_MSG_SIZE: 1400, ipRecvECN: 3, 77: 0} {
		if got := a.number(used, kind); got != want {
			t.Errorf("number of kind %d is %d, want %d", kind, got, want)
		}
	}
	// What is cut off or says a wrong length ends the search.
	for cut := range used {
		a.number(cut, ipRecvECN)
	}
	a.words[0] = 1 << 40
	if got := a.number(used, ipRecvECN); got != 0 {
		t.Errorf("behind a wrong length: %d", got)
	}
}
