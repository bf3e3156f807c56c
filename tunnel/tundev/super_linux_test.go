package tundev

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/udp"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// pattern is n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// superPacket describes a TCP or UDP packet to build.
type superPacket struct {
	network  string // inner source and destination address
	protocol uint8
	payload  int // bytes
	segment  int // payload bytes per segment; 0: a single packet
}

// build returns the packet with its checksum left to be finished, in parts.
func (s superPacket) build() tunnel.Outgoing {
	source, destination, _ := strings.Cut(s.network, " ")
	from, to := netip.MustParseAddr(source), netip.MustParseAddr(destination)
	transport := make([]byte, 8)
	offset, gso := 6, tunnel.GSOUDP
	if s.protocol == packet.TCP {
		transport = make([]byte, 20)
		binary.BigEndian.PutUint32(transport[4:], 1000) // sequence number
		transport[12], transport[13] = 5<<4, 0x10       // header of five words, ACK
		offset, gso = 16, tunnel.GSOTCP4
		if from.Is6() {
			gso = tunnel.GSOTCP6
		}
	}
	binary.BigEndian.PutUint16(transport, 4000)
	binary.BigEndian.PutUint16(transport[2:], 5000)
	length := len(transport) + s.payload
	if s.protocol == packet.UDP {
		binary.BigEndian.PutUint16(transport[4:], uint16(length))
	}
	header := append(ipHeader(from, to, s.protocol, length), transport...)
	v, err := packet.Parse(append(bytes.Clone(header), make([]byte, s.payload)...))
	if err != nil {
		panic(err)
	}
	binary.BigEndian.PutUint16(header[v.Transport+offset:], packet.Fold(v.PseudoSum(length)))
	body := pattern(s.payload)
	out := tunnel.Outgoing{
		Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(v.Transport), ChecksumOffset: uint16(offset)},
		Parts:   [][]byte{header, body[:s.payload/3], body[s.payload/3:]},
	}
	if s.segment > 0 {
		out.GSO, out.SegmentSize = gso, uint16(s.segment)
	}
	return out
}

func ipHeader(from, to netip.Addr, protocol uint8, length int) []byte {
	if from.Is6() {
		h := make([]byte, 8, 40)
		h[0], h[6], h[7] = 0x60, protocol, 64
		binary.BigEndian.PutUint16(h[4:], uint16(length))
		return append(append(h, from.AsSlice()...), to.AsSlice()...)
	}
	h := make([]byte, 12, 20)
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+length))
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], ^packet.Fold(packet.Sum(h, 0)))
	return h
}

// TestSuperPacketsThroughKernel writes super-packets to one TUN and has the
// kernel forward them to another, whole or cut to what that one takes.
func TestSuperPacketsThroughKernel(t *testing.T) {
	networks := map[string]string{"4": "10.77.0.2 10.78.0.2", "6": "fd77::2 fd78::2"}
	protocols := map[string]uint8{"tcp": packet.TCP, "udp": packet.UDP}
	for _, whole := range []bool{true, false} {
		host := hosts(t, "a")[0]
		from := open(t, host, Config{}, "10.77.0.1/24", "fd77::1/64")
		to := open(t, host, Config{Name: "weft1", TSO: map[bool]tunnel.Switch{false: tunnel.Off}[whole]}, "10.78.0.1/24", "fd78::1/64")
		for family, network := range networks {
			for name, protocol := range protocols {
				for _, payload := range []int{1, 1000, 1398, 1399, 5000, 43 * 1300, 44*1300 - 7} {
					t.Run(fmt.Sprintf("%s%s/%d bytes/whole %t", name, family, payload, whole), func(t *testing.T) {
						super := superPacket{network: network, protocol: protocol, payload: payload}
						if payload > 1300 {
							super.segment = 1300
						}
						out := super.build()
						if out.GSO == tunnel.GSOUDP && !from.Offloads().UDP {
							return // this kernel does it badly
						}
						if n, err := from.Write([]tunnel.Outgoing{out}); n != 1 || err != nil {
							t.Fatalf("Write = %d, %v", n, err)
						}
						checkForwarded(t, to, super, out, whole)
					})
				}
			}
		}
	}
}

// checkForwarded reads from to what the kernel made of out.
func checkForwarded(t *testing.T, to *Device, super superPacket, out tunnel.Outgoing, whole bool) {
	t.Helper()
	packets, arena := make([]tunnel.Incoming, 64), make([]byte, 8*tunnel.MinArena)
	var got []byte
	count := 0
	for len(got) < super.payload {
		n, err := to.Read(packets, arena)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range packets[:n] {
			v, err := packet.Parse(in.Data)
			if err != nil {
				t.Fatal(err)
			}
			headers, ok := v.PayloadOffset()
			if !ok {
				continue // the kernel's multicast reports
			}
			count++
			got = append(got, in.Data[headers:]...)
			if in.NeedsChecksum && in.GSO == tunnel.GSONone {
				if err := packet.Finish(in.Data, int(in.ChecksumStart), int(in.ChecksumOffset)); err != nil {
					t.Fatal(err)
				}
			}
			if in.GSO == tunnel.GSONone && (!v.Valid() || v.Is4() && !v.HeaderValid()) {
				t.Errorf("a packet of %d bytes has a wrong checksum", len(in.Data))
			}
			if whole && in.Offload != out.Offload {
				t.Errorf("read %+v, want what was written: %+v", in.Offload, out.Offload)
			}
		}
	}
	if !bytes.Equal(got, pattern(super.payload)) {
		t.Errorf("received %d bytes that differ from the %d sent", len(got), super.payload)
	}
	want := 1
	if !whole && super.segment > 0 {
		want = (super.payload + super.segment - 1) / super.segment
	}
	if count != want {
		t.Errorf("received %d packets, want %d", count, want)
	}
}

// pump carries packets from one device to another, as the engine does between
// hosts, and counts those of each GSO type.
type pump struct {
	from, to *Device
	types    [tunnel.GSOUDP + 1]atomic.Int64
}

func (p *pump) run() error {
	packets, arena := make([]tunnel.Incoming, 64), make([]byte, 8*tunnel.MinArena)
	out := make([]tunnel.Outgoing, 64)
	for {
		n, err := p.from.Read(packets, arena)
		if errors.Is(err, tunnel.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for i, in := range packets[:n] {
			p.types[in.GSO].Add(1)
			half := min(len(in.Data), 200)
			out[i] = tunnel.Outgoing{Offload: in.Offload, Parts: [][]byte{in.Data[:half], in.Data[half:]}}
		}
		if _, err := p.to.Write(out[:n]); err != nil && !errors.Is(err, tunnel.ErrClosed) {
			return err
		}
	}
}

// TestStreamBetweenHosts runs the kernels' own TCP and UDP over two TUNs, so
// that what Read says of a super-packet is what Write has to say.
func TestStreamBetweenHosts(t *testing.T) {
	for _, config := range []Config{{}, {USO: tunnel.Off}, {TSO: tunnel.Off}} {
		pair := hosts(t, "a", "b")
		a := open(t, pair[0], config, "10.77.0.1/24", "fd77::1/64")
		b := open(t, pair[1], Config{}, "10.77.0.2/24", "fd77::2/64")
		there, back := &pump{from: a, to: b}, &pump{from: b, to: a}
		if config.TSO == tunnel.Off || config.USO == tunnel.Off {
			back.to = open(t, pair[0], Config{Name: "weft1"}) // takes whatever b has
		}
		var wait sync.WaitGroup
		for _, p := range []*pump{there, back} {
			wait.Go(func() {
				if err := p.run(); err != nil {
					t.Error(err)
				}
			})
		}
		for _, to := range []string{"10.77.0.2", "fd77::2"} {
			stream(t, pair, to)
			datagrams(t, pair, to)
		}
		for gso, want := range map[tunnel.GSOType]bool{tunnel.GSOTCP4: a.Offloads().TCP, tunnel.GSOTCP6: a.Offloads().TCP, tunnel.GSOUDP: a.Offloads().UDP} {
			if got := there.types[gso].Load(); (got > 0) != want {
				t.Errorf("%+v: %d super-packets of type %d, want any: %t", config, got, gso, want)
			}
		}
		for _, d := range []*Device{a, b} {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		wait.Wait()
	}
}

// stream sends TCP from the first host to the second.
func stream(t *testing.T, pair []*lab.Host, to string) {
	t.Helper()
	ctx := context.Background()
	listener, err := pair[1].Listen(ctx, "tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 5001).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sent := pattern(4 << 20)
	go func() {
		conn, err := pair[0].Dial(ctx, "tcp", listener.Addr().String())
		if err != nil {
			t.Error(err)
			listener.Close()
			return
		}
		defer conn.Close()
		if _, err := conn.Write(sent); err != nil {
			t.Error(err)
		}
	}()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d of %d bytes, %v", len(got), len(sent), err)
	}
}

// datagrams sends runs of UDP datagrams from the first host to the second.
func datagrams(t *testing.T, pair []*lab.Host, to string) {
	t.Helper()
	listen := func(host *lab.Host, addr netip.Addr) (s *udp.Socket) {
		err := host.Do(func() (err error) {
			s, err = udp.Listen(udp.Config{Addr: netip.AddrPortFrom(addr, 0)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	dst := netip.MustParseAddr(to)
	from, receiver := listen(pair[0], dst.Prev()), listen(pair[1], dst)
	defer from.Close()
	defer receiver.Close()
	data := pattern(40*1200 + 100)
	if _, err := from.Send([]tunnel.Datagrams{{Addr: receiver.Local(), Parts: [][]byte{data}, SegmentSize: 1200}}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	batch, arena := make([]tunnel.Datagrams, 64), make([]byte, 8*tunnel.MinArena)
	for len(got) < len(data) {
		n, err := receiver.Receive(batch, arena)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range batch[:n] {
			got = append(got, d.Data...)
		}
	}
	if !bytes.Equal(got, data) {
		t.Errorf("received %d bytes that differ from the %d sent", len(got), len(data))
	}
}
