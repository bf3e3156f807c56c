package udp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// drainGroup receives what there is on every socket of a group.
func drainGroup(t *testing.T, group []*Socket) (perSocket [][]tunnel.Datagrams) {
	t.Helper()
	for _, s := range group {
		var all []tunnel.Datagrams
		for {
			batch, arena := make([]tunnel.Datagrams, 8), make([]byte, 8*slotSize)
			n, err := s.Receive(batch, arena)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			all = append(all, batch[:n]...)
		}
		perSocket = append(perSocket, all)
	}
	return perSocket
}

func group(t *testing.T, config Config, count int) []*Socket {
	t.Helper()
	config.Polled = true
	sockets, err := ListenGroup(config, count)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range sockets {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return sockets
}

// Datagrams of one source port stay on one socket, those of many ports spread,
// and none is lost.
func TestGroupSpreadsByPort(t *testing.T) {
	for _, addr := range loopbacks {
		sockets := group(t, on(addr), 3)
		const senders, each = 60, 5
		for range senders {
			from := listen(t, on(addr))
			for range each {
				mustSend(t, from, tunnel.Datagrams{Addr: sockets[0].Local(), Parts: parts(pattern(100))})
			}
		}
		seen, total := map[netip.AddrPort]int{}, 0
		for i, runs := range drainGroup(t, sockets) {
			for _, d := range runs {
				if other, ok := seen[d.Addr]; ok && other != i {
					t.Errorf("%v came on sockets %d and %d", d.Addr, other, i)
				}
				if d.Unsummed {
					t.Errorf("%v: taken for one without checksum", d.Addr)
				}
				seen[d.Addr] = i
				total += len(cut(d.Data, d.SegmentSize))
			}
			if len(runs) == 0 {
				t.Errorf("socket %d got nothing", i)
			}
		}
		if total != senders*each {
			t.Errorf("%d datagrams arrived, want %d", total, senders*each)
		}
	}
}

// What bears no checksum arrives on the first socket and says so.
func TestGroupUnsummed(t *testing.T) {
	for _, addr := range loopbacks {
		for _, count := range []int{1, 3} {
			sockets := group(t, on(addr), count)
			for i := range 40 {
				from := listen(t, on(addr))
				level, option := unix.SOL_SOCKET, unix.SO_NO_CHECK
				if !addr.Is4() {
					level, option = unix.SOL_UDP, unix.UDP_NO_CHECK6_TX
				}
				if err := unix.SetsockoptInt(from.fd, level, option, i%2); err != nil {
					t.Fatal(err)
				}
				mustSend(t, from, tunnel.Datagrams{Addr: sockets[0].Local(), Parts: [][]byte{{byte(i % 2)}}})
			}
			total := 0
			for i, runs := range drainGroup(t, sockets) {
				for _, d := range runs {
					if total++; d.Unsummed != (d.Data[0] == 1) || d.Unsummed && i != 0 {
						t.Errorf("%v, %d sockets: socket %d: unsummed is %t for kind %d", addr, count, i, d.Unsummed, d.Data[0])
					}
				}
			}
			if total != 40 {
				t.Errorf("%d datagrams arrived, want 40", total)
			}
		}
	}
}

// Under a load of summed datagrams others are still looked for.
func TestGroupUnsummedIsNotStarved(t *testing.T) {
	sockets := group(t, on(loopbacks[0]), 1)
	from := listen(t, on(loopbacks[0]))
	bare := listen(t, on(loopbacks[0]))
	if err := unix.SetsockoptInt(bare.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	to := sockets[0].Local()
	mustSend(t, bare, tunnel.Datagrams{Addr: to, Parts: [][]byte{{1}}})
	batch, arena := make([]tunnel.Datagrams, 1), make([]byte, 8*slotSize)
	for range unsummedEvery {
		mustSend(t, from, tunnel.Datagrams{Addr: to, Parts: [][]byte{{0}}})
		if n, err := sockets[0].Receive(batch, arena); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if batch[0].Unsummed {
			return
		}
	}
	t.Error("never received")
}

// Neither a second group nor a lone socket may take part of the port.
func TestGroupKeepsPort(t *testing.T) {
	sockets := group(t, on(loopbacks[0]), 2)
	config := Config{Addr: sockets[0].Local()}
	if _, err := ListenGroup(config, 2); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("second group: %v", err)
	}
	if _, err := Listen(config); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("lone socket: %v", err)
	}
	if _, err := ListenGroup(on(loopbacks[0]), MaxGroup+1); err == nil || !strings.Contains(err.Error(), "want 1 to 64") {
		t.Errorf("large group: %v", err)
	}
}
