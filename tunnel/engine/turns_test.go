package engine

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// recordedTurns records how many packets the host had got at every turn.
type recordedTurns struct {
	Poller
	rig *rig
	got [][]byte
	at  []int
}

func (p *recordedTurns) Yield() {
	finished, _ := p.rig.delivered()
	p.got = append(p.got, finished...)
	p.at = append(p.at, len(p.got))
}

func newTurns(r *rig) *recordedTurns {
	p := &recordedTurns{rig: r}
	w := r.engine.workers[0]
	w.rx[0].turns.poller, w.tx.turns.poller = p, p
	return p
}

// singles is n packets of growing size, which nothing joins.
func singles(n int, protocol func(tunneltest.Packet) tunneltest.Packet) (all [][]byte) {
	for i := range n {
		all = append(all, protocol(toHere(true, bytes.Repeat([]byte{byte(i)}, 10+i))).Bytes())
	}
	return all
}

// Receivers of UDP have a turn after every yieldAfter datagrams, whether these come
// in one batch or in many, alone or joined; nobody else needs one.
func TestReceiveTurns(t *testing.T) {
	joined := asUDP(toHere(true, make([]byte, 40*1000)))
	data, offload := joined.Super(1000)
	forty, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	asItIs := func(p tunneltest.Packet) tunneltest.Packet { return p }
	for name, test := range map[string]struct {
		batches [][][]byte
		at      []int
	}{
		"few":     {batches: [][][]byte{singles(yieldAfter-1, asUDP)}},
		"one":     {batches: [][][]byte{singles(yieldAfter+5, asUDP)}, at: []int{yieldAfter}},
		"several": {batches: [][][]byte{singles(2*yieldAfter, asUDP), singles(5, asUDP)}, at: []int{yieldAfter, 2 * yieldAfter}},
		"batches": {batches: [][][]byte{singles(20, asUDP), singles(20, asUDP)}, at: []int{yieldAfter}},
		"joined":  {batches: [][][]byte{forty, singles(3, asUDP)}, at: []int{40}},
		"TCP":     {batches: [][][]byte{stream(true, 60000, 1000), singles(60, asItIs)}},
	} {
		r := newRig(t, everything())
		p := newTurns(r)
		var want [][]byte
		for _, batch := range test.batches {
			r.inject(far, batch...)
			want = append(want, batch...)
		}
		rest, _ := r.delivered()
		r.equal(append(p.got, rest...), want)
		if !slices.Equal(p.at, test.at) {
			t.Errorf("%s: turns after %d packets, want %d", name, p.at, test.at)
		}
	}
}

// A packet that the Device refuses costs neither those behind it nor their receivers' turns.
func TestReceiveTurnsDeviceFails(t *testing.T) {
	for _, bad := range []int{0, 5, yieldAfter - 1, yieldAfter, 2*yieldAfter + 4} {
		r := newRig(t, everything())
		p := newTurns(r)
		packets := singles(2*yieldAfter+5, asUDP)
		r.device.Refuse(func(o tunnel.Outgoing) error {
			if bytes.Equal(slices.Concat(o.Parts...), packets[bad]) {
				return errors.New("no room")
			}
			return nil
		})
		r.inject(far, packets[:40]...)
		r.inject(far, packets[40:]...)
		rest, _ := r.delivered()
		r.equal(append(p.got, rest...), slices.Delete(slices.Clone(packets), bad, bad+1))
		if len(p.at) != 2 {
			t.Errorf("packet %d refused: turns after %d packets", bad, p.at)
		}
		r.want(map[Counter]uint64{RxDropDevice: 1})
	}
}

// Those that carry on what was sent have a turn, too, after as many UDP datagrams;
// of a super-packet each segment is one.
func TestSendTurns(t *testing.T) {
	single := func(size int, protocol func(tunneltest.Packet) tunneltest.Packet) tunnel.Outgoing {
		return out(protocol(toFar(true, make([]byte, size))).Bytes(), tunnel.Offload{})
	}
	asItIs := func(p tunneltest.Packet) tunneltest.Packet { return p }
	super, offload := asUDP(toFar(true, make([]byte, yieldAfter*1000))).Super(1000)
	for name, test := range map[string]struct {
		batches [][]tunnel.Outgoing
		turns   int
	}{
		"few":     {batches: [][]tunnel.Outgoing{slices.Repeat([]tunnel.Outgoing{single(100, asUDP)}, yieldAfter-1)}},
		"one":     {batches: [][]tunnel.Outgoing{slices.Repeat([]tunnel.Outgoing{single(100, asUDP)}, yieldAfter)}, turns: 1},
		"batches": {batches: slices.Repeat([][]tunnel.Outgoing{slices.Repeat([]tunnel.Outgoing{single(100, asUDP)}, 10)}, 8), turns: 2},
		"joined":  {batches: [][]tunnel.Outgoing{{out(super, offload)}}, turns: 1},
		"TCP":     {batches: [][]tunnel.Outgoing{slices.Repeat([]tunnel.Outgoing{single(100, asItIs)}, 2*yieldAfter-1)}},
	} {
		r := newRig(t, everything())
		p := newTurns(r)
		for _, batch := range test.batches {
			r.send(batch...)
		}
		if len(p.at) != test.turns {
			t.Errorf("%s: %d turns, want %d", name, len(p.at), test.turns)
		}
	}
}
