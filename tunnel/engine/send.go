package engine

import (
	"errors"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/vxlan"
)

// flush sends everything queued and frees the slab.
func (t *tx) flush() {
	for _, boxes := range [...][]*outbox{t.boxes4, t.boxes6} {
		for _, box := range boxes {
			t.send(box, box.runs, box.owners)
			box.runs, box.owners = box.runs[:0], box.owners[:0]
		}
	}
	t.parts, t.slab, t.open = t.parts[:0], t.slabWhole, openRun{}
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
			t.engine.prober.tooBig(w.path, runBytes(run)-vxlan.Overhead)
			t.drop(TxDropTooBig)
			return
		}
		t.engine.prober.tooBig(w.path, run.SegmentSize-vxlan.Overhead)
		// A run is cut by hardware that cannot fragment; single datagrams may get through.
		t.counters.add(TxFallbacks, 1)
		t.sendSingly(box, run, w)
	case errors.Is(err, tunnel.ErrFull):
		t.counters.add(TxDropFull, count)
	default:
		t.counters.add(TxDropSend, count)
		if !errors.Is(err, tunnel.ErrClosed) && t.logLimit.ready() {
			t.engine.logger.Warn("send failed", "peer", w.peer.Name, "endpoint", w.peer.Endpoint, "error", err)
		}
	}
}

// sendSingly sends the datagrams of a run one by one. Its parts never straddle
// two datagrams.
func (t *tx) sendSingly(box *outbox, run *tunnel.Datagrams, w way) {
	parts := run.Parts
	for len(parts) > 0 {
		t.singles, t.singleOwners = t.singles[:0], t.singleOwners[:0]
		for len(parts) > 0 && len(t.singles) < cap(t.singles) {
			n, size := 0, 0
			for n < len(parts) && size < run.SegmentSize {
				size += len(parts[n])
				n++
			}
			single := tunnel.Datagrams{Addr: run.Addr, ECN: run.ECN, Flow: run.Flow, Parts: parts[:n:n]}
			t.singles, t.singleOwners = append(t.singles, single), append(t.singleOwners, w)
			parts = parts[n:]
		}
		t.send(box, t.singles, t.singleOwners)
	}
}
