package netstack

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

var (
	near4, far4 = netip.MustParseAddr("10.244.1.0"), netip.MustParseAddr("10.244.2.0")
	near6, far6 = netip.MustParseAddr("fd00:10:244:1::"), netip.MustParseAddr("fd00:10:244:2::")
)

// alone makes a Stack that nobody reads.
func alone(t testing.TB) *Stack {
	t.Helper()
	s, err := New(Config{Name: "weft0", MTU: testMTU, Addresses: []netip.Addr{near4, near6}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// readAll reads from s until it is closed, and tells what comes to f.
func readAll(t testing.TB, s *Stack, f func(tunnel.Incoming)) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		packets, arena := make([]tunnel.Incoming, 64), make([]byte, 4*tunnel.MinArena)
		for {
			n, err := s.Read(packets, arena)
			if err != nil {
				if !errors.Is(err, tunnel.ErrClosed) {
					t.Error(err)
				}
				return
			}
			for _, in := range packets[:n] {
				if in.Offset < tunnel.Headroom || &arena[in.Offset] != &in.Data[0] {
					t.Errorf("packet at %d is not where it says", in.Offset)
				}
				f(in)
			}
		}
	}()
	return func() { <-done }
}

// TestReadForms: what is put off of a packet is put off as the engine expects
// it, and is otherwise finished; super-packets fit one run of datagrams.
func TestReadForms(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		s, seen := alone(t), map[tunnel.GSOType]int{}
		var peer *Stack
		check := func(in tunnel.Incoming) {
			v, err := packet.Parse(in.Data)
			if err != nil {
				t.Errorf("parse: %v", err)
				return
			}
			seen[in.GSO]++
			if in.NeedsChecksum && !v.Partial() {
				t.Error("the checksum is not the pseudo-header's sum")
			}
			if !in.NeedsChecksum {
				if err := tunneltest.Check(in.Data); err != nil {
					t.Errorf("finished packet: %v", err)
				}
			}
			if in.GSO != tunnel.GSONone {
				headers, _ := v.PayloadOffset()
				size := int(in.SegmentSize)
				segments := (len(v.Data) - headers + size - 1) / size
				if headers+size > testMTU || len(v.Data)+segments*(headers+22) > runBytes+headers {
					t.Errorf("%d segments of %d bytes, with headers of %d", segments, size, headers)
				}
			}
			// A wire of its own: the far end gets super-packets whole.
			if _, err := peer.Write([]tunnel.Outgoing{{Offload: in.Offload, Parts: [][]byte{in.Data}}}); err != nil {
				t.Errorf("write: %v", err)
			}
		}
		var err error
		peer, err = New(Config{Name: "weft1", MTU: testMTU, Addresses: []netip.Addr{far4, far6}})
		if err != nil {
			t.Fatal(err)
		}
		endPeer := readAll(t, peer, func(in tunnel.Incoming) {
			_, err := s.Write([]tunnel.Outgoing{{Offload: in.Offload, Parts: [][]byte{in.Data}}})
			if err != nil && !errors.Is(err, tunnel.ErrClosed) {
				t.Errorf("write back: %v", err)
			}
		})
		endStack := readAll(t, s, check)
		to := far6
		if is4 {
			to = far4
		}
		listener, err := peer.ListenTCP(netip.AddrPortFrom(to, 80))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := s.DialContext(t.Context(), "tcp", netip.AddrPortFrom(to, 80))
			if err != nil {
				t.Error(err)
				return
			}
			conn.Write(make([]byte, 4<<20))
			conn.Close()
		}()
		conn, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); n != 4<<20 || err != nil {
			t.Errorf("%d bytes arrived: %v", n, err)
		}
		conn.Close()
		s.Close()
		endStack()
		peer.Close()
		endPeer()
		kind := tunnel.GSOTCP6
		if is4 {
			kind = tunnel.GSOTCP4
		}
		if seen[kind] == 0 || seen[tunnel.GSONone] == 0 || len(seen) != 2 {
			t.Errorf("v4=%v: read %v", is4, seen)
		}
	}
}

// udpPacket is a finished UDP packet to port 53 of the Stack.
func udpPacket(t testing.TB, is4 bool, payload string) []byte {
	t.Helper()
	from, to := netip.AddrPortFrom(far6, 1000), netip.AddrPortFrom(near6, 53)
	if is4 {
		from, to = netip.AddrPortFrom(far4, 1000), netip.AddrPortFrom(near4, 53)
	}
	return tunneltest.Packet{Source: from, Destination: to, Protocol: tunneltest.UDP, Payload: []byte(payload)}.Bytes()
}

// TestIntegrity: what nobody has vouched for is summed here, and what somebody
// has is not; a wrong IPv4 header is never let in.
func TestIntegrity(t *testing.T) {
	s := alone(t)
	socket, err := s.ListenUDP(netip.AddrPortFrom(netip.Addr{}, 53))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	received := func() string {
		socket.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		buffer := make([]byte, 100)
		n, _, err := socket.ReadFrom(buffer)
		if err != nil {
			return ""
		}
		return string(buffer[:n])
	}
	for _, is4 := range []bool{true, false} {
		good := udpPacket(t, is4, "hello")
		v, _ := packet.Parse(good)
		corrupt := slices.Clone(good)
		corrupt[len(corrupt)-1] ^= 1
		partial := slices.Clone(good)
		binary.BigEndian.PutUint16(partial[v.Transport+6:], packet.Fold(v.PseudoSum(len(good)-v.Transport)))
		put := tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(v.Transport), ChecksumOffset: 6}
		elsewhere := put
		elsewhere.ChecksumOffset = 4 // spoils the length
		header := slices.Clone(partial)
		header[8] ^= 0x10 // the TTL
		if !is4 {
			header = partial
		}
		for _, test := range []struct {
			name    string
			data    []byte
			offload tunnel.Offload
			arrives bool
		}{
			{"good", good, tunnel.Offload{}, true},
			{"corrupt", corrupt, tunnel.Offload{}, false},
			{"partial", partial, put, true},
			{"partial taken for finished", partial, tunnel.Offload{}, false},
			{"partial elsewhere", partial, elsewhere, false},
			{"spoilt header", header, put, !is4}, // which IPv6 has none of
		} {
			s.Write([]tunnel.Outgoing{{Offload: test.offload, Parts: [][]byte{test.data[:v.Transport+8], test.data[v.Transport+8:]}}})
			if got := received(); (got == "hello") != test.arrives || got != "" && got != "hello" {
				t.Errorf("v4=%v, %s: got %q", is4, test.name, got)
			}
		}
	}
}

// TestWriteErrors: what cannot be taken says so, as an engine expects it.
func TestWriteErrors(t *testing.T) {
	s := alone(t)
	udp := udpPacket(t, true, "hello")
	for _, test := range []struct {
		name string
		out  tunnel.Outgoing
		is   error
	}{
		{"nothing", tunnel.Outgoing{}, errSize},
		{"too long", tunnel.Outgoing{Parts: [][]byte{make([]byte, 1<<16)}}, errSize},
		{"not IP", tunnel.Outgoing{Parts: [][]byte{{1, 2, 3}}}, packet.ErrVersion},
		{"UDP super-packet", tunnel.Outgoing{Parts: [][]byte{udp}, Offload: tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 1}}, tunnel.ErrOffload},
		{"UDP as TCP", tunnel.Outgoing{Parts: [][]byte{udp}, Offload: tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1, NeedsChecksum: true}}, errSegments},
		{"checksum outside", tunnel.Outgoing{Parts: [][]byte{udp}, Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 1000}}, packet.ErrChecksumPlace},
	} {
		good := tunnel.Outgoing{Parts: [][]byte{udp}}
		if n, err := s.Write([]tunnel.Outgoing{good, test.out, good}); n != 2 || !errors.Is(err, test.is) {
			t.Errorf("%s: %d, %v", test.name, n, err)
		}
	}
	if _, err := s.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena-1)); !errors.Is(err, errArena) {
		t.Errorf("small arena: %v", err)
	}
}

// TestNobodyReads: Write returns when what it brings about finds no room, and
// a sender that waits for room ends with Close.
func TestNobodyReads(t *testing.T) {
	s := alone(t)
	sender, err := s.DialContext(t.Context(), "udp", netip.AddrPortFrom(far4, 9))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		for {
			if _, err := sender.Write([]byte("waits")); err != nil {
				ended <- err
				return
			}
		}
	}()
	unread := udpPacket(t, true, "no such port")
	for range 10 * linkReserve {
		if _, err := s.Write([]tunnel.Outgoing{{Parts: [][]byte{unread}}}); err != nil {
			t.Fatal(err)
		}
	}
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		s.link.mu.Lock()
		waits = s.link.waiting == 1
		s.link.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the sender did not notice")
	}
}

// FuzzWrite: no bytes and no offload make Write panic or wait.
func FuzzWrite(f *testing.F) {
	for _, is4 := range []bool{true, false} {
		data := udpPacket(f, is4, "hello")
		f.Add(data, 28, uint8(0), uint16(0), false, uint16(0), uint16(0))
		f.Add(data, 28, uint8(0), uint16(0), true, uint16(20), uint16(6))
		data[9] = packet.TCP
		f.Add(data, 20, uint8(tunnel.GSOTCP4), uint16(1), true, uint16(20), uint16(16))
		data[9] = packet.ICMPv4
		f.Add(data, 20, uint8(0), uint16(1), false, uint16(20), uint16(16))
	}
	s := alone(f)
	readAll(f, s, func(tunnel.Incoming) {})
	if _, err := s.ListenTCP(netip.AddrPortFrom(netip.Addr{}, 80)); err != nil {
		f.Fatal(err)
	}
	if _, err := s.ListenUDP(netip.AddrPortFrom(netip.Addr{}, 53)); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int, gso uint8, segment uint16, partial bool, start, offset uint16) {
		cut = max(0, min(cut, len(data)))
		s.Write([]tunnel.Outgoing{{
			Offload: tunnel.Offload{
				GSO: tunnel.GSOType(gso), SegmentSize: segment,
				NeedsChecksum: partial, ChecksumStart: start, ChecksumOffset: offset,
			},
			Parts: [][]byte{data[:cut], data[cut:]},
		}})
	})
}
