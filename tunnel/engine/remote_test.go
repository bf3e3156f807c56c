package engine

import (
	"bytes"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// newRemoteRig has a far peer that finishes checksums, and a third that does not.
func newRemoteRig(t *testing.T) *rig {
	r := newRig(t, everything())
	peers := append(far.peers(), thrd.peers()...)
	peers[0].RemoteChecksum, peers[1].RemoteChecksum = true, true
	r.setPeers(peers)
	return r
}

// marked is a frame of which the checksum at start, from the Ethernet header
// on, is put off (draft-herbert-vxlan-rco-00).
func marked(frame []byte, start int, udp bool) []byte {
	frame = bytes.Clone(frame)
	frame[1] |= 0x20
	frame[7] = byte(start / 2)
	if udp {
		frame[7] |= 0x80
	}
	return frame
}

// transportAt is where the transport header is in a frame.
func transportAt(is4 bool) int {
	if is4 {
		return 14 + 20
	}
	return 14 + 40
}

// A checksum that the host has put off stays so towards a peer that finishes
// it, in single packets as in segments, and towards no other.
func TestSendRemoteChecksum(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for _, test := range []struct {
			name   string
			to     host
			packet tunneltest.Packet
			size   int
			marked bool
		}{
			{"TCP", far, toFar(is4, make([]byte, 100)), 0, true},
			{"UDP", far, asUDP(toFar(is4, make([]byte, 101))), 0, true},
			{"super", far, toFar(is4, make([]byte, 5000)), 1300, true},
			{"UDP super", far, asUDP(toFar(is4, make([]byte, 5000))), 1300, true},
			{"cut smaller", far, toFar(is4, make([]byte, 5000)), 4000, true},
			{"too big", far, asUDP(toFar(is4, make([]byte, 5000))), 4000, false},
			{"other peer", thrd, between(here, thrd, is4, make([]byte, 100)), 0, false},
			{"super to other", thrd, between(here, thrd, is4, make([]byte, 5000)), 1300, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				r := newRemoteRig(t)
				data, offload := test.packet.Partial()
				if test.size > 0 {
					data, offload = test.packet.Super(test.size)
				}
				r.send(out(data, offload))
				if test.name == "cut smaller" { // as the peer's MTU demands
					_, offload = test.packet.Super(testMTU - transportAt(is4) + 14 - 32)
				}
				want, err := tunneltest.Finish(data, offload)
				if err != nil {
					t.Fatal(err)
				}
				if test.name == "too big" { // for the peer's MTU, and it may not be fragmented
					want = nil
					r.want(map[Counter]uint64{TxDropTooBig: 1})
				}
				for i, d := range r.datagrams() {
					if (d[1]&0x20 != 0) != test.marked {
						t.Fatalf("datagram %d: flags %x", i, d[:8])
					}
					inner := bytes.Clone(d[22:])
					if test.marked {
						if got, want := d[7], marked(make([]byte, 8), transportAt(is4), test.packet.Protocol == tunneltest.UDP)[7]; got != want {
							t.Errorf("datagram %d is marked %#x, want %#x", i, got, want)
						}
						if err := tunneltest.Check(inner); err == nil {
							t.Errorf("datagram %d has its checksum, too", i)
						}
						o := offload
						o.GSO, o.SegmentSize = tunnel.GSONone, 0
						finished, err := tunneltest.Finish(inner, o)
						if err != nil {
							t.Fatal(err)
						}
						inner = finished[0]
					}
					if i >= len(want) || !bytes.Equal(inner, want[i]) {
						t.Fatalf("datagram %d of %d is\n%x", i, len(want), inner)
					}
				}
				if len(r.datagrams()) != len(want) {
					t.Errorf("%d datagrams, want %d", len(r.datagrams()), len(want))
				}
			})
		}
	})
}

// What arrives with its checksum put off is handed on so, joined or alone.
func TestReceiveRemoteChecksum(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		data, offload := toHere(is4, make([]byte, 5000)).Super(1000)
		want, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		single := offload
		single.GSO, single.SegmentSize = tunnel.GSONone, 0
		for _, p := range want {
			r.wire.Inject(farOuter, hereOuter, 0, marked(far.frame(unfinish(t, p, single)), transportAt(is4), false))
		}
		r.receive()
		got, offloads := r.delivered()
		r.equal(got, want)
		if len(offloads) != 1 {
			t.Errorf("%d writes: %v", len(offloads), offloads)
		}
		r.want(map[Counter]uint64{RxPartial: 5})
	})
}

// unfinish puts the folded pseudo-header sum in place of the checksum.
func unfinish(t *testing.T, p []byte, offload tunnel.Offload) []byte {
	t.Helper()
	p = bytes.Clone(p)
	at := int(offload.ChecksumStart + offload.ChecksumOffset)
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	addresses, protocol := p[12:20], p[9]
	if p[0]>>4 == 6 {
		addresses, protocol = p[8:40], p[6]
	}
	add(addresses)
	sum += uint32(protocol) + uint32(len(p)-int(offload.ChecksumStart))
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	p[at], p[at+1] = byte(sum>>8), byte(sum)
	return p
}

// A mark that fits nothing the engine can hand on is done on the spot, one that
// points outside the packet or that no outer checksum covers is refused.
func TestReceiveRemoteChecksumElsewhere(t *testing.T) {
	p := toHere(true, make([]byte, 40)).Bytes()
	r := newRig(t, everything())
	frame := marked(far.frame(p), transportAt(true)+20, true) // a UDP header within TCP's data, say
	r.process(tunnel.Datagrams{Addr: farOuter, Data: bytes.Clone(frame)})
	got, offloads := r.delivered()
	if len(got) != 1 || offloads[0].NeedsChecksum || bytes.Equal(got[0], p) {
		t.Errorf("delivered %x %v", got, offloads)
	}
	field := 20 + 20 + 6
	if sum := got[0][field : field+2]; len(got[0]) != len(p) || bytes.Equal(sum, p[field:field+2]) {
		t.Errorf("the checksum was not done: %x", got[0])
	}
	for name, run := range map[string]tunnel.Datagrams{
		"behind the end":       {Addr: farOuter, Data: marked(far.frame(p), 14+len(p), false)},
		"in the Ethernet head": {Addr: farOuter, Data: marked(far.frame(p), 10, false)},
		"no outer checksum":    {Addr: farOuter, Data: bytes.Clone(frame), Unsummed: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, everything())
			r.process(run)
			r.want(map[Counter]uint64{RxDropRemote: 1})
		})
	}
}

// Datagrams that differ from the first of a run in anything that was asked of
// it are asked themselves: nothing forged rides along.
func TestReceiveAsksAgain(t *testing.T) {
	data, offload := toHere(true, make([]byte, 3000)).Super(1000)
	pieces, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(frame []byte)
		drop   Counter
	}{
		"VNI":              {func(f []byte) { f[6]++ }, RxDropVNI},
		"no VNI":           {func(f []byte) { f[0] = 0 }, RxDropHeader},
		"MAC":              {func(f []byte) { f[13]++ }, RxDropMAC},
		"type":             {func(f []byte) { f[21] = 6 }, RxDropARP},
		"source":           {func(f []byte) { f[22+14] = 3 }, RxDropSource},
		"source of nobody": {func(f []byte) { f[22+12] = 11 }, RxDropSource},
		"destination":      {func(f []byte) { f[22+18] = 9 }, RxDropDestination},
		"length":           {func(f []byte) { f[22+2] = 0xff }, RxDropLength},
		"version":          {func(f []byte) { f[22] = 0x65 }, RxDropMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, everything())
			var run []byte
			for i, p := range pieces {
				frame := far.frame(p)
				if i == 1 {
					test.change(frame)
				}
				run = append(run, frame...)
			}
			r.process(tunnel.Datagrams{Addr: farOuter, Data: run, SegmentSize: len(far.frame(pieces[0]))})
			got, _ := r.delivered()
			r.equal(got, [][]byte{pieces[0], pieces[2]})
			r.want(map[Counter]uint64{test.drop: 1})
		})
	}
	t.Run("outer source", func(t *testing.T) {
		r := newRig(t, everything())
		r.process(tunnel.Datagrams{Addr: farOuter, Data: far.frame(pieces[0])},
			tunnel.Datagrams{Addr: thirdOuter, Data: far.frame(pieces[1])})
		got, _ := r.delivered()
		r.equal(got, pieces[:1])
		r.want(map[Counter]uint64{RxDropSource: 1})
	})
	t.Run("checksum", func(t *testing.T) {
		r := newRig(t, everything())
		bad := bytes.Clone(pieces[1])
		bad[len(bad)-1]++
		r.process(tunnel.Datagrams{Addr: farOuter, Data: far.frame(pieces[0])},
			tunnel.Datagrams{Addr: farOuter, Data: far.frame(bad)}, tunnel.Datagrams{Addr: farOuter, Data: far.frame(pieces[2])})
		for i, want := range [][]byte{pieces[0], bad, pieces[2]} {
			got, offload, ok := r.host.TryRead()
			if !ok || offload != (tunnel.Offload{}) || !bytes.Equal(got, want) {
				t.Errorf("packet %d: %x, %v", i, got, offload)
			}
		}
	})
}
