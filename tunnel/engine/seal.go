package engine

import (
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// sealedBatch is the memory of sealed datagrams between two flushes: a batch of
// small packets, or some super-packets of the Device.
const sealedBatch = 256 << 10

// sealer is what tx needs to send by WireGuard. Sealing is what copies a packet:
// from where the Device has put it to where it is sent from, one datagram behind
// the other, so that a run is one piece of memory.
type sealer struct {
	boxes   [2]*outbox // by outer family, that of IPv4 first; nil: none
	whole   []byte
	free    []byte // what is free of whole
	plain   []byte // one packet put together
	scratch wireguard.Scratch
}

// paddingMultiple is what packets are padded to, so that their lengths say less
// (WireGuard whitepaper, 5.4.6).
const paddingMultiple = 16

// padded is the size of a packet of so many bytes with its padding, which does
// not make it larger than the path carries.
func padded(size, mtu int) int {
	return max(size, min((size+paddingMultiple-1)&^(paddingMultiple-1), mtu))
}

func (s *sealer) add(box *outbox) {
	s.boxes[familyIndex(box.socket.Local().Addr().Is4())] = box
	if s.whole == nil {
		s.whole = make([]byte, sealedBatch+tunnel.MaxPacket)
		s.plain = make([]byte, tunnel.MaxPacket)
	}
	s.free = s.whole
}

func familyIndex(is4 bool) int {
	if is4 {
		return 0
	}
	return 1
}

// choose completes w for a peer that gets WireGuard. All flows to it share one
// outer source port, by which it knows where to answer, and so one run.
func (s *sealer) choose(w *way, peer *wireguard.Peer, now time.Time) {
	if peer == nil {
		return
	}
	w.sealed, w.session, w.to, w.flow = peer, peer.Session(now), peer.Endpoint(), 0
	w.box = s.boxes[familyIndex(w.to.Addr().Is4())]
}

// seal queues one packet, or has it wait for keys.
func (t *tx) seal(w way, data []byte) {
	if w.session == nil {
		t.stage(w, data)
		return
	}
	counter, ok := w.session.Reserve(1)
	if !ok {
		t.drop(TxDropNoKeys)
		return
	}
	t.sealWith(w, data, counter)
}

func (t *tx) stage(w way, data []byte) {
	if w.sealed.Stage(data) {
		t.counters.add(TxStaged, 1)
	} else {
		t.drop(TxDropNoKeys)
	}
}

// sealWith queues one packet. What is behind it in memory is in the way of its
// padding for a moment.
func (t *tx) sealWith(w way, data []byte, counter uint64) {
	size := min(padded(len(data), w.mtu), cap(data))
	t.reserve(w.box, 0)
	if len(t.sealed.free) < size+wireguard.Overhead {
		t.flush()
	}
	var kept [paddingMultiple]byte
	tail := data[len(data):size]
	copy(kept[:], tail)
	clear(tail)
	datagram := t.sealed.free[:size+wireguard.Overhead]
	w.session.Seal(datagram, data[:size], counter, &t.sealed.scratch)
	copy(tail, kept[:])
	t.sealed.free = t.sealed.free[len(datagram):]
	w.sealed.Sent(t.now)
	t.queue(w, datagram, nil)
}

// sealSegments queues the segments of a super-packet that begins in the arena at
// a place. Each is sealed where it lies, with its headers written over the end of
// the payload before it, which has been sealed by then; but for the first one,
// whose place the headers of all are read from.
func (t *tx) sealSegments(segments *packet.Segments, at int, w way) {
	headers, counter, ok := segments.HeaderLen(), uint64(0), true
	if w.session != nil {
		counter, ok = w.session.Reserve(segments.Left())
	}
	if !ok {
		t.drop(TxDropNoKeys)
		return
	}
	plain := t.sealed.plain
	payload, more := segments.Next(plain)
	data, size := assemble(plain, headers, payload), len(payload)
	for next := at + headers + size; more; next += size {
		if w.session == nil {
			t.stage(w, data)
		} else {
			t.sealWith(w, data, counter)
			counter++
		}
		if size < headers || segments.Left() == 0 {
			payload, more = segments.Next(plain)
			data = assemble(plain, headers, payload)
			continue
		}
		payload, _ = segments.Next(t.arena[next-headers : next])
		data = t.arena[next-headers : next+len(payload)]
	}
}

// assemble puts a piece of a packet, whose headers are in plain, together there.
func assemble(plain []byte, headers int, payload []byte) []byte {
	return plain[:headers+copy(plain[headers:], payload)]
}

// sealFragments queues the fragments of a packet, which is rare enough to copy them.
func (t *tx) sealFragments(fragments *packet.Fragments, w way) {
	plain := t.sealed.plain
	for {
		payload, ok := fragments.Next(plain)
		if !ok {
			return
		}
		t.seal(w, assemble(plain, fragments.HeaderLen(), payload))
	}
}
