package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// refusing is a Socket's answer to runs of more than most datagrams to one
// peer, and counts the tries.
type refusing struct {
	r     *rig
	most  int
	err   error
	tries int
}

func (s *refusing) send(run tunnel.Datagrams) error {
	if run.Addr == farOuter && datagramCount(&run) > s.most {
		s.tries++
		return fmt.Errorf("send run: %w", s.err)
	}
	return s.r.record(run)
}

// bulk sends a super-packet of 20 segments to a host, and looks whether all of
// it got out.
func (r *rig) bulk(to host) (runs []int) {
	r.t.Helper()
	data, offload := between(here, to, true, make([]byte, 20*1000)).Super(1000)
	want, err := tunneltest.Finish(data, offload)
	if err != nil {
		r.t.Fatal(err)
	}
	r.sent = nil
	r.send(out(data, offload))
	r.equal(r.inners(), want)
	for i := range r.sent {
		run := r.sent[i]
		run.Parts = [][]byte{run.Data}
		runs = append(runs, datagramCount(&run))
	}
	return runs
}

func (r *rig) logged(text string) int { return strings.Count(r.log.String(), text) }

// A route that cannot cut gets single datagrams, with no further try until it
// may have changed; other peers keep their runs, and nothing is ever lost.
func TestLadderOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		eio := errors.New("input/output error")
		socket := &refusing{r: r, most: 1, err: fmt.Errorf("%w: %w", tunnel.ErrOffload, eio)}
		r.socket.Refuse(socket.send)
		singles, run := slices.Repeat([]int{1}, 20), []int{20}
		expect := func(when string, to host, want []int, tries int) {
			t.Helper()
			if got := r.bulk(to); !slices.Equal(got, want) || socket.tries != tries {
				t.Errorf("%s: runs of %v after %d tries, want %v after %d", when, got, socket.tries, want, tries)
			}
		}
		expect("first", far, singles, 1)
		expect("second", far, singles, 1)
		expect("other peer", thrd, run, 1)
		r.setPeers(append(far.peers(), thrd.peers()...))
		expect("peers set again", far, singles, 1)
		if got := r.engine.Fallbacks(); len(got) != 1 || !strings.Contains(got[0], "192.0.2.2:8472") ||
			!strings.Contains(got[0], "one by one") || !strings.Contains(got[0], "input/output error") {
			t.Errorf("fallbacks %q", got)
		}
		time.Sleep(ladderRetry)
		expect("retry", far, singles, 2)
		time.Sleep(ladderRetry)
		expect("too early", far, singles, 2)
		time.Sleep(ladderRetry)
		expect("second retry", far, singles, 3)
		if n := r.logged("going on without"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, r.log)
		}
		socket.most = noLimit
		expect("repaired, not known", far, singles, 3)
		time.Sleep(4 * ladderRetry)
		expect("repaired", far, run, 3)
		expect("stays so", far, run, 3)
		if got := r.engine.Fallbacks(); len(got) != 0 || r.logged("runs pass again") != 1 {
			t.Errorf("fallbacks %q, log\n%s", got, r.log)
		}
		if got := r.engine.Stats().Value(TxFallbacks); got != 3 {
			t.Errorf("%d fallbacks counted", got)
		}
	})
}

// Runs that may be too long are halved until they pass.
func TestLadderShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		socket := &refusing{r: r, most: 6, err: fmt.Errorf("%w: %w", tunnel.ErrOffload, tunnel.ErrShorter)}
		r.socket.Refuse(socket.send)
		r.bulk(far) // 20 refused
		r.bulk(far) // two of 10 refused
		if got, want := r.bulk(far), []int{5, 5, 5, 5}; !slices.Equal(got, want) {
			t.Errorf("runs of %v, want %v", got, want)
		}
		if got := r.engine.Fallbacks(); len(got) != 1 || !strings.Contains(got[0], "at most 5") {
			t.Errorf("fallbacks %q", got)
		}
		socket.most = 1
		r.bulk(far)
		r.bulk(far)
		if got := r.bulk(far); len(got) != 20 {
			t.Errorf("runs of %v, want none", got)
		}
	})
}

// What concerned a peer goes with it.
func TestLadderForgets(t *testing.T) {
	r := newRig(t, everything())
	r.socket.Refuse((&refusing{r: r, most: 1, err: tunnel.ErrOffload}).send)
	r.bulk(far)
	r.setPeers(thrd.peers())
	if got := r.engine.Fallbacks(); len(got) != 0 {
		t.Errorf("fallbacks %q", got)
	}
}

// What the Device refuses is said once, whichever worker meets it.
func TestLadderDevice(t *testing.T) {
	r := newRig(t, everything())
	r.device.Refuse(func(p tunnel.Outgoing) error {
		if p.GSO != tunnel.GSONone {
			return fmt.Errorf("write: %w", tunnel.ErrOffload)
		}
		return nil
	})
	for range 2 {
		for _, p := range []tunneltest.Packet{toHere(true, make([]byte, 4000)), asUDP(toHere(true, make([]byte, 4000)))} {
			data, offload := p.Super(1000)
			want, err := tunneltest.Finish(data, offload)
			if err != nil {
				t.Fatal(err)
			}
			r.inject(far, want...)
			got, _ := r.delivered()
			r.equal(got, want)
		}
	}
	got := r.engine.Fallbacks()
	if len(got) != 2 || !strings.HasPrefix(got[0], "TCP segmentation by weft0: ") || !strings.HasPrefix(got[1], "UDP segmentation by weft0: ") {
		t.Errorf("fallbacks %q", got)
	}
	if n := r.logged("going on without"); n != 2 {
		t.Errorf("logged %d times:\n%s", n, r.log)
	}
}
