package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// gotTooBig checks that the host got one ICMP error about a packet, and returns its MTU.
func (r *rig) gotTooBig(offending []byte) int {
	r.t.Helper()
	got, _ := r.delivered()
	if len(got) != 1 {
		r.t.Fatalf("%d packets came back, want one ICMP error", len(got))
	}
	if err := tunneltest.Check(got[0]); err != nil {
		r.t.Fatal(err)
	}
	reply, is4 := got[0], offending[0]>>4 == 4
	icmp, mtu := reply[40:], 0
	source, destination := reply[8:24], reply[24:40]
	kind := []byte{2, 0}
	if is4 {
		icmp, source, destination, kind = reply[20:], reply[12:16], reply[16:20], []byte{3, 4}
	}
	mtu = int(binary.BigEndian.Uint32(icmp[4:]))
	if !bytes.Equal(icmp[:2], kind) || !bytes.HasPrefix(offending, icmp[8:]) {
		r.t.Fatalf("reply %x to %x", reply, offending)
	}
	if !bytes.Equal(source, far.subnet(is4).Addr().AsSlice()) || !bytes.Equal(destination, here.pod(is4).Addr().AsSlice()) {
		r.t.Errorf("reply from %x to %x", source, destination)
	}
	return mtu
}

// lowMTU gives the far peer a smaller MTU than the Device has.
func lowMTU(r *rig) {
	peers := far.peers()
	for i := range peers {
		peers[i].MTU = 1300
	}
	r.setPeers(peers)
}

func TestSendTooBig(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		lowMTU(r)
		p := asPing(toFar(is4, nil), 1400)
		r.send(finished(p.Bytes())...)
		if mtu := r.gotTooBig(p.Bytes()); mtu != 1300 {
			t.Errorf("MTU %d", mtu)
		}
		r.want(map[Counter]uint64{TxDropTooBig: 1, TxICMP: 1, TxDatagrams: 0})

		// What just fits goes out.
		room := 1300 - len(p.Bytes()) + 1400
		fits := asPing(toFar(is4, nil), room).Bytes()
		r.send(finished(fits)...)
		r.equal(r.inners(), [][]byte{fits})
	})
}

func TestSendSuperTooBig(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		lowMTU(r)
		datagrams := asUDP(toFar(is4, make([]byte, 5000)))
		data, offload := datagrams.Super(1350)
		r.send(out(data, offload))
		if mtu := r.gotTooBig(data); mtu != 1300 {
			t.Errorf("MTU %d", mtu)
		}
		r.want(map[Counter]uint64{TxDropTooBig: 1, TxICMP: 1, TxDatagrams: 0})

		// A TCP stream goes on, in smaller segments, whether its sender hears or not.
		r = newRig(t, everything())
		lowMTU(r)
		stream := toFar(is4, make([]byte, 5000))
		data, offload = stream.Super(1350)
		r.send(out(data, offload))
		if mtu := r.gotTooBig(data); mtu != 1300 {
			t.Errorf("MTU %d", mtu)
		}
		headers := 72
		if is4 {
			headers = 52
		}
		_, smaller := stream.Super(1300 - headers)
		want, _ := tunneltest.Finish(data, smaller)
		r.equal(r.inners(), want)
		r.want(map[Counter]uint64{TxICMP: 1})
	})
}

// IPv4 that may be fragmented is, or cut smaller where that is as good.
func TestSendFragments(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	r := newRig(t, everything())
	lowMTU(r)
	p := asUDP(toFar(true, tunneltest.Random(random, 1400)))
	p.DontFragment = false
	r.send(out(p.Partial()))
	r.fragmentsOf(p.Bytes())
	r.want(map[Counter]uint64{TxFragmented: 1, TxDatagrams: 2})

	r = newRig(t, everything())
	lowMTU(r)
	p.Payload = tunneltest.Random(random, 4*1400+9)
	data, offload := p.Super(1400)
	r.send(out(data, offload))
	want, _ := tunneltest.Finish(data, offload)
	r.fragmentsOf(want...)
	r.want(map[Counter]uint64{TxFragmented: 4, TxDatagrams: 9})

	r = newRig(t, everything())
	lowMTU(r)
	tcp := toFar(true, tunneltest.Random(random, 5000))
	tcp.DontFragment = false
	data, _ = tcp.Super(1398)
	r.send(out(tcp.Super(1398)))
	_, smaller := tcp.Super(1300 - 52)
	want, _ = tunneltest.Finish(data, smaller)
	r.equal(r.inners(), want)
	r.want(nil)
}

// fragmentsOf checks that what was sent are the fragments of these packets.
func (r *rig) fragmentsOf(packets ...[]byte) {
	r.t.Helper()
	var payload []byte
	for _, f := range r.inners() {
		if err := tunneltest.Check(f); err != nil || len(f) > 1300 {
			r.t.Fatalf("fragment of %d bytes: %v", len(f), err)
		}
		position := binary.BigEndian.Uint16(f[6:])
		if int(position&0x1fff)*8 != len(payload) {
			r.t.Fatalf("fragment at %d says %d", len(payload), position&0x1fff*8)
		}
		payload = append(payload, f[20:]...)
		if position&0x2000 != 0 {
			continue
		}
		if len(packets) == 0 || !bytes.Equal(payload, packets[0][20:]) {
			r.t.Fatalf("reassembled to %x", payload)
		}
		payload, packets = nil, packets[1:]
	}
	if len(packets) != 0 || len(payload) != 0 {
		r.t.Errorf("%d packets did not arrive", len(packets))
	}
}

func TestSendPathTooBig(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		r.socket.Refuse(func(tunnel.Datagrams) error { return fmt.Errorf("send: %w", tunnel.ErrTooBig) })
		p := asUDP(toFar(is4, make([]byte, 1300)))
		r.send(finished(p.Bytes())...)
		r.want(map[Counter]uint64{TxDropTooBig: 1, TxICMP: 0})
		r.engine.prober.drain()
		r.send(finished(p.Bytes())...) // as its sender does that had no answer
		if mtu := r.gotTooBig(p.Bytes()); mtu != 1280 {
			t.Errorf("MTU %d", mtu)
		}
		r.want(map[Counter]uint64{TxDropTooBig: 2, TxICMP: 1})

		// A run is sent again singly: a single datagram may be fragmented on the way.
		r = newRig(t, everything())
		r.socket.Refuse(func(run tunnel.Datagrams) error {
			if run.SegmentSize != 0 {
				return tunnel.ErrTooBig
			}
			return r.record(run)
		})
		data, offload := toFar(is4, make([]byte, 5000)).Super(1378)
		segments, _ := tunneltest.Finish(data, offload)
		r.send(out(data, offload))
		r.equal(r.inners(), segments)
		r.want(map[Counter]uint64{TxFallbacks: 1, TxICMP: 0, TxDatagrams: 4})
		r.engine.prober.drain()
		data, offload = toFar(is4, make([]byte, 5000)).Super(1378)
		r.send(out(data, offload))
		if mtu := r.gotTooBig(data); mtu != 1400 {
			t.Errorf("MTU %d for %d bytes", mtu, len(segments[0]))
		}
	})

	// A sender that lets routers fragment is not told to stop.
	r := newRig(t, everything())
	r.socket.Refuse(func(tunnel.Datagrams) error { return tunnel.ErrTooBig })
	p := asUDP(toFar(true, make([]byte, 1300)))
	p.DontFragment = false
	r.send(finished(p.Bytes())...)
	r.want(map[Counter]uint64{TxDropTooBig: 1, TxICMP: 0})
}

// ICMP errors are never sent for what must not be answered, and never too many.
func TestSendTooBigLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		lowMTU(r)
		unreachable := asPing(toFar(true, nil), 1400)
		unreachable.Payload[0] = 3
		r.send(finished(unreachable.Bytes())...)
		if got, _ := r.delivered(); len(got) != 0 {
			t.Errorf("an ICMP error is answered")
		}
		ping := finished(asPing(toFar(true, nil), 1400).Bytes())
		for range icmpPerSecond + 20 {
			r.send(ping...)
		}
		if got, _ := r.delivered(); len(got) != icmpPerSecond {
			t.Errorf("%d errors in a second", len(got))
		}
		time.Sleep(time.Second)
		r.send(ping...)
		if got, _ := r.delivered(); len(got) != 1 {
			t.Errorf("%d errors in the next second", len(got))
		}
		r.want(map[Counter]uint64{TxDropTooBig: icmpPerSecond + 22, TxICMP: icmpPerSecond + 1, TxICMPLimited: 20})
	})
}

func TestSendTooBigNotWritten(t *testing.T) {
	r := newRig(t, everything())
	lowMTU(r)
	r.device.Refuse(func(tunnel.Outgoing) error { return errors.New("device is down") })
	r.send(finished(asPing(toFar(true, nil), 1400).Bytes())...)
	r.want(map[Counter]uint64{TxDropTooBig: 1, TxICMP: 0})
	if !strings.Contains(r.log.String(), "device is down") {
		t.Errorf("log: %s", r.log)
	}
}
