package engine

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// sink is a Device and a Socket that take everything and keep nothing.
type sink struct{ writes, bytes int }

func (*sink) Name() string                                    { return "sink" }
func (*sink) MTU() (int, error)                               { return testMTU, nil }
func (*sink) Read([]tunnel.Incoming, []byte) (int, error)     { return 0, tunnel.ErrClosed }
func (*sink) Offloads() tunnel.Offloads                       { return tunneltest.AllOffloads() }
func (*sink) Close() error                                    { return nil }
func (*sink) Local() netip.AddrPort                           { return hereOuter }
func (*sink) Receive([]tunnel.Datagrams, []byte) (int, error) { return 0, tunnel.ErrClosed }

func (s *sink) Write(packets []tunnel.Outgoing) (int, error) {
	for i := range packets {
		s.take(packets[i].Parts)
	}
	return len(packets), nil
}

func (s *sink) Send(runs []tunnel.Datagrams) (int, error) {
	for i := range runs {
		s.take(runs[i].Parts)
	}
	return len(runs), nil
}

func (s *sink) take(parts [][]byte) {
	s.writes++
	for _, part := range parts {
		s.bytes += len(part)
	}
}

func newSinkEngine(t testing.TB) *Engine {
	t.Helper()
	s := &sink{}
	e, err := New(Config{Workers: []Worker{{Device: s, Sockets: []tunnel.Socket{s}}}, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.SetLocals(here.locals()); err != nil {
		t.Fatal(err)
	}
	if err := e.SetPeers(far.peers()); err != nil {
		t.Fatal(err)
	}
	return e
}

// load is one batch for either direction.
type load struct {
	name    string
	packets []tunnel.Incoming // relative to arena
	arena   []byte
	runs    []tunnel.Datagrams
	bytes   int
}

// loads are batches of each kind: bulk TCP, small packets, pings, and too big ones.
func loads(t testing.TB) []load {
	t.Helper()
	bulk := func(is4 bool) load {
		l := load{name: fmt.Sprintf("bulk%v", is4)}
		p := toFar(is4, make([]byte, 44*1378))
		l.incoming(p.Super(1378))
		p = toHere(is4, make([]byte, 44*1378))
		data, offload := p.Super(1378)
		segments, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		l.run(segments)
		return l
	}
	small := load{name: "small"}
	var datagrams [][]byte
	for i := range 64 {
		small.incoming(asUDP(toFar(true, make([]byte, 64))).Partial())
		p := asUDP(toHere(true, make([]byte, 64)))
		p.ID = uint16(i)
		datagrams = append(datagrams, p.Bytes())
	}
	small.run(datagrams)
	mixed := load{name: "mixed"}
	for i := range 20 {
		is4 := i%2 == 0
		mixed.incoming(asPing(toFar(is4, nil), i*10).Bytes(), tunnel.Offload{})
		mixed.incoming(asPing(toFar(is4, nil), 1500).Bytes(), tunnel.Offload{})
		mixed.run([][]byte{asPing(toHere(is4, nil), i*10).Bytes()})
		partial, _ := toHere(is4, make([]byte, 5000)).Partial()
		mixed.run([][]byte{partial})
		mixed.run([][]byte{asPing(between(thrd, here, is4, nil), 10).Bytes()})
	}
	acked := load{name: "acks"}
	for _, p := range acks(toFar(true, nil), 1, 2, 3, 0, 4, 5) {
		acked.incoming(p.Partial())
	}
	for _, p := range acks(toHere(true, nil), 1, 2, 3, 0, 4, 5) {
		acked.run([][]byte{p.Bytes()})
	}
	return []load{bulk(true), bulk(false), small, mixed, acked}
}

func (l *load) incoming(data []byte, offload tunnel.Offload) {
	l.arena = append(l.arena, make([]byte, tunnel.Headroom)...)
	l.packets = append(l.packets, tunnel.Incoming{Offload: offload, Offset: len(l.arena)})
	l.arena = append(l.arena, data...)
	l.packets[len(l.packets)-1].Data = data
	l.bytes += len(data)
}

func (l *load) run(packets [][]byte) {
	run := tunnel.Datagrams{Addr: farOuter}
	if len(packets) > 1 {
		run.SegmentSize = len(far.frame(packets[0]))
	}
	for _, p := range packets {
		run.Data = append(run.Data, far.frame(p)...)
	}
	l.runs = append(l.runs, run)
}

// tx returns a function that processes the load as often as it is called.
func (l *load) tx(e *Engine) func() {
	packets := make([]tunnel.Incoming, len(l.packets))
	return func() {
		copy(e.workers[0].tx.arena, l.arena)
		for i, p := range l.packets {
			p.Data = e.workers[0].tx.arena[p.Offset : p.Offset+len(p.Data)]
			packets[i] = p
		}
		e.workers[0].tx.process(packets)
	}
}

func (l *load) rx(e *Engine) func() {
	runs := make([]tunnel.Datagrams, len(l.runs))
	return func() {
		arena := e.workers[0].rx[0].arena
		for i, run := range l.runs {
			n := copy(arena, run.Data)
			run.Data, arena = arena[:n], arena[n:]
			runs[i] = run
		}
		e.workers[0].rx[0].process(runs, false)
	}
}

func TestPathsDoNotAllocate(t *testing.T) {
	for _, l := range loads(t) {
		e := newSinkEngine(t)
		for name, f := range map[string]func(){"tx": l.tx(e), "rx": l.rx(e)} {
			if n := testing.AllocsPerRun(20, f); n != 0 {
				t.Errorf("%s %s: %v allocations per batch", name, l.name, n)
			}
		}
	}
}

func BenchmarkTx(b *testing.B) { benchmark(b, (*load).tx) }

func BenchmarkRx(b *testing.B) { benchmark(b, (*load).rx) }

func benchmark(b *testing.B, direction func(*load, *Engine) func()) {
	for _, l := range loads(b) {
		b.Run(l.name, func(b *testing.B) {
			f := direction(&l, newSinkEngine(b))
			b.SetBytes(int64(l.bytes))
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// FuzzReceive holds that no run of bytes from a known peer panics or leaks
// more than it carried, and that what is written passes as what it says.
func FuzzReceive(f *testing.F) {
	f.Add(far.frame(toHere(true, []byte("data")).Bytes()), uint16(0), uint8(0))
	f.Add(bytes.Repeat(far.frame(asUDP(toHere(false, []byte("data"))).Bytes()), 3), uint16(74), uint8(2))
	partial, _ := toHere(true, make([]byte, 3000)).Partial()
	f.Add(far.frame(partial), uint16(0), uint8(1))
	super, _ := asUDP(toHere(true, make([]byte, 3000))).Super(100)
	f.Add(far.frame(super), uint16(100), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, size uint16, ecn uint8) {
		if len(data) > tunnel.MaxPacket {
			return
		}
		r := newRig(t, everything())
		r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: int(size), ECN: ecn & 3, Data: data})
		got, _ := r.delivered()
		for _, p := range got {
			if len(p) > len(data) {
				t.Fatalf("%d bytes became %d", len(data), len(p))
			}
		}
		if r.engine.Stats().Value(RxDropDevice) != 0 {
			t.Fatal("a packet broke the Device's rules")
		}
	})
}

// FuzzSend holds the same of what a Device reads, whatever it says of it.
func FuzzSend(f *testing.F) {
	f.Add(toFar(true, []byte("data")).Bytes(), uint8(0), uint16(0), uint16(0), uint16(0))
	data, o := toFar(false, make([]byte, 3000)).Super(100)
	f.Add(data, uint8(o.GSO)<<1|1, o.SegmentSize, o.ChecksumStart, o.ChecksumOffset)
	data, o = asUDP(toFar(true, make([]byte, 3000))).Super(1440)
	f.Add(data, uint8(o.GSO)<<1|1, o.SegmentSize, o.ChecksumStart, o.ChecksumOffset)
	f.Fuzz(func(t *testing.T, data []byte, kind uint8, size, start, offset uint16) {
		if len(data) > tunnel.MaxPacket {
			return
		}
		r := newRig(t, everything())
		lowMTU(r)
		tx := r.engine.workers[0].tx
		n := copy(tx.arena[tunnel.Headroom:], data)
		tx.process([]tunnel.Incoming{{
			Offload: tunnel.Offload{
				GSO: tunnel.GSOType(kind >> 1 & 3), NeedsChecksum: kind&1 != 0, SegmentSize: size,
				ChecksumStart: start, ChecksumOffset: offset,
			},
			Data: tx.arena[tunnel.Headroom : tunnel.Headroom+n], Offset: tunnel.Headroom,
		}})
		for _, p := range r.inners() {
			if len(p) > 1300 {
				t.Fatalf("sent %d bytes", len(p))
			}
		}
	})
}
