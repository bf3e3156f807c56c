package datapath

import (
	"testing"
	"time"
)

func TestSpin(t *testing.T) {
	now := time.Now()
	s := newSpin(DefaultBusyPoll)
	if s.worthwhile(now) {
		t.Error("spins before the first sleep")
	}
	s.slept(DefaultBusyPoll - 1)
	if !s.worthwhile(now) {
		t.Error("does not spin after a short sleep")
	}
	s.slept(DefaultBusyPoll)
	if s.worthwhile(now) {
		t.Error("spins after a long sleep")
	}
	s.slept(0)
	if !s.yielded(now, patience-1) || !s.worthwhile(now) {
		t.Error("does not go on after a short yield")
	}
	if (&spin{soon: true}).worthwhile(now) {
		t.Error("spins though it is off")
	}
}

// The more often others want the processor, the longer it sleeps at once.
func TestSpinPauses(t *testing.T) {
	now := time.Now()
	s := newSpin(DefaultBusyPoll)
	s.slept(0)
	last := time.Duration(0)
	for range 12 {
		if s.yielded(now, patience) || s.worthwhile(now.Add(s.pause-1)) || !s.worthwhile(now.Add(s.pause)) {
			t.Fatalf("after a long yield: %+v", s)
		}
		if s.pause < minPause || s.pause > maxPause || s.pause < last {
			t.Fatalf("pause is %v after one of %v, want one that grows from %v to %v", s.pause, last, minPause, maxPause)
		}
		last = s.pause
		now = now.Add(last)
	}
	if last != maxPause {
		t.Errorf("the last pause is %v, want %v", last, maxPause)
	}
	for range 10_000 {
		s.hit()
	}
	if s.yielded(now, time.Second); s.pause > 2*minPause {
		t.Errorf("pause is %v though nobody has wanted the processor for long, want about %v", s.pause, minPause)
	}
}
