package udp

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

func TestRunsAndSingles(t *testing.T) {
	tests := []struct{ segment, total int }{
		{0, 0}, {0, 1}, {0, 1472}, {0, 9000}, {0, 65507},
		{1, 2}, {1, 127}, {7, 50}, {100, 6300}, {1472, 1473}, {1472, 44 * 1472}, {1472, 43*1472 + 5},
		{32000, 64001}, {1472, 100}, {1472, 1472},
	}
	for _, addr := range loopbacks {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%v/%d of %d", addr, tt.total, tt.segment), func(t *testing.T) {
				from, to := listen(t, on(addr)), listen(t, on(addr))
				data := pattern(tt.total)
				mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), SegmentSize: tt.segment, Parts: parts(data)})

				want := cut(data, tt.segment)
				got, runs := receive(t, to, len(want))
				if len(got) != len(want) {
					t.Fatalf("received %d datagrams, want %d", len(got), len(want))
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Errorf("datagram %d differs: %d bytes, want %d", i, len(got[i]), len(want[i]))
					}
				}
				if len(runs) != 1 {
					t.Errorf("received %d runs, want 1", len(runs))
				}
				if d := runs[0]; d.Addr != from.Local() || d.ECN != 0 || (d.SegmentSize > 0) != (len(want) > 1) {
					t.Errorf("received %v, ECN %d, SegmentSize %d of %d datagrams", d.Addr, d.ECN, d.SegmentSize, len(want))
				}
			})
		}
	}
}

func TestLargestTogether(t *testing.T) {
	from, to := listen(t, on(loopbacks[0])), listen(t, on(loopbacks[0]))
	largest := tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{pattern(maxPayload)}}
	mustSend(t, from, largest, largest, largest)
	got, _ := receive(t, to, 3)
	for i, b := range got {
		if !bytes.Equal(b, largest.Parts[0]) {
			t.Errorf("datagram %d differs", i)
		}
	}
}

func TestECN(t *testing.T) {
	for _, addr := range loopbacks {
		from, to := listen(t, on(addr)), listen(t, on(addr))
		for ecn := range uint8(4) {
			single := tunnel.Datagrams{Addr: to.Local(), ECN: ecn, Parts: [][]byte{{1}}}
			run := tunnel.Datagrams{Addr: to.Local(), ECN: ecn, Parts: [][]byte{pattern(250)}, SegmentSize: 100}
			mustSend(t, from, single, run)
			_, runs := receive(t, to, 4)
			for _, d := range runs {
				if d.ECN != ecn {
					t.Errorf("%v: received ECN %d, want %d", addr, d.ECN, ecn)
				}
			}
		}
		// The six bits beside it are the sender's own business.
		level, name := unix.SOL_IP, unix.IP_TOS
		if addr.Is6() {
			level, name = unix.SOL_IPV6, unix.IPV6_TCLASS
		}
		if err := unix.SetsockoptInt(from.fd, level, name, 0xb8|2); err != nil {
			t.Fatal(err)
		}
		mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{{1}}})
		if _, runs := receive(t, to, 1); runs[0].ECN != 2 {
			t.Errorf("%v: received ECN %d, want 2", addr, runs[0].ECN)
		}
	}
}

func TestPartsBeyondOneCall(t *testing.T) {
	from, to := listen(t, on(loopbacks[0])), listen(t, on(loopbacks[0]))
	many := cut(pattern(700), 1)
	mustSend(t, from,
		tunnel.Datagrams{Addr: to.Local(), Parts: many},
		tunnel.Datagrams{Addr: to.Local(), Parts: many},
		tunnel.Datagrams{Addr: to.Local(), Parts: cut(pattern(maxParts), 1)})
	got, _ := receive(t, to, 3)
	if len(got[0]) != 700 || len(got[1]) != 700 || len(got[2]) != maxParts {
		t.Errorf("received %d, %d and %d bytes", len(got[0]), len(got[1]), len(got[2]))
	}
}

func TestKernelErrorConcernsItsDatagram(t *testing.T) {
	from, to := listen(t, on(loopbacks[0])), listen(t, on(loopbacks[0]))
	ok := tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{{1}}}
	run := func(segment, total int) tunnel.Datagrams {
		return tunnel.Datagrams{Addr: to.Local(), SegmentSize: segment, Parts: [][]byte{pattern(total)}}
	}
	for _, tt := range []struct {
		name string
		bad  tunnel.Datagrams
		want error
	}{
		{"port 0", tunnel.Datagrams{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Parts: [][]byte{{1}}}, unix.EINVAL},
		{"single of too many parts", tunnel.Datagrams{Addr: to.Local(), Parts: cut(pattern(maxParts+1), 1)}, errParts},
		{"run of too many bytes", run(30000, maxPayload+1), tunnel.ErrOffload},
		{"run of too many segments", run(10, 10*from.Offloads().MaxSegments+1), tunnel.ErrOffload},
		{"unreachable", tunnel.Datagrams{Addr: netip.MustParseAddrPort("192.0.2.1:9"), Parts: [][]byte{{1}}}, unix.ENETUNREACH},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := from.Send([]tunnel.Datagrams{ok, ok, tt.bad, ok})
			if n != 2 || !errors.Is(err, tt.want) {
				t.Errorf("Send = %d, %v, want 2, %v", n, err, tt.want)
			}
			mustSend(t, from, ok)
			receive(t, to, 3)
		})
	}
}

// TestSmallPath sends over a link whose MTU is below what the sender believes:
// single datagrams are fragmented, as a kernel VXLAN device does, runs cannot be.
func TestSmallPath(t *testing.T) {
	world := labtest.New(t)
	var hosts [2]*lab.Host
	for i := range hosts {
		hosts[i] = labtest.Host(t, world, lab.HostConfig{Name: string(rune('a' + i))})
		if err := hosts[i].Link(lab.LinkProps{MTU: 1300}); err != nil {
			t.Fatal(err)
		}
	}
	for _, family := range []int{4, 6} {
		var from, to *Socket
		hosts[0].Do(func() error { from = listen(t, on(hosts[0].Addr(family))); return nil })
		hosts[1].Do(func() error { to = listen(t, on(hosts[1].Addr(family))); return nil })
		whole := pattern(1472)
		mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{whole}})
		if got, _ := receive(t, to, 1); !bytes.Equal(got[0], whole) {
			t.Errorf("IPv%d: received %d bytes, want the %d in fragments", family, len(got[0]), len(whole))
		}
		run := tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{pattern(4000)}, SegmentSize: 1472}
		if n, err := from.Send([]tunnel.Datagrams{run}); n != 0 || !errors.Is(err, tunnel.ErrTooBig) {
			t.Errorf("IPv%d: run above the MTU: %d, %v, want %v", family, n, err, tunnel.ErrTooBig)
		}
		run.SegmentSize = 1300 - 8 - 40
		mustSend(t, from, run)
		if got, _ := receive(t, to, 4); len(got) != 4 {
			t.Errorf("IPv%d: received %d datagrams, want 4", family, len(got))
		}
	}
	// A next hop that does not answer keeps its datagrams charged to the socket.
	var full *Socket
	hosts[0].Do(func() error {
		full = listen(t, Config{Addr: netip.AddrPortFrom(hosts[0].Addr(4), 0), SendBuffer: 4096})
		return nil
	})
	silent := tunnel.Datagrams{Addr: netip.AddrPortFrom(hosts[0].Addr(4).Next().Next().Next(), 9), Parts: [][]byte{pattern(1000)}}
	var err error
	for range 100 {
		if _, err = full.Send([]tunnel.Datagrams{silent}); err != nil {
			break
		}
	}
	if !errors.Is(err, tunnel.ErrFull) {
		t.Errorf("full socket: %v, want %v", err, tunnel.ErrFull)
	}
}

func TestSendSockets(t *testing.T) {
	for _, addr := range loopbacks {
		config := on(addr)
		config.SendSockets = 4
		from, to := listen(t, config), listen(t, on(addr))
		var batch []tunnel.Datagrams
		for flow := range uint32(12) {
			batch = append(batch, tunnel.Datagrams{Addr: to.Local(), Flow: flow / 2, Parts: [][]byte{{byte(flow / 2)}}})
		}
		mustSend(t, from, batch...)
		_, runs := receive(t, to, len(batch))
		ports := map[byte]netip.AddrPort{}
		for _, d := range runs {
			slot := d.Data[0] % 4
			if known, ok := ports[slot]; ok && known != d.Addr {
				t.Errorf("%v: flow %d came from %v and %v", addr, d.Data[0], known, d.Addr)
			}
			ports[slot] = d.Addr
		}
		distinct := map[netip.AddrPort]bool{from.Local(): true}
		for _, port := range ports {
			distinct[port] = true
		}
		if len(distinct) != 5 {
			t.Errorf("%v: sent from %v, want 4 ports that are not %v", addr, ports, from.Local())
		}
		// What comes to a sending port must not pile up there.
		mustSend(t, to, tunnel.Datagrams{Addr: ports[0], Parts: [][]byte{{1}}})
		for _, fd := range from.senders {
			if _, _, err := unix.Recvfrom(fd, make([]byte, 16), 0); err != unix.EAGAIN {
				t.Errorf("%v: a send socket took a datagram in: %v", addr, err)
			}
		}
	}
}

func TestSwitchedOff(t *testing.T) {
	config := on(loopbacks[0])
	config.GSO, config.GRO = tunnel.Off, tunnel.Off
	off, plain := listen(t, config), listen(t, on(loopbacks[0]))
	if o := off.Offloads(); o.UDP || !strings.Contains(strings.Join(o.Why, "\n"), "switched off") {
		t.Errorf("Offloads = %+v", o)
	}
	run := tunnel.Datagrams{Addr: off.Local(), Parts: [][]byte{pattern(300)}, SegmentSize: 100}
	if n, err := off.Send([]tunnel.Datagrams{run}); n != 0 || !errors.Is(err, tunnel.ErrOffload) {
		t.Errorf("Send of a run = %d, %v, want %v", n, err, tunnel.ErrOffload)
	}
	mustSend(t, plain, run)
	if _, runs := receive(t, off, 3); len(runs) != 3 {
		t.Errorf("received %d runs, want 3 single datagrams", len(runs))
	}
}

func TestNoAllocations(t *testing.T) {
	for _, addr := range loopbacks {
		from, to := listen(t, on(addr)), listen(t, on(addr))
		send := []tunnel.Datagrams{
			{Addr: to.Local(), Parts: parts(pattern(60000)), SegmentSize: 1472, ECN: 1},
			{Addr: to.Local(), Parts: parts(pattern(100))},
		}
		batch, arena := make([]tunnel.Datagrams, 8), make([]byte, 4*tunnel.MinArena)
		allocs := testing.AllocsPerRun(100, func() {
			mustSend(t, from, send...)
			for got := 0; got < len(send); {
				n, err := to.Receive(batch, arena)
				if err != nil {
					t.Fatal(err)
				}
				got += n
			}
		})
		if allocs != 0 {
			t.Errorf("%v: %v allocations for a Send and a Receive, want none", addr, allocs)
		}
		if from.sender.vectors[0].Base != nil {
			t.Errorf("%v: the parts are kept after Send", addr)
		}
	}
}

// What the kernel cannot be trusted with stays off: see socketDrops.
func TestDropsAreNotReported(t *testing.T) {
	s := group(t, on(loopbacks[0]), 1)[0]
	for _, fd := range append(s.Descriptors(), s.senders...) {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL); on != 0 || err != nil {
			t.Errorf("SO_RXQ_OVFL is %d, %v", on, err)
		}
	}
}

func TestLossIsCounted(t *testing.T) {
	config := on(loopbacks[0])
	config.ReceiveBuffer = 8192
	from, to := listen(t, on(loopbacks[0])), listen(t, config)
	one := tunnel.Datagrams{Addr: to.Local(), Parts: [][]byte{pattern(1000)}}
	const sent = 100
	for range sent {
		mustSend(t, from, one)
	}
	batch, arena := make([]tunnel.Datagrams, sent), make([]byte, 16*tunnel.MinArena)
	n, err := to.Receive(batch, arena)
	if err != nil {
		t.Fatal(err)
	}
	received := 0
	for _, d := range batch[:n] {
		received += len(cut(d.Data, d.SegmentSize))
	}
	if _, lost := to.Lost(); lost == 0 || int(lost)+received != sent {
		t.Errorf("%d received and %d lost of %d", received, lost, sent)
	}

	for _, flags := range []int32{unix.MSG_TRUNC, unix.MSG_CTRUNC} {
		before, _ := to.Lost()
		to.receiver.messages[0].header.Flags = flags
		accepted := to.accept(0, &batch[0], arena)
		if after, _ := to.Lost(); accepted || after != before+1 {
			t.Errorf("a message with flags %#x was accepted", flags)
		}
	}
}

func TestProbe(t *testing.T) {
	good := options{get: func(int) error { return nil }, set: func(int, int) error { return nil }}
	old := options{get: func(int) error { return unix.ENOPROTOOPT }, set: func(int, int) error { return unix.ENOPROTOOPT }}
	for _, tt := range []struct {
		name   string
		config Config
		kernel linux.Version
		opts   options
		udp    bool
		max    int
		why    []string
	}{
		{"new kernel", Config{}, linux.Version{Major: 6, Minor: 9}, good, true, 127, nil},
		{"cap below 6.9", Config{}, linux.Version{Major: 6, Minor: 8, Patch: 12}, good, true, 63, nil},
		{"no UDP_GRO below 5.12", Config{}, linux.Version{Major: 5, Minor: 11, Patch: 22}, good, true, 63, []string{"one by one: kernel 5.11.22"}},
		{"nothing", Config{}, linux.Version{Major: 4, Minor: 14}, old, false, 63, []string{"UDP_SEGMENT: protocol not available", "one by one: kernel 4.14.0"}},
		{"refused", Config{}, linux.Version{Major: 6, Minor: 18}, old, false, 127, []string{"UDP_SEGMENT: protocol not available", "UDP_GRO: protocol not available"}},
		{"corrupting", Config{}, linux.Version{Major: 7, Minor: 1, Patch: 4}, good, false, 127, []string{"7.1.4 corrupts"}},
		{"first corrupting", Config{}, linux.Version{Major: 7}, good, false, 127, []string{"7.0.0 corrupts"}},
		{"repaired", Config{}, linux.Version{Major: 7, Minor: 1, Patch: 5}, good, true, 127, nil},
		{"unknown kernel", Config{}, linux.Version{}, good, true, 63, []string{"one by one"}},
		{"insisted", Config{GSO: tunnel.On, GRO: tunnel.On}, linux.Version{Major: 7}, good, true, 127, nil},
		{"insisted on joining", Config{GRO: tunnel.On}, linux.Version{Major: 5, Minor: 10}, good, true, 63, nil},
		{"insisted in vain", Config{GSO: tunnel.On}, linux.Version{Major: 6, Minor: 18}, old, false, 127, []string{"UDP_SEGMENT: protocol not available", "UDP_GRO"}},
		{"by hand", Config{GSO: tunnel.Off, GRO: tunnel.Off}, linux.Version{Major: 6, Minor: 18}, good, false, 127, []string{"single datagrams: switched off", "one by one: switched off"}},
	} {
		o := probe(tt.config, tt.kernel, tt.opts)
		if o.UDP != tt.udp || o.MaxSegments != tt.max || len(o.Why) != len(tt.why) {
			t.Errorf("%s: %+v, want UDP %t, %d segments, %d reasons", tt.name, o, tt.udp, tt.max, len(tt.why))
			continue
		}
		for i, why := range tt.why {
			if !strings.Contains(o.Why[i], why) {
				t.Errorf("%s: reason %q, want %q in it", tt.name, o.Why[i], why)
			}
		}
	}
}

func TestSendError(t *testing.T) {
	for _, tt := range []struct {
		errno unix.Errno
		run   bool
		want  error // besides errno
	}{
		{unix.EAGAIN, false, tunnel.ErrFull},
		{unix.ENOBUFS, true, tunnel.ErrFull},
		{unix.EMSGSIZE, false, tunnel.ErrTooBig},
		{unix.EMSGSIZE, true, tunnel.ErrTooBig},
		{unix.EIO, true, tunnel.ErrOffload},
		{unix.EINVAL, true, tunnel.ErrOffload},
		{unix.EIO, false, unix.EIO},
		{unix.EINVAL, false, unix.EINVAL},
		{unix.EPERM, true, unix.EPERM},
	} {
		err := sendError(tt.errno, tt.run)
		if !errors.Is(err, tt.errno) || !errors.Is(err, tt.want) {
			t.Errorf("%v of a run %t: %v, want %v", tt.errno, tt.run, err, tt.want)
		}
		if tt.want == tt.errno && errors.Is(err, tunnel.ErrOffload) {
			t.Errorf("%v of a run %t: %v", tt.errno, tt.run, err)
		}
	}
}
