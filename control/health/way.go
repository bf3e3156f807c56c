package health

import (
	"cmp"
	"fmt"
	"time"

	"github.com/weft-net/weft/tunnel/schedule"
)

// remembered is the number of probes that loss is counted over, and that an
// answer may be late by.
const remembered = 32

// way is what is known of one Target.
type way struct {
	Target
	schedule.Entry // by which it waits for its next step

	peer   *peer
	number uint32 // its own, in tokens

	probes   [remembered]probe // by sequence
	sequence uint32            // of the last probe
	sent     uint64
	got      uint64
	tried    time.Time // the last probe
	heard    time.Time // the last answer; zero: never
	rtt      time.Duration
	good     int // answers in a row
	missed   int // probes in a row without an answer

	fullMissed, middleMissed int // the same, of probes of these sizes
	fullPassed               bool
	middle                   bool // the last large one was of middleSize
	untilFull                int  // probes

	since    time.Time     // in use
	failed   string        // why
	failedAt time.Time     // when
	backoff  time.Duration // between probes of a failed way
	// unknownUntil is when a failed way that cannot be probed counts as good again.
	unknownUntil time.Time
	returned     time.Time // failed no more
	vain         int       // returns in vain, one after the other
	unsent       string    // why nothing can be sent
	barred       bool      // it was not tried for that, when its host was given up
	unknown      string    // why it cannot be probed
}

type probe struct {
	at    time.Time
	size  int
	state probeState
}

type probeState uint8

const (
	probeNone probeState = iota
	probeWaits
	probeAnswered
	probeLost
)

// size is that of the next ordinary probe. What is to be taken again has to pass
// packets that are of use.
func (w *way) size() int {
	if w.failed != "" {
		return min(middleSize, w.MTU)
	}
	return min(smallSize, w.MTU)
}

// largeSize is that of a probe to be sent beside it, if one is due.
func (w *way) largeSize() (size int, due bool) {
	if !w.InUse || w.failed != "" || w.missed > 0 || w.unknown != "" {
		return 0, false
	}
	if w.untilFull--; w.untilFull > 0 {
		return 0, false
	}
	w.untilFull = fullEvery
	if w.fullMissed > 0 {
		w.untilFull = fullAgain
	}
	// Where full ones are lost, every other one tells whether the way is of use.
	if w.middle = w.fullMissed >= fullLosses && !w.middle; w.middle {
		return min(middleSize, w.MTU), true
	}
	return w.MTU, true
}

// note enters a probe, and returns its token.
func (w *way) note(size int, now time.Time) (token uint64) {
	w.sequence++
	w.sent++
	w.tried = now
	w.probes[w.sequence%remembered] = probe{at: now, size: size, state: probeWaits}
	return uint64(w.number)<<32 | uint64(w.sequence)
}

// withdraw takes the last probe back.
func (w *way) withdraw() {
	w.probes[w.sequence%remembered] = probe{}
	w.sent--
}

// timeout is how long an answer may take before the way is in doubt. It may still
// come later.
func (w *way) timeout() time.Duration { return min(max(quick, 3*w.rtt), time.Second) }

// deadline is when the oldest probe that waits is overdue.
func (w *way) deadline() (oldest time.Time, waiting bool) {
	for _, p := range w.probes {
		if p.state == probeWaits && (!waiting || p.at.Before(oldest)) {
			oldest, waiting = p.at, true
		}
	}
	return oldest.Add(w.timeout()), waiting
}

// expire counts the probes that are overdue.
func (w *way) expire(now time.Time) {
	for i := range w.probes {
		p := &w.probes[i]
		if p.state != probeWaits || now.Before(p.at.Add(w.timeout())) {
			continue
		}
		p.state = probeLost
		switch {
		case p.size <= smallSize || w.failed != "":
			w.miss(p.at)
		case p.size <= middleSize:
			w.middleMissed++
		default:
			w.fullMissed++
		}
	}
}

// miss counts a lost probe. That of a failed way has the next wait longer, unless
// all ways were being probed anyway.
func (w *way) miss(at time.Time) {
	w.missed++
	w.good = 0
	if w.failed != "" && !w.peer.doubtful() && !w.peer.silent && at.After(w.peer.settled) {
		w.backoff = min(2*w.backoff, maxBackoff)
	}
}

// hear takes in an answer, and says whether it is one.
func (w *way) hear(sequence uint32, at time.Time) bool {
	p := &w.probes[sequence%remembered]
	if w.sequence-sequence >= remembered || p.state != probeWaits && p.state != probeLost {
		return false
	}
	p.state = probeAnswered
	w.got++
	w.heard, w.missed = at, 0
	w.good++
	rtt := max(at.Sub(p.at), 1)
	if w.rtt == 0 {
		w.rtt = rtt
	}
	w.rtt += (rtt - w.rtt) / 8
	if p.size > smallSize && w.failed == "" {
		w.middleMissed = 0
	}
	if p.size > middleSize || p.size == w.MTU {
		w.fullMissed, w.fullPassed = 0, true
	}
	return true
}

// silence is the reason for failing a way that answers no more.
func (w *way) silence() string {
	return fmt.Sprintf("no answer by %s: sent %d, got 0", w.name(), w.missed)
}

func (w *way) name() string {
	if w.Port == 0 {
		return string(w.ID.Encap)
	}
	return fmt.Sprintf("%s (UDP %d)", w.ID.Encap, w.Port)
}

// Full says what became of probes of a way's MTU.
type Full string

// What can become of them. With FullLost smaller ones are answered.
const (
	FullUnknown Full = ""
	FullPasses  Full = "passes"
	FullLost    Full = "lost"
)

// Health is what is known of a way. One that is neither in use nor failed is
// probed only while that in use is in doubt.
type Health struct {
	RTT       time.Duration // smoothed; 0: no answer yet
	Loss      float64       // of the last 32 probes
	Sent, Got uint64
	LastHeard time.Time // zero: never
	Full      Full
	Failed    string // why it is not to be taken
	// Trouble is what is wrong with a way that may be taken all the same.
	Trouble string
}

func (w *way) health() Health {
	h := Health{RTT: w.rtt, Sent: w.sent, Got: w.got, LastHeard: w.heard, Failed: w.failed}
	var lost, settled int
	for _, p := range w.probes {
		switch p.state {
		case probeLost:
			lost++
			settled++
		case probeAnswered:
			settled++
		}
	}
	if settled > 0 {
		h.Loss = float64(lost) / float64(settled)
	}
	switch {
	case w.fullMissed >= fullLosses && w.missed == 0:
		h.Full = FullLost
	case w.fullPassed:
		h.Full = FullPasses
	}
	var full, silent string
	if h.Full == FullLost {
		full = fmt.Sprintf("packets of %d bytes get no answer, smaller ones do", w.MTU)
	}
	if w.InUse && (w.peer.silent || len(w.peer.ways) == 1 && w.missed >= losses) {
		silent = noWay
	}
	h.Trouble = cmp.Or(w.unknown, w.unsent, silent, full)
	return h
}
