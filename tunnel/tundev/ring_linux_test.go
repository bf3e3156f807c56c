package tundev

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/ring"
	"github.com/weft-net/weft/tunnel/internal/ring/ringtest"
	"github.com/weft-net/weft/tunnel/packet"
)

// openRinged opens a device that reads and writes by a Ring, in the test's thread.
func openRinged(t *testing.T, host *lab.Host, config Config, address string) (*Device, *ring.Ring, *ring.Stream) {
	t.Helper()
	config.Polled = true
	d := open(t, host, config, address)
	var stream *ring.Stream
	r := ringtest.Start(t, func(r *ring.Ring) (err error) {
		stream, err = d.UseRing(r)
		return err
	})
	return d, r, stream
}

// readRinged reads as an engine does, until there were so many packets.
func readRinged(t *testing.T, d *Device, r *ring.Ring, stream *ring.Stream, count int, each func(tunnel.Incoming)) {
	t.Helper()
	packets := make([]tunnel.Incoming, 64)
	for got := 0; got < count; {
		stream.Renew()
		if !stream.Ready() {
			if err := r.Enter(1); err != nil {
				t.Fatal(err)
			}
		}
		for more := true; more; more = d.More() {
			n, err := d.Read(packets, d.Arena())
			if err != nil {
				t.Fatal(err)
			}
			for _, in := range packets[:n] {
				if ofKernel(in) {
					continue
				}
				each(in)
				got++
			}
		}
	}
}

// ofKernel reports whether in is one of the kernel's multicast reports.
func ofKernel(in tunnel.Incoming) bool {
	const igmp = 2
	return in.Data[0]>>4 == 6 || in.Data[9] == igmp
}

// By a Ring packets are written in order, many at once, small, large and of many parts, and
// read as they were written.
func TestRingCarries(t *testing.T) {
	host := hosts(t, "a")[0]
	from := open(t, host, Config{}, "10.77.0.1/24")
	to, r, stream := openRinged(t, host, Config{Name: "weft1"}, "10.78.0.1/24")
	var out []tunnel.Outgoing
	for i := range 150 { // more than one call takes
		super := superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.UDP, payload: 100 + i}
		switch i % 10 {
		case 3:
			super = superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.TCP, payload: 50000 + i, segment: 1398}
		case 7:
			super.payload = 1300
		}
		p := super.build()
		if i%10 == 7 {
			whole := slices.Concat(p.Parts...)
			p.Parts = [][]byte{whole[:28]}
			for b := range slices.Chunk(whole[28:], 3) {
				p.Parts = append(p.Parts, b)
			}
		}
		out = append(out, p)
	}
	if n, err := from.Write(out); n != len(out) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	i := 0
	readRinged(t, to, r, stream, len(out), func(in tunnel.Incoming) {
		want := slices.Concat(out[i].Parts...)
		if len(in.Data) != len(want) || !bytes.Equal(in.Data[28:], want[28:]) && in.GSO == tunnel.GSONone || in.GSO != out[i].GSO {
			t.Errorf("packet %d: %d bytes, %+v, want %d, %+v", i, len(in.Data), in.Offload, len(want), out[i].Offload)
		}
		if in.Offset < tunnel.Headroom || &to.Arena()[in.Offset] != &in.Data[0] || cap(in.Data) != len(in.Data) {
			t.Errorf("packet %d is at %d", i, in.Offset)
		}
		i++
	})
	// The other way, the writer being the one with the Ring.
	for i := range out {
		super := superPacket{network: "10.78.0.2 10.77.0.2", protocol: packet.UDP, payload: 100 + i}
		out[i] = super.build()
	}
	calls := r.Calls()
	if n, err := to.Write(out); n != len(out) || err != nil || r.Calls()-calls != 3 {
		t.Fatalf("Write = %d, %v, with %d calls, want 3", n, err, r.Calls()-calls)
	}
	packets, arena := make([]tunnel.Incoming, 64), make([]byte, 4*tunnel.MinArena)
	for i := 0; i < len(out); {
		n, err := from.Read(packets, arena)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range packets[:n] {
			if ofKernel(in) {
				continue
			}
			if want := slices.Concat(out[i].Parts...); !bytes.Equal(in.Data[28:], want[28:]) {
				t.Errorf("packet %d: %d bytes, want %d", i, len(in.Data), len(want))
			}
			i++
		}
	}
}

// By a Ring errors are those that there are without, each with its packet.
func TestRingErrors(t *testing.T) {
	host := hosts(t, "a")[0]
	d, r, stream := openRinged(t, host, Config{TSO: tunnel.Off}, "10.77.0.1/24")
	good := superPacket{network: "10.77.0.2 10.77.0.1", protocol: packet.UDP, payload: 100}.build()
	super := superPacket{network: "10.77.0.2 10.77.0.1", protocol: packet.TCP, payload: 5000, segment: 1398}.build()
	outside := tunnel.Outgoing{Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 60000}, Parts: good.Parts}
	for want, bad := range map[error]tunnel.Outgoing{
		errEmpty: {}, d.errParts: {Parts: tiny(maxVectors)}, unix.EINVAL: {Parts: [][]byte{{0x70, 1, 2}}}, tunnel.ErrOffload: super, d.errRefused: outside,
	} {
		packets := []tunnel.Outgoing{good, bad, good, bad}
		n, err := d.Write(packets)
		if n != 2 || !errors.Is(err, want) || packets[0].Err != nil || packets[2].Err != nil || !errors.Is(packets[3].Err, want) {
			t.Errorf("Write = %d, %v, want 2, %v", n, err, want)
		}
	}
	ip(t, host, "link", "set", d.Name(), "down")
	if n, err := d.Write([]tunnel.Outgoing{good}); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("link down: Write = %d, %v, want 0, %v", n, err, unix.EIO)
	}
	ip(t, host, "link", "del", d.Name())
	packets := make([]tunnel.Incoming, 64)
	for {
		stream.Renew()
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(packets, d.Arena()); err != nil { // the kernel's multicast reports come first
			if !errors.Is(err, unix.EBADFD) || !contains(err.Error(), "weft0: the link was deleted") {
				t.Errorf("link deleted: Read: %v", err)
			}
			break
		}
	}
	if _, err := d.Write([]tunnel.Outgoing{good}); !errors.Is(err, unix.EBADFD) {
		t.Errorf("link deleted: Write: %v, want %v", err, unix.EBADFD)
	}
}

func TestRingNoAllocations(t *testing.T) {
	host := hosts(t, "a")[0]
	from := open(t, host, Config{}, "10.77.0.1/24")
	to, r, stream := openRinged(t, host, Config{Name: "weft1"}, "10.78.0.1/24")
	there := superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.UDP, payload: 100}.build()
	back := superPacket{network: "10.78.0.2 10.77.0.2", protocol: packet.TCP, payload: 50000, segment: 1398}.build()
	write, read := []tunnel.Outgoing{there, there}, make([]tunnel.Incoming, 64)
	answer := []tunnel.Outgoing{back, back, back}
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := from.Write(write); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(write); {
			stream.Renew()
			if err := r.Enter(1); err != nil {
				t.Fatal(err)
			}
			n, err := to.Read(read, to.Arena())
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
		if _, err := to.Write(answer); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a Read and a Write, want none", allocs)
	}
}
