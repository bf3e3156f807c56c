package engine

import (
	"errors"

	"github.com/weft-net/weft/tunnel"
)

// flush sends everything queued and frees the slab.
func (t *tx) flush() {
	for _, boxes := range [...][]*outbox{t.boxes4, t.boxes6, t.sealed.boxes[:]} {
		for _, box := range boxes {
			if box == nil {
				continue
			}
			t.send(box, box.runs, box.owners)
			box.runs, box.owners = box.runs[:0], box.owners[:0]
		}
	}
	t.parts, t.slab, t.sealed.free, t.open = t.parts[:0], t.slabWhole, t.sealed.whole, openRun{}
}

// send hands runs to a Socket, going on after those that fail.
func (t *tx) send(box *outbox, runs []tunnel.Datagrams, owners []way) {
	for len(runs) > 0 {
		n, err := box.socket.Send(runs)
		for i := range runs[:n] {
			count := datagramCount(&runs[i])
			t.counters.add(TxDatagrams, count)
			if owners[i].path.runs.lowered() {
				t.engine.ladder.passed(owners[i], count)
			}
		}
		t.counters.add(TxRuns, n)
		if err == nil || n >= len(runs) {
			return
		}
		t.sendFailed(box, &runs[n], owners[n], err)
		runs, owners = runs[n+1:], owners[n+1:]
	}
}

// datagramCount is the number of datagrams in a run to be sent.
func datagramCount(run *tunnel.Datagrams) int {
	if run.SegmentSize == 0 {
		return 1
	}
	return (runBytes(run) + run.SegmentSize - 1) / run.SegmentSize
}

// runBytes is the number of bytes in a run to be sent.
func runBytes(run *tunnel.Datagrams) int {
	total := 0
	for _, part := range run.Parts {
		total += len(part)
	}
	return total
}

// sendFailed deals with a run that was not sent.
func (t *tx) sendFailed(box *outbox, run *tunnel.Datagrams, w way, err error) {
	count := datagramCount(run)
	switch {
	case errors.Is(err, tunnel.ErrOffload) && run.SegmentSize != 0:
		t.counters.add(TxFallbacks, 1)
		box.learnOffloads()
		t.engine.ladder.refused(w, count, err)
		t.sendSingly(box, run, w)
	case errors.Is(err, tunnel.ErrTooBig):
		// The prober lowers the path's MTU, and the sender is told of its next packet.
		if run.SegmentSize == 0 {
			t.engine.prober.tooBig(w.path, runBytes(run)-overhead(w.peer))
			t.drop(TxDropTooBig)
			return
		}
		t.engine.prober.tooBig(w.path, run.SegmentSize-overhead(w.peer))
		// A run is cut by hardware that cannot fragment; single datagrams may get through.
		t.counters.add(TxFallbacks, 1)
		t.sendSingly(box, run, w)
	case errors.Is(err, tunnel.ErrFull):
		t.counters.add(TxDropFull, count)
	default:
		t.counters.add(TxDropSend, count)
		if !errors.Is(err, tunnel.ErrClosed) && t.logLimit.ready() {
			t.engine.logger.Warn("send failed", "peer", w.peer.Name, "endpoint", w.to, "error", err)
		}
	}
}

// sendSingly sends the datagrams of a run one by one. A part is either a whole
// number of them, or one of the parts of one.
func (t *tx) sendSingly(box *outbox, run *tunnel.Datagrams, w way) {
	parts := run.Parts
	for len(parts) > 0 {
		t.singles, t.singleOwners, t.singleParts = t.singles[:0], t.singleOwners[:0], t.singleParts[:0]
		for len(parts) > 0 && len(t.singles) < cap(t.singles) {
			first, size := len(t.singleParts), 0
			for len(parts) > 0 && size < run.SegmentSize {
				n := min(len(parts[0]), run.SegmentSize-size)
				t.singleParts = append(t.singleParts, parts[0][:n])
				size += n
				if parts[0] = parts[0][n:]; len(parts[0]) == 0 {
					parts = parts[1:]
				}
			}
			single := tunnel.Datagrams{Addr: run.Addr, ECN: run.ECN, Flow: run.Flow, Parts: t.singleParts[first:len(t.singleParts):len(t.singleParts)]}
			t.singles, t.singleOwners = append(t.singles, single), append(t.singleOwners, w)
		}
		t.send(box, t.singles, t.singleOwners)
	}
}
