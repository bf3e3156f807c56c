package health

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestForeignAnswers holds that answers to nothing, to what is long forgotten, or
// come twice, change nothing, and that Answered neither waits nor allocates.
func TestForeignAnswers(t *testing.T) {
	run(t, func(w *world) {
		a, _ := w.pair(vxlanFirst)
		time.Sleep(20 * time.Second)
		before := a.health("b", vxlan)
		number := uint64(a.monitor.peers[peerKey{"b", true}].used().number) << 32
		// Not the first: b may not have been there yet, and its answer would count.
		for _, token := range []uint64{0, 1, number, number + 2, number + 5, number + 21, number + 1<<31, number - 1, ^uint64(0)} {
			a.monitor.Answered(token)
		}
		if after := a.health("b", vxlan); after != before {
			t.Errorf("%+v became %+v", before, after)
		}
	})
	m, err := New(Config{Prober: (*host)(nil), Logger: slog.New(slog.DiscardHandler), Changed: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(2*waitingAnswers, func() { m.Answered(7) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestHear holds which probes an answer may be to.
func TestHear(t *testing.T) {
	w := &way{Target: Target{MTU: fullMTU}, peer: &peer{}}
	for range 40 {
		w.note(smallSize, time.Now())
	}
	for sequence, want := range map[uint32]bool{0: false, 7: false, 8: false, 9: true, 40: true, 41: false, 1 << 31: false} {
		if got := w.hear(sequence, time.Now()); got != want {
			t.Errorf("answer to probe %d of 40: %v, want %v", sequence, got, want)
		}
		if w.hear(sequence, time.Now()) {
			t.Errorf("answer to probe %d counts twice", sequence)
		}
	}
}

func TestConfig(t *testing.T) {
	whole := Config{Prober: (*host)(nil), Logger: slog.New(slog.DiscardHandler), Changed: func() {}}
	for want, change := range map[string]func(c *Config){
		"Prober":   func(c *Config) { c.Prober = nil },
		"Logger":   func(c *Config) { c.Logger = nil },
		"Changed":  func(c *Config) { c.Changed = nil },
		"Interval": func(c *Config) { c.Interval = -1 },
	} {
		c := whole
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", want, err)
		}
	}
}
