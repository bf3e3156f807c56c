package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// stream is the segments of one TCP transfer to here.
func stream(is4 bool, length, size int) [][]byte {
	p := toHere(is4, tunneltest.Random(rand.New(rand.NewPCG(1, uint64(length))), length))
	data, offload := p.Super(size)
	segments, err := tunneltest.Finish(data, offload)
	if err != nil {
		panic(err)
	}
	return segments
}

func TestReceiveSingle(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, p := range []tunneltest.Packet{
			toHere(is4, []byte("data")), asUDP(toHere(is4, []byte("data"))), asPing(toHere(is4, nil), 100),
		} {
			r := newRig(t, everything())
			r.inject(far, p.Bytes())
			got, offloads := r.delivered()
			r.equal(got, [][]byte{p.Bytes()})
			if offloads[0] != (tunnel.Offload{}) {
				t.Errorf("offload %+v", offloads[0])
			}
			r.want(map[Counter]uint64{
				RxBatches: 1, RxRuns: 1, RxDatagrams: 1, RxPackets: 1, RxBytes: uint64(len(p.Bytes())), RxWrites: 1, RxSuperPackets: 0,
			})
		}
	})
}

// Ethernet padding behind a short packet is not part of it.
func TestReceivePadding(t *testing.T) {
	r := newRig(t, everything())
	p := asUDP(toHere(true, []byte("x"))).Bytes()
	r.inject(far, append(bytes.Clone(p), make([]byte, 17)...))
	got, _ := r.delivered()
	r.equal(got, [][]byte{p})
}

// A peer's source port is a hash of the flow, not its VXLAN port.
func TestReceiveAnyPort(t *testing.T) {
	r := newRig(t, everything())
	p := toHere(true, []byte("data")).Bytes()
	r.wire.Inject(withPort(far.outer, 51234), hereOuter, 0, far.frame(p))
	r.receive()
	got, _ := r.delivered()
	r.equal(got, [][]byte{p})
}

func TestReceiveCoalesces(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, protocol := range []uint8{tunneltest.TCP, tunneltest.UDP} {
			r := newRig(t, everything())
			p := toHere(is4, tunneltest.Random(rand.New(rand.NewPCG(2, 3)), 30*1000+7))
			p.Protocol = protocol
			data, offload := p.Super(1000)
			want, _ := tunneltest.Finish(data, offload)
			r.inject(far, want...)
			got, offloads := r.delivered()
			r.equal(got, want)
			if len(offloads) != 1 || offloads[0] != offload {
				t.Errorf("offloads %+v, want %+v", offloads, offload)
			}
			r.want(map[Counter]uint64{RxPackets: 31, RxWrites: 1, RxSuperPackets: 1, RxFallbacks: 0})
		}
	})
}

// What the Device cannot take is written singly, in order.
func TestReceiveWithoutOffloads(t *testing.T) {
	for name, offloads := range map[string]tunnel.Offloads{
		"nothing": {}, "checksum": {Checksum: true}, "UDP": {Checksum: true, UDP: true},
	} {
		config := everything()
		config.device = offloads
		r := newRig(t, config)
		want := stream(true, 5000, 1000)
		r.inject(far, want...)
		got, _ := r.delivered()
		r.equal(got, want)
		if stats := r.engine.Stats(); stats.Value(RxWrites) != 5 || stats.Value(RxFallbacks) != 0 {
			t.Errorf("%s: %d writes, %d fallbacks", name, stats.Value(RxWrites), stats.Value(RxFallbacks))
		}
	}
}

// Packets with a wrong checksum reach the host as they came: joining them
// would give them a right one.
func TestReceiveWrongChecksum(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, broken := range []int{0, 1, 3} {
			r := newRig(t, everything())
			want := stream(is4, 4000, 1000)
			want[broken][len(want[broken])-1] ^= 1
			r.inject(far, want...)
			got, _ := r.delivered()
			r.equal(got, want)
		}
		r := newRig(t, everything())
		bare := asUDP(toHere(is4, make([]byte, 100))).Bytes()
		at := 26
		if !is4 {
			at = 46
		}
		clear(bare[at : at+2]) // for IPv6 that is not allowed, and for the host to refuse
		r.inject(far, bare, bare)
		got, _ := r.delivered()
		r.equal(got, [][]byte{bare, bare})
	})
}

// Kernels leave the inner checksum partial where the underlay is a virtual link.
func TestReceivePartial(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		without := everything()
		without.device = tunnel.Offloads{}
		for name, config := range map[string]rigConfig{"offload": everything(), "none": without} {
			for _, p := range []tunneltest.Packet{toHere(is4, []byte("data")), asUDP(toHere(is4, []byte("dat")))} {
				r := newRig(t, config)
				data, offload := p.Partial()
				r.inject(far, data)
				got, offloads := r.delivered()
				r.equal(got, [][]byte{p.Bytes()})
				if name == "none" {
					offload = tunnel.Offload{}
				}
				if offloads[0] != offload {
					t.Errorf("%s: offload %+v, want %+v", name, offloads[0], offload)
				}
				r.want(map[Counter]uint64{RxPartial: 1, RxWrites: 1})
			}
		}
	})
}

// Partial and finished segments of one flow can be joined.
func TestReceivePartialCoalesces(t *testing.T) {
	r := newRig(t, everything())
	want := stream(true, 3000, 1000)
	var sent [][]byte
	for i, s := range want {
		s = bytes.Clone(s)
		if i != 1 {
			p := toHere(true, s[52:])
			p.Sequence += uint32(i * 1000)
			p.ID += uint16(i)
			s, _ = p.Partial()
		}
		sent = append(sent, s)
	}
	r.inject(far, sent...)
	got, _ := r.delivered()
	r.equal(got, want)
	r.want(map[Counter]uint64{RxPartial: 2, RxWrites: 1, RxSuperPackets: 1})
}

// A kernel peer on the same machine may send a whole super-packet as one
// datagram: it is cut to the Device's MTU.
func TestReceiveSuperFrame(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		without := everything()
		without.device = tunnel.Offloads{}
		p := toHere(is4, tunneltest.Random(rand.New(rand.NewPCG(4, 5)), 64000))
		p.Flags |= tunneltest.PSH | tunneltest.CWR
		size := testMTU - 52
		if !is4 {
			size -= 20
		}
		partial, offload := p.Super(size)
		want, _ := tunneltest.Finish(partial, offload)
		for name, config := range map[string]rigConfig{"offload": everything(), "none": without} {
			for sum, data := range map[string][]byte{"partial": partial, "finished": p.Bytes()} {
				r := newRig(t, config)
				r.inject(far, bytes.Clone(data))
				got, offloads := r.delivered()
				r.equal(got, want)
				if name == "offload" && (len(offloads) != 1 || offloads[0] != offload) {
					t.Errorf("%s: offloads %+v, want %+v", sum, offloads, offload)
				}
				r.want(map[Counter]uint64{RxSuperFrames: 1, RxPackets: 1, RxDatagrams: 1})
			}
		}
	})
}

// Of a UDP super-packet in one datagram the kernel tells the segment size, in
// the place of that of a run. It counts whether the whole is large or not.
func TestReceiveSuperFrameUDP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		without := everything()
		without.device = tunnel.Offloads{}
		for _, length := range []int{250, 1000, 60000} {
			p := asUDP(toHere(is4, tunneltest.Random(rand.New(rand.NewPCG(4, 5)), length)))
			data, offload := p.Super(100)
			want, _ := tunneltest.Finish(data, offload)
			for _, config := range []rigConfig{everything(), without} {
				r := newRig(t, config)
				r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: 100, Data: far.frame(bytes.Clone(data))})
				got, _ := r.delivered()
				r.equal(got, want)
				r.want(map[Counter]uint64{RxSuperFrames: 1, RxDatagrams: 1})
			}
		}
		// A segment size that it does not exceed leaves nothing to cut.
		data := asUDP(toHere(is4, make([]byte, 90))).Bytes()
		r := newRig(t, everything())
		r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: 100, Data: far.frame(bytes.Clone(data))})
		got, offloads := r.delivered()
		r.equal(got, [][]byte{data})
		if offloads[0] != (tunnel.Offload{}) {
			t.Errorf("offload %+v", offloads[0])
		}
		// One whose checksum is wrong is not cut, which would give it right ones.
		data = asUDP(toHere(is4, make([]byte, 1000))).Bytes()
		data[len(data)-1] ^= 1
		r.process(tunnel.Datagrams{Addr: farOuter, SegmentSize: 100, Data: far.frame(bytes.Clone(data))})
		got, _ = r.delivered()
		r.equal(got, [][]byte{data})
	})
}

// A large packet that nobody can cut is the host's to judge.
func TestReceiveLarge(t *testing.T) {
	r := newRig(t, everything())
	for _, p := range []tunneltest.Packet{asPing(toHere(true, nil), 3000), asUDP(toHere(true, make([]byte, 3000)))} {
		r.inject(far, p.Bytes())
		got, _ := r.delivered()
		r.equal(got, [][]byte{p.Bytes()})
	}
}

// The Device's MTU may change while running.
func TestReceiveFollowsMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		p := toHere(true, make([]byte, 5000))
		for _, mtu := range []int{1450, 1300, 9000} {
			r.device.SetMTU(mtu)
			time.Sleep(mtuFor)
			r.inject(far, p.Bytes())
			_, offloads := r.delivered()
			want := uint16(mtu - 52)
			if mtu == 9000 {
				want = 0
			}
			if len(offloads) != 1 || offloads[0].SegmentSize != want {
				t.Errorf("MTU %d: offloads %+v", mtu, offloads)
			}
		}
	})
}

func TestReceiveECN(t *testing.T) {
	// RFC 6040, figure 4: rows are the inner, columns the outer codepoint.
	const drop = 9
	table := map[uint8][4]uint8{
		packet.NotECT: {packet.NotECT: 0, packet.ECT0: 0, packet.ECT1: 0, packet.CE: drop},
		packet.ECT0:   {packet.NotECT: packet.ECT0, packet.ECT0: packet.ECT0, packet.ECT1: packet.ECT1, packet.CE: packet.CE},
		packet.ECT1:   {packet.NotECT: packet.ECT1, packet.ECT0: packet.ECT1, packet.ECT1: packet.ECT1, packet.CE: packet.CE},
		packet.CE:     {packet.NotECT: packet.CE, packet.ECT0: packet.CE, packet.ECT1: packet.CE, packet.CE: packet.CE},
	}
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for inner, row := range table {
			for outer, want := range row {
				r := newRig(t, everything())
				p := toHere(is4, []byte("data"))
				p.TOS = 0x40 | inner
				r.wire.Inject(farOuter, hereOuter, uint8(outer), far.frame(p.Bytes()))
				r.receive()
				got, _ := r.delivered()
				if want == drop {
					r.equal(got, nil)
					r.want(map[Counter]uint64{RxDropECN: 1})
					continue
				}
				p.TOS = 0x40 | want
				r.equal(got, [][]byte{p.Bytes()})
				r.want(nil)
			}
		}
	})
}

// More than fits into the worker's memory is written in several flushes.
func TestReceiveMany(t *testing.T) {
	for _, size := range []int{1, 40, 1000} {
		r := newRig(t, everything())
		want := stream(true, 60000, max(size, 30))
		var runs []tunnel.Datagrams
		for _, s := range want {
			runs = append(runs, tunnel.Datagrams{Addr: farOuter, Data: far.frame(s)})
			if size == 1 { // nothing joins
				runs = append(runs, tunnel.Datagrams{Addr: farOuter, Data: far.frame(asPing(toHere(true, nil), 1).Bytes())})
			}
		}
		r.process(runs...)
		got, _ := r.delivered()
		if size == 1 {
			got = onlyTCP(got)
		}
		r.equal(got, want)
		r.want(map[Counter]uint64{RxPackets: uint64(len(runs))})
		// It is one allocation for the worker's life.
		rx := r.engine.workers[0].rx[0]
		if cap(rx.packets) != rxPackets || cap(rx.out) != rxPackets || cap(rx.spans) != rxPackets || cap(rx.parts) != rxParts {
			t.Errorf("memory grew: %d packets, %d written, %d parts", cap(rx.packets), cap(rx.out), cap(rx.parts))
		}
	}
}

// Headers as long as they get do not exhaust the memory for them.
func TestReceiveLongHeaders(t *testing.T) {
	p := toHere(false, make([]byte, 3000))
	p.FirstExtension = 60
	p.Extensions = make([]byte, 7*2048)
	for i := range 7 {
		p.Extensions[i*2048], p.Extensions[i*2048+1] = 60, 255
	}
	p.Extensions[6*2048] = tunneltest.TCP
	for _, offloads := range []tunnel.Offloads{tunneltest.AllOffloads(), {}} {
		config := everything()
		config.device = offloads
		r := newRig(t, config)
		r.device.SetMTU(16000)
		var runs []tunnel.Datagrams
		var want [][]byte
		for range 10 {
			data, offload := p.Super(16000 - 40 - 7*2048 - 32)
			segments, err := tunneltest.Finish(data, offload)
			if err != nil {
				t.Fatal(err)
			}
			runs, want = append(runs, tunnel.Datagrams{Addr: farOuter, Data: far.frame(data)}), append(want, segments...)
		}
		r.process(runs...)
		got, _ := r.delivered()
		r.equal(got, want)
	}
}

func onlyTCP(packets [][]byte) (tcp [][]byte) {
	for _, p := range packets {
		if p[9] == tunneltest.TCP {
			tcp = append(tcp, p)
		}
	}
	return tcp
}

// When the Device refuses an offload, the packets are written finished, in
// order, the log says so once, and no more such packets are made.
func TestReceiveFallsBack(t *testing.T) {
	type refusal struct {
		name    string
		refuses func(tunnel.Offload) bool
		send    func(r *rig) (want [][]byte)
	}
	ping := asPing(toHere(true, nil), 10).Bytes()
	udp := asUDP(toHere(true, make([]byte, 2500)))
	partial := toHere(true, []byte("data"))
	tests := []refusal{
		{"TCP segmentation", func(o tunnel.Offload) bool { return o.GSO == tunnel.GSOTCP4 }, func(r *rig) [][]byte {
			want := stream(true, 5000, 1000)
			r.inject(far, append(want[:len(want):len(want)], ping)...)
			return append(want, ping)
		}},
		{"TCP segmentation", func(o tunnel.Offload) bool { return o.GSO == tunnel.GSOTCP4 }, func(r *rig) [][]byte {
			p := toHere(true, make([]byte, 30000))
			data, offload := p.Super(testMTU - 52)
			r.inject(far, ping, bytes.Clone(data), ping)
			want, _ := tunneltest.Finish(data, offload)
			return append(append([][]byte{ping}, want...), ping)
		}},
		{"UDP segmentation", func(o tunnel.Offload) bool { return o.GSO == tunnel.GSOUDP }, func(r *rig) [][]byte {
			data, offload := udp.Super(1000)
			want, _ := tunneltest.Finish(data, offload)
			r.inject(far, want...)
			return want
		}},
		{"checksum", func(o tunnel.Offload) bool { return o.NeedsChecksum }, func(r *rig) [][]byte {
			data, _ := partial.Partial()
			r.inject(far, ping, data, ping)
			return [][]byte{ping, partial.Bytes(), ping}
		}},
	}
	for _, test := range tests {
		r := newRig(t, everything())
		refused := 0
		r.device.Refuse(func(o tunnel.Outgoing) error {
			if test.refuses(o.Offload) {
				refused++
				return fmt.Errorf("write: %w", tunnel.ErrOffload)
			}
			return nil
		})
		for i := range 3 {
			want := test.send(r)
			got, _ := r.delivered()
			if i == 0 { // what was refused is written after the rest of its batch
				slices.SortFunc(got, bytes.Compare)
				slices.SortFunc(want, bytes.Compare)
			}
			r.equal(got, want)
		}
		if n := strings.Count(r.log.String(), test.name); n != 1 || refused != 1 {
			t.Errorf("%s: %d log lines, %d refusals: %s", test.name, n, refused, r.log)
		}
		if r.engine.Stats().Value(RxFallbacks) == 0 {
			t.Errorf("%s: no fallback is counted", test.name)
		}
		r.want(nil)
	}
}

// A Device that says "offload" of a packet without any has just failed.
func TestReceiveNothingToRefuse(t *testing.T) {
	r := newRig(t, everything())
	r.device.Refuse(func(tunnel.Outgoing) error { return tunnel.ErrOffload })
	r.inject(far, asPing(toHere(true, nil), 10).Bytes())
	r.want(map[Counter]uint64{RxDropDevice: 1, RxFallbacks: 0})
	if !r.engine.workers[0].rx[0].offloads.Checksum {
		t.Error("an offload was given up")
	}
}

// A Device that refuses packets which need nothing loses them, and only them.
func TestReceiveDeviceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		r.device.Refuse(func(o tunnel.Outgoing) error {
			if o.GSO != tunnel.GSONone {
				return tunnel.ErrOffload
			}
			if o.Parts[0][9] == tunneltest.TCP {
				return errors.New("device is down")
			}
			return nil
		})
		ping := asPing(toHere(true, nil), 10).Bytes()
		r.inject(far, append(stream(true, 5000, 1000), ping)...)
		r.inject(far, ping, toHere(true, nil).Bytes(), ping)
		data, _ := toHere(true, make([]byte, 3000)).Partial()
		r.inject(far, data)
		got, _ := r.delivered()
		r.equal(got, [][]byte{ping, ping, ping})
		r.want(map[Counter]uint64{RxDropDevice: 5 + 1 + 3})
		if n := strings.Count(r.log.String(), "device is down"); n != 1 {
			t.Errorf("%d log lines: %s", n, r.log)
		}
	})
}
