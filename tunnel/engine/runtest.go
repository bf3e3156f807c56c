package engine

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// A run may leave without an error and still not arrive: where hardware or a
// driver cuts it wrongly, what it was cut into is dropped for its checksums, and
// only the silence tells. So the first thing a path in use carries is a run of
// echo requests with known patterns, three of one size and a shorter one. It is
// repeated until every place in the run has had an answer. Where single probes
// come back meanwhile but some place never does, the peer gets single datagrams.
const (
	runTestMembers = 4
	runTestSize    = 512 // inner bytes, less than every path carries; the last has runTestLast
	runTestLast    = 300
	runTestTries   = 5
	runTestWait    = time.Second // for the answers to one try: single probes go out twice as often
	// runTestEvery is the time to the next test after one that was passed, and
	// after one that cannot be judged as the peer answers nothing.
	runTestEvery = 10 * time.Minute
)

// runTestMark distinguishes the answers: it stands where others bear a size,
// above any size, and the member's place below it.
const runTestMark = 1 << 24

// runTest is what is known of runs on one path. It is the prober's.
type runTest struct {
	due    time.Time
	begun  time.Time // of the try under way; zero: none
	heard  uint      // places that have had an answer, by bit
	lost   int       // tries in a row that left some without
	failed bool
	wait   time.Duration // after the last failure
}

// over ends a test. The next is due after some time.
func (r *runTest) over(now time.Time, next time.Duration) {
	r.begun, r.heard, r.lost = time.Time{}, 0, 0
	r.due = now.Add(next)
}

// testRuns judges the try under way on a path, if its time is up, and sends the
// next one if that is due. It returns the number of datagrams sent.
func (p *prober) testRuns(to *path, now time.Time) int {
	test := &to.test
	if now.Before(test.due) {
		return 0
	}
	if !test.begun.IsZero() {
		if !to.search.Heard().After(test.begun) {
			test.over(now, runTestEvery)
			return 0
		}
		if test.lost++; test.lost >= runTestTries {
			p.runsFailed(to, now)
			return 0
		}
	}
	switch err := p.sendRunTest(to, now); {
	case errors.Is(err, tunnel.ErrOffload):
		// The workers meet the same refusal, or are not to send runs at all.
		test.over(now, runTestEvery)
		return 0
	case err != nil:
		test.over(now, runTestWait)
		return 0
	}
	test.begun, test.due = now, now.Add(runTestWait)
	return runTestMembers
}

func (p *prober) runsFailed(to *path, now time.Time) {
	test := &to.test
	test.wait = min(max(2*test.wait, ladderRetry), ladderRetryMax)
	test.failed = true
	test.over(now, test.wait)
	p.counters.add(RunTestsFailed, 1)
	p.counters.publish()
	p.ladder.failed(to)
}

// heardRun takes in the answer from one place of a run.
func (p *prober) heardRun(to *path, place int, sent, now time.Time) {
	test := &to.test
	if test.begun.IsZero() || place >= runTestMembers || sent.After(now) {
		return
	}
	if test.heard |= 1 << place; test.heard != 1<<runTestMembers-1 {
		return
	}
	if test.failed {
		p.ladder.proven(to)
	}
	test.failed, test.wait = false, 0
	test.over(now, runTestEvery)
}

// sendRunTest sends one run of echo requests.
func (p *prober) sendRunTest(to *path, now time.Time) error {
	run := p.buffer[:0]
	for place := range runTestMembers {
		size := runTestSize
		if place == runTestMembers-1 {
			size = runTestLast
		}
		datagram := run[len(run) : len(run)+overhead(to.peer)+size]
		data := p.data(now, runTestMark|uint32(place), to.number)
		if err := p.putProbe(to, datagram, append(data, runTestPattern(place, size)...)); err != nil {
			return err
		}
		run = run[:len(run)+len(datagram)]
	}
	socket := p.socket(to)
	if socket == nil {
		return errNoProbe
	}
	if err := socket.SendRun(to.endpoint(), run, overhead(to.peer)+runTestSize); err != nil {
		return err
	}
	p.counters.add(Probes, runTestMembers)
	p.counters.publish()
	return nil
}

// runTestPattern is what follows the probe's data in a packet of so many bytes:
// other bytes at every place, so that no two parts of a run are alike.
func runTestPattern(place, size int) []byte {
	const headers = 40 + 8 // the longer ones, of IPv6 and ICMP
	pattern := make([]byte, size-headers-probeData)
	for i := range pattern {
		pattern[i] = byte(i*7 + i>>8 + place*61)
	}
	return pattern
}

// intactRun reports whether the answer to a member of a run brings back what was sent.
func intactRun(echo packet.Echo) bool {
	mark := binary.BigEndian.Uint32(echo.Data[16:])
	place := int(mark &^ runTestMark)
	if place >= runTestMembers {
		return false
	}
	size := runTestSize
	if place == runTestMembers-1 {
		size = runTestLast
	}
	pattern, rest := runTestPattern(place, size), echo.Data[probeData:]
	return len(rest) >= len(pattern) && string(rest[:len(pattern)]) == string(pattern)
}
