package engine

import (
	"errors"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// single queues packet i to be written as it is.
func (r *rx) single(i int) {
	a := &r.packets[i]
	var offload tunnel.Offload
	if a.partial {
		offload = r.unfinished(a)
	}
	r.parts = append(r.parts, a.Data)
	r.emit(offload, span{i, i + 1}, len(r.parts)-1)
}

// unfinished describes the checksum that a partial packet still needs, or
// finishes it if the Device cannot.
func (r *rx) unfinished(a *arrival) tunnel.Offload {
	offset, _ := a.ChecksumOffset()
	if r.offloads.Checksum {
		return tunnel.Offload{
			NeedsChecksum: true, ChecksumStart: uint16(a.Transport), ChecksumOffset: uint16(offset),
		}
	}
	a.finish()
	return tunnel.Offload{}
}

// finish finishes the checksum of a partial packet.
func (a *arrival) finish() {
	if !a.partial {
		return
	}
	a.partial = false
	if offset, ok := a.ChecksumOffset(); ok {
		// The offset lies in the packet, or it would not have been found.
		_ = packet.Finish(a.Data, a.Transport, offset)
	}
}

// emit queues one Outgoing made of r.parts[first:].
func (r *rx) emit(offload tunnel.Offload, from span, first int) {
	r.out = append(r.out, tunnel.Outgoing{Offload: offload, Parts: r.parts[first:len(r.parts):len(r.parts)]})
	r.spans = append(r.spans, from)
}

// superOffload describes a super-packet with v's headers.
func superOffload(v packet.View, size int) tunnel.Offload {
	offset, _ := v.ChecksumOffset()
	offload := tunnel.Offload{
		SegmentSize: uint16(min(size, tunnel.MaxPacket)), NeedsChecksum: true,
		ChecksumStart: uint16(v.Transport), ChecksumOffset: uint16(offset),
	}
	switch {
	case v.Protocol == packet.UDP:
		offload.GSO = tunnel.GSOUDP
	case v.Is4():
		offload.GSO = tunnel.GSOTCP4
	default:
		offload.GSO = tunnel.GSOTCP6
	}
	offload.ECN = v.Protocol == packet.TCP && v.CWR()
	return offload
}

// closeGroup queues the packets of the open group as one super-packet.
func (r *rx) closeGroup() {
	count := r.group.Count()
	if count == 0 {
		return
	}
	from := span{r.groupFrom, len(r.packets)}
	if count == 1 {
		r.single(from.from)
	} else {
		headers, first := r.group.HeaderLen(), len(r.parts)
		r.group.Header(r.slab)
		r.parts = append(r.parts, r.slab[:headers:headers])
		r.slab = r.slab[headers:]
		for i := range r.packets[from.from:from.to] {
			r.parts = append(r.parts, r.packets[from.from+i].Data[headers:])
		}
		r.emit(superOffload(r.group.First(), r.group.SegmentSize()), from, first)
	}
	r.group = packet.Group{}
}

// super queues a packet that came as a super-packet. If the Device does not
// take those, it is cut and written at once, after everything before it.
func (r *rx) super(a arrival, accepted bool) {
	if !accepted {
		r.flush()
		r.cut(&a)
		return
	}
	headers, _ := a.PayloadOffset()
	first := len(r.parts)
	packet.PutSuperHeader(r.slab, a.View, len(a.Data))
	r.parts = append(r.parts, r.slab[:headers:headers], a.Data[headers:])
	r.slab = r.slab[headers:]
	r.packets = append(r.packets, a)
	r.emit(superOffload(a.View, a.size), span{len(r.packets) - 1, len(r.packets)}, first)
}

// flush writes everything queued and frees the slab.
func (r *rx) flush() {
	r.closeGroup()
	out, spans := r.out, r.spans
	for len(out) > 0 {
		done, datagrams := r.burst(spans)
		r.write(out[:done], spans[:done])
		r.turns.after(datagrams)
		out, spans = out[done:], spans[done:]
	}
	r.packets, r.out, r.spans = r.packets[:0], r.out[:0], r.spans[:0]
	r.parts, r.slab = r.parts[:0], r.slabWhole
}

// burst is how many of what is queued to write at one time, up to where those that
// receive it should have a turn, and how many UDP datagrams these are.
func (r *rx) burst(spans []span) (count, datagrams int) {
	for i, s := range spans {
		if datagrams += r.udp(s); datagrams >= r.turns.left() {
			return i + 1, datagrams
		}
	}
	return len(spans), datagrams
}

// udp is the number of UDP datagrams in s.
func (r *rx) udp(s span) int {
	if r.packets[s.from].Protocol != packet.UDP {
		return 0
	}
	return s.to - s.from
}

// write writes what the packets of spans have become.
func (r *rx) write(out []tunnel.Outgoing, spans []span) {
	n, _ := r.device.Write(out)
	r.counters.add(RxWrites, n)
	for i := range out {
		switch {
		case out[i].Err != nil:
			r.writeFailed(&out[i], spans[i])
		case out[i].GSO != tunnel.GSONone:
			r.counters.add(RxSuperPackets, 1)
		}
	}
}

// writeFailed deals with an Outgoing that was not written: without its offload
// if that was the reason, and from then on others like it, too. It then comes after
// what was in the same batch.
func (r *rx) writeFailed(out *tunnel.Outgoing, from span) {
	packets, err := r.packets[from.from:from.to], out.Err
	if !errors.Is(err, tunnel.ErrOffload) || out.Offload == (tunnel.Offload{}) {
		r.writeLost(len(packets), err)
		return
	}
	r.refuse(out.Offload, err)
	r.counters.add(RxFallbacks, len(packets))
	for i := range packets {
		if packets[i].size > 0 {
			r.cut(&packets[i])
			continue
		}
		packets[i].finish()
		r.cutParts = append(r.cutParts[:0], packets[i].Data)
		r.cutOut = append(r.cutOut[:0], tunnel.Outgoing{Parts: r.cutParts})
		r.writeCut()
	}
}

// refuse stops the use of an offload the Device does not take.
func (r *rx) refuse(offload tunnel.Offload, err error) {
	name, flag := "checksum", &r.offloads.Checksum
	switch offload.GSO {
	case tunnel.GSOTCP4, tunnel.GSOTCP6:
		name, flag = "TCP segmentation", &r.offloads.TCP
	case tunnel.GSOUDP:
		name, flag = "UDP segmentation", &r.offloads.UDP
	}
	if *flag {
		*flag = false
		r.engine.ladder.deviceRefused(r.device.Name(), name, err)
	}
}

func (r *rx) writeLost(count int, err error) {
	r.counters.add(RxDropDevice, count)
	if !errors.Is(err, tunnel.ErrClosed) && r.logLimit.ready() {
		r.engine.logger.Warn("write to device failed", "device", r.device.Name(), "error", err)
	}
}

// cut writes a super-packet as finished segments.
func (r *rx) cut(a *arrival) {
	segments, err := packet.Segment(a.View, a.size, false)
	if err != nil {
		r.writeLost(1, err)
		return
	}
	headers := segments.HeaderLen()
	for more := true; more; {
		r.cutOut, r.cutParts = r.cutOut[:0], r.cutParts[:0]
		slab := r.cutSlab
		for len(r.cutOut) < cap(r.cutOut) && len(slab) >= headers {
			var payload []byte
			if payload, more = segments.Next(slab); !more {
				break
			}
			first := len(r.cutParts)
			r.cutParts = append(r.cutParts, slab[:headers:headers], payload)
			slab = slab[headers:]
			r.cutOut = append(r.cutOut, tunnel.Outgoing{Parts: r.cutParts[first:]})
		}
		r.writeCut()
	}
}

// writeCut writes r.cutOut, which needs no offload.
func (r *rx) writeCut() {
	n, err := r.device.Write(r.cutOut)
	r.counters.add(RxWrites, n)
	if err != nil {
		r.writeLost(len(r.cutOut)-n, err)
	}
}
