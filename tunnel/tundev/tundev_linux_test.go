package tundev

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

var _ tunnel.Device = (*Device)(nil)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// hosts makes hosts that last as long as the test.
func hosts(t testing.TB, names ...string) (out []*lab.Host) {
	t.Helper()
	world := labtest.New(t)
	for _, name := range names {
		out = append(out, labtest.Host(t, world, lab.HostConfig{Name: name}))
	}
	return out
}

// open opens a device on a host, for as long as the test, with the addresses.
func open(t testing.TB, host *lab.Host, config Config, addresses ...string) *Device {
	t.Helper()
	if config.MTU == 0 {
		config.MTU = 1450
	}
	var d *Device
	err := host.Do(func() (err error) {
		d, err = Open(config)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, address := range addresses {
		ip(t, host, "addr", "add", address, "dev", d.Name(), "nodad")
		// The kernel makes an IPv6 address local some time after it has it.
		local := "local " + netip.MustParsePrefix(address).Addr().String() + " "
		for !contains(ip(t, host, "route", "show", "table", "local")+ip(t, host, "-6", "route", "show", "table", "local"), local) {
			runtime.Gosched()
		}
	}
	return d
}

func ip(t testing.TB, host *lab.Host, args ...string) string {
	t.Helper()
	out, err := host.Command(context.Background(), "ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	return string(out)
}

// TestPing answers the kernel's echo requests in the test, one packet at a time.
func TestPing(t *testing.T) {
	host := hosts(t, "a")[0]
	d := open(t, host, Config{}, "10.77.0.1/24", "fd77::1/64")
	var wait sync.WaitGroup
	wait.Go(func() {
		packets, arena := make([]tunnel.Incoming, 8), make([]byte, 2*tunnel.MinArena)
		for {
			n, err := d.Read(packets, arena)
			if err != nil {
				if !errors.Is(err, tunnel.ErrClosed) {
					t.Error(err)
				}
				return
			}
			for _, in := range packets[:n] {
				if !turnEcho(t, in) {
					continue
				}
				if _, err := d.Write([]tunnel.Outgoing{{Parts: [][]byte{in.Data[:20], in.Data[20:]}}}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for _, to := range []string{"10.77.0.2", "fd77::2"} {
		for _, size := range []int{0, 56, 1450 - 40 - 8, 4000} {
			if _, err := host.Ping(t.Context(), lab.Probe{To: netip.MustParseAddr(to), PayloadBytes: size, Timeout: time.Minute}); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wait.Wait()
}

// turnEcho makes of an echo request its reply. Fragments are turned as they
// are: the type is in the first.
func turnEcho(t *testing.T, in tunnel.Incoming) bool {
	v, err := packet.Parse(in.Data)
	if err != nil {
		t.Errorf("read what is no packet: %v", err)
		return false
	}
	if in.Offload != (tunnel.Offload{}) {
		t.Errorf("an ICMP packet has the offload %+v", in.Offload)
	}
	address, length := 12, 4
	if !v.Is4() {
		address, length = 8, 16
	}
	source, destination := in.Data[address:address+length], in.Data[address+length:address+2*length]
	for i := range source {
		source[i], destination[i] = destination[i], source[i]
	}
	icmp := v.Transport
	if v.Place == packet.Later {
		return true
	}
	kinds := map[byte]byte{8: 0, 128: 129}
	reply, ok := kinds[in.Data[icmp]]
	if !ok {
		return false
	}
	before := binary.BigEndian.Uint16(in.Data[icmp:])
	in.Data[icmp] = reply
	check := packet.Update(binary.BigEndian.Uint16(in.Data[icmp+2:]), before, binary.BigEndian.Uint16(in.Data[icmp:]))
	binary.BigEndian.PutUint16(in.Data[icmp+2:], check)
	return true
}

func TestArenaOfRead(t *testing.T) {
	host := hosts(t, "a")[0]
	from, to := open(t, host, Config{}, "10.77.0.1/24"), open(t, host, Config{Name: "weft1"}, "10.78.0.1/24")
	super := superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.UDP, payload: 100}
	if _, err := to.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena-1)); err == nil {
		t.Error("an arena below MinArena was accepted")
	}
	const sent = 10
	for range sent {
		if _, err := from.Write([]tunnel.Outgoing{super.build()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{tunnel.MinArena, tunnel.MinArena + 500, 3 * tunnel.MinArena} {
		arena, packets := make([]byte, size), make([]tunnel.Incoming, 3)
		n, err := to.Read(packets, arena)
		if err != nil || n == 0 || n > 1 && size == tunnel.MinArena {
			t.Fatalf("Read with %d bytes = %d, %v", size, n, err)
		}
		free := 0
		for i, in := range packets[:n] {
			if in.Offset-free < tunnel.Headroom || &arena[in.Offset] != &in.Data[0] || cap(in.Data) != len(in.Data) {
				t.Errorf("packet %d is at %d with %d bytes in front of it free", i, in.Offset, in.Offset-free)
			}
			free = in.Offset + len(in.Data)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	host := hosts(t, "a")[0]
	from, to := open(t, host, Config{}, "10.77.0.1/24"), open(t, host, Config{Name: "weft1"}, "10.78.0.1/24")
	single := superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.UDP, payload: 100}.build()
	super := superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.TCP, payload: 50000, segment: 1398}.build()
	write, read, arena := []tunnel.Outgoing{single, super}, make([]tunnel.Incoming, 8), make([]byte, 4*tunnel.MinArena)
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := from.Write(write); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(write); {
			n, err := to.Read(read, arena)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a Write and a Read, want none", allocs)
	}
	if from.writer.vectors[1].Base != nil {
		t.Error("the parts are kept after Write")
	}
}

func TestWriteErrors(t *testing.T) {
	host := hosts(t, "a")[0]
	d := open(t, host, Config{TSO: tunnel.Off}, "10.77.0.1/24")
	good := superPacket{network: "10.77.0.2 10.77.0.1", protocol: packet.UDP, payload: 100}.build()
	bad := func(change func(p *tunnel.Outgoing)) tunnel.Outgoing {
		p := superPacket{network: "10.77.0.2 10.77.0.1", protocol: packet.TCP, payload: 5000, segment: 1398}.build()
		change(&p)
		return p
	}
	for _, tt := range []struct {
		name string
		bad  tunnel.Outgoing
		want error
	}{
		{"no parts", tunnel.Outgoing{}, errEmpty},
		{"empty first part", tunnel.Outgoing{Parts: [][]byte{{}, {1}}}, errEmpty},
		{"too many parts", tunnel.Outgoing{Parts: tiny(maxVectors)}, d.errParts},
		{"not IP", tunnel.Outgoing{Parts: [][]byte{{0x70, 1, 2}}}, unix.EINVAL},
		{"switched off", bad(func(*tunnel.Outgoing) {}), tunnel.ErrOffload},
		{"checksum outside", tunnel.Outgoing{Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 60000}, Parts: good.Parts}, tunnel.ErrOffload},
	} {
		packets := []tunnel.Outgoing{good, tt.bad, good}
		n, err := d.Write(packets)
		if n != 2 || !errors.Is(err, tt.want) || packets[1].Err != err || packets[2].Err != nil {
			t.Errorf("%s: Write = %d, %v, want 2, %v", tt.name, n, err, tt.want)
		}
		if errors.Is(err, unix.EINVAL) && errors.Is(err, tunnel.ErrOffload) != tt.bad.NeedsChecksum {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	tso := open(t, host, Config{Name: "weft1"})
	refused := bad(func(p *tunnel.Outgoing) { p.GSO = tunnel.GSOTCP4; p.SegmentSize = 0 })
	if _, err := tso.Write([]tunnel.Outgoing{refused}); !errors.Is(err, tunnel.ErrOffload) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("super-packet with segments of no bytes: %v, want %v", err, tunnel.ErrOffload)
	}

	ip(t, host, "link", "set", d.Name(), "down")
	if n, err := d.Write([]tunnel.Outgoing{good}); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("link down: Write = %d, %v, want 0, %v", n, err, unix.EIO)
	}
	ip(t, host, "link", "set", d.Name(), "up")
	if n, err := d.Write([]tunnel.Outgoing{good}); n != 1 || err != nil {
		t.Errorf("link up again: Write = %d, %v", n, err)
	}
}

// tiny is n parts of one byte.
func tiny(n int) [][]byte {
	parts := make([][]byte, n)
	for i := range parts {
		parts[i] = []byte{0x45}
	}
	return parts
}

func TestClose(t *testing.T) {
	host := hosts(t, "a")[0]
	d := open(t, host, Config{})
	read := func() error {
		_, err := d.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena))
		return err
	}
	done := make(chan error)
	go func() { done <- read() }()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Read during Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if err := read(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Read after Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if _, err := d.Write(make([]tunnel.Outgoing, 1)); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Write after Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if _, err := d.MTU(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("MTU after Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if out := ip(t, host, "-o", "link"); contains(out, d.Name()) {
		t.Errorf("the link is still there: %s", out)
	}
}

// TestDeleted deletes the link under a Read that waits.
func TestDeleted(t *testing.T) {
	host := hosts(t, "a")[0]
	d := open(t, host, Config{})
	done := make(chan error)
	go func() {
		var err error
		for err == nil { // the kernel's multicast reports come first
			_, err = d.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena))
		}
		done <- err
	}()
	ip(t, host, "link", "del", d.Name())
	if err := <-done; !errors.Is(err, unix.EBADFD) || !contains(err.Error(), "weft0: the link was deleted") {
		t.Errorf("Read: %v", err)
	}
	good := superPacket{network: "10.77.0.2 10.77.0.1", protocol: packet.UDP, payload: 100}.build()
	if _, err := d.Write([]tunnel.Outgoing{good}); !errors.Is(err, unix.EBADFD) {
		t.Errorf("Write: %v, want %v", err, unix.EBADFD)
	}
}
