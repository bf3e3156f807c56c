package pathmtu

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// A path that carries what the link does is left as it is, at little cost.
func TestConfirm(t *testing.T) {
	for _, ceiling := range []int{577, 1230, 1450, 8950, 65535} {
		s := newSim(t, testConfig(), ceiling)
		s.run(time.Minute)
		s.want(ceiling, "after a minute")
		if s.large != 0 || s.sent > 125 {
			t.Errorf("ceiling %d: %d probes in a minute, %v too large", ceiling, s.sent, s.large)
		}
	}
}

// A path that shrinks without a word is noticed within a second, and then used
// to the byte.
func TestShrink(t *testing.T) {
	for _, ceiling := range []int{1450, 8950} {
		for limit := 576; limit < ceiling; limit += 37 {
			s := newSim(t, testConfig(), ceiling)
			s.run(time.Duration(10000+limit) * time.Millisecond)
			s.limit, s.large = limit, 0
			s.run(time.Second)
			if s.search.MTU() > limit || s.large > time.Second {
				t.Errorf("ceiling %d: MTU %d a second after %d", ceiling, s.search.MTU(), limit)
			}
			s.run(5 * time.Second)
			s.want(limit, "a little later")
			s.sent = 0
			s.run(time.Minute)
			s.want(limit, "a minute later")
			if s.sent > 200 {
				t.Errorf("%d probes in a minute", s.sent)
			}
		}
	}
}

// The usual sizes are hit at once, so that senders are told one figure.
func TestShrinkToLikely(t *testing.T) {
	for _, limit := range []int{1230, 1330, 1350, 1370, 1442 - 12, 1450} {
		s := newSim(t, testConfig(), 8950)
		s.run(10 * time.Second)
		s.limit = limit
		for s.search.MTU() == 8950 {
			s.run(time.Millisecond)
		}
		s.want(limit, "the first other MTU")
	}
}

// A path that never was what the link promises.
func TestSmallFromTheStart(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.limit = 1350
	s.run(time.Second)
	s.want(1350, "after a second")
}

func TestFarPeers(t *testing.T) {
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 200 * time.Millisecond, 900 * time.Millisecond, 2 * time.Second} {
		s := newSim(t, testConfig(), 1450)
		s.delay, s.jitter = delay, delay/4
		s.run(time.Minute)
		s.want(1450, fmt.Sprint("at a distance of ", delay))
		s.limit = 1350
		s.run(time.Second + 10*delay)
		s.want(1350, fmt.Sprint("shrunk, at a distance of ", delay))
	}
}

func TestGrow(t *testing.T) {
	for _, limit := range []int{576, 1000, 1350} {
		s := newSim(t, testConfig(), 1450)
		s.limit = limit
		s.run(5 * time.Second)
		s.want(limit, "small")
		for _, limit := range []int{limit + 1, 1399, 1450} {
			s.limit = limit
			s.run(5 * s.search.config.Raise)
			s.want(limit, "grown")
		}
	}
}

// The longer a path has been small the more rarely it is looked whether it has
// grown, up to the raise timer.
func TestGrowLate(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.limit = 1350
	s.run(24 * time.Hour)
	s.want(1350, "after a day")
	s.sent = 0
	s.run(time.Hour)
	if s.sent > 3600*2+6*10 {
		t.Errorf("%d probes in an hour", s.sent)
	}
	s.limit = 1450
	s.run(s.search.config.RaiseMax + time.Minute)
	s.want(1450, "grown after a day")
	if s.large > 2*time.Second {
		t.Errorf("%v too large", s.large)
	}
}

// A peer that answers nothing, from the start or from some time on, says
// nothing of sizes, and is not asked often.
func TestSilence(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.silent = true
	s.run(time.Hour)
	s.want(1450, "never answered")
	if s.sent > 3*370 {
		t.Errorf("%d probes in an hour", s.sent)
	}
	for s.search.Busy() {
		s.run(time.Millisecond)
	}

	s = newSim(t, testConfig(), 1450)
	s.limit = 1350
	s.run(time.Minute)
	s.silent = true
	s.run(5 * time.Minute)
	s.want(1350, "silent since minutes")
	s.silent, s.limit = false, 1250
	s.run(s.search.config.Silence + 5*time.Second)
	s.want(1250, "there again, and smaller")
	s.silent = true
	s.run(5 * time.Minute)
	s.silent, s.limit = false, 1450
	s.run(15 * time.Minute)
	s.want(1450, "there again, and larger")
}

func TestHint(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.run(10100 * time.Millisecond)
	s.limit = 1350
	s.search.Hint(s.now, 1350)
	s.want(1350, "at once")
	s.run(9 * time.Second)
	s.want(1350, "looked into")
	if s.large != 0 {
		t.Errorf("%v too large", s.large)
	}
	s.search.Hint(s.now, 1400)
	s.want(1350, "a larger hint")
	s.limit = 1450
	s.run(2 * s.search.config.Raise)
	s.want(1450, "raised")

	// A hint that is not true, as anybody may send, does not last.
	s.search.Hint(s.now, 100)
	s.want(576, "not below the floor")
	s.run(time.Second)
	s.want(1450, "refuted")

	// An answer that was under way does not refute it.
	s.delay = 300 * time.Millisecond
	s.run(time.Second)
	for len(s.answers) == 0 {
		s.run(time.Millisecond)
	}
	s.limit = 1350
	s.search.Hint(s.now, 1350)
	s.large = 0
	s.run(10 * time.Second)
	if s.want(1350, "in spite of an older answer"); s.large != 0 {
		t.Errorf("an older answer counts for %v", s.large)
	}
}

// A peer that never answers cannot refute a hint; it holds as long as one in
// the system's own cache would.
func TestHintInSilence(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.silent = true
	s.run(time.Minute)
	s.search.Hint(s.now, 1350)
	s.run(s.search.config.RaiseMax - time.Minute)
	s.want(1350, "held")
	s.run(2 * time.Minute)
	s.want(1450, "forgotten")
}

func TestCeiling(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.run(10 * time.Second)
	s.search.SetCeiling(s.now, 1400)
	s.want(1400, "lower ceiling")
	s.run(time.Minute)
	s.want(1400, "lower ceiling")

	s.limit = 3000
	s.search.SetCeiling(s.now, 8950)
	s.want(1400, "a higher ceiling is not trusted")
	s.run(5 * time.Second)
	s.want(3000, "a higher ceiling is searched")
	if s.large != 0 {
		t.Errorf("%v too large", s.large)
	}
	s.search.SetCeiling(s.now, 5000)
	s.run(time.Minute)
	s.want(3000, "a ceiling above what passes")
	s.search.SetCeiling(s.now, 3000)
	s.search.SetCeiling(s.now, 3001)
	s.run(5 * time.Second)
	s.want(3000, "a ceiling just above what passes")
	s.search.SetCeiling(s.now, 500)
	s.want(500, "a ceiling below the floor")
	s.sent = 0
	s.run(time.Minute)
	if s.sent != 0 {
		t.Errorf("%d probes where there is nothing to find", s.sent)
	}
	s.search.SetCeiling(s.now, 1450)
	s.run(5 * time.Second)
	s.want(1450, "a ceiling above the floor again")
}

// A peer that never answers gets what the ceiling says.
func TestCeilingInSilence(t *testing.T) {
	s := newSim(t, testConfig(), 1400)
	s.silent = true
	s.run(time.Minute)
	s.search.SetCeiling(s.now, 1450)
	s.run(20 * time.Second)
	s.want(1450, "higher ceiling")
	s.search.SetCeiling(s.now, 1400)
	s.want(1400, "lower ceiling")
}

// Loss alone is seldom taken for a small path, and leaves no trace: a healthy
// path is used in full soon after.
func TestLoss(t *testing.T) {
	for _, tt := range []struct {
		loss   float64
		lowest int // times in 5 hours that the MTU is lowered, at most
	}{{0.02, 0}, {0.1, 0}, {0.2, 2}, {0.36, 40}, {0.6, 1000}, {1, 0}} {
		lowered := 0
		for seed := range uint64(5) {
			s := newSim(t, testConfig(), 1450)
			s.random = rand.New(rand.NewPCG(seed, 7))
			s.loss, s.jitter = tt.loss, 10*time.Millisecond
			for range 3600 {
				before := s.search.MTU()
				if s.run(time.Second); s.search.MTU() < before {
					lowered++
				}
			}
			s.loss = 0
			s.run(3 * s.search.config.Raise)
			s.want(1450, fmt.Sprintf("after loss of %v, seed %d", tt.loss, seed))
		}
		if lowered > tt.lowest {
			t.Errorf("loss %v: lowered %d times in 5 hours", tt.loss, lowered)
		}
	}
}

// With loss, too, a small path is found.
func TestShrinkWithLoss(t *testing.T) {
	for seed := range uint64(50) {
		s := newSim(t, testConfig(), 1450)
		s.random = rand.New(rand.NewPCG(seed, 7))
		s.loss, s.jitter = 0.1, time.Millisecond
		s.run(10 * time.Second)
		s.limit, s.large = 1337, 0
		s.run(10 * time.Second)
		if s.want(1337, fmt.Sprint("seed ", seed)); s.large > 2*time.Second {
			t.Errorf("seed %d: %v too large", seed, s.large)
		}
	}
}

// TestAnything lets anything happen in any order, and then nothing more: in the
// end the MTU is what passes.
func TestAnything(t *testing.T) {
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 3))
		s := newSim(t, testConfig(), 600+random.IntN(9000))
		s.random = random
		for range 30 {
			switch random.IntN(8) {
			case 0:
				s.limit = 576 + random.IntN(9000)
			case 1:
				s.loss = random.Float64() * random.Float64()
			case 2:
				s.silent = !s.silent
			case 3:
				s.delay = time.Duration(random.IntN(500)) * time.Millisecond
				s.jitter = time.Duration(random.IntN(100)) * time.Millisecond
			case 4:
				s.search.Hint(s.now, random.IntN(9000))
			case 5:
				s.search.SetCeiling(s.now, 600+random.IntN(9000))
			case 6: // what nobody asked for
				s.search.Answered(s.now, random.IntN(9000)-10, s.now.Add(time.Duration(random.IntN(4000)-3000)*time.Millisecond))
			}
			s.run(time.Duration(random.IntN(8000)) * time.Millisecond)
		}
		s.loss, s.silent = 0, false
		s.run(2*s.search.config.RaiseMax + time.Minute)
		s.want(min(s.limit, s.search.ceiling), fmt.Sprint("seed ", seed))
	}
}

// A path that nobody uses is left alone and taken up again.
func TestPause(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.run(10 * time.Second)
	for s.search.Busy() {
		s.run(time.Millisecond)
	}
	s.now = s.now.Add(time.Hour)
	s.limit, s.large = 1350, 0
	s.run(time.Second)
	s.want(1350, "taken up again")
	if s.large > 500*time.Millisecond {
		t.Errorf("%v too large: it is due long since", s.large)
	}
}

// One lost round after a long pause is not yet the silence of a peer that never answers.
func TestPauseAndLoss(t *testing.T) {
	s := newSim(t, testConfig(), 1450)
	s.limit = 1350
	for s.run(10 * time.Second); s.search.Busy(); {
		s.run(time.Millisecond)
	}
	s.now = s.now.Add(time.Hour)
	s.silent, s.large = true, 0
	s.run(500 * time.Millisecond)
	s.silent = false
	s.run(time.Minute)
	if s.want(1350, "after a pause"); s.large != 0 {
		t.Errorf("%v too large", s.large)
	}
}

func TestCheck(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"Floor":    func(c *Config) { c.Floor = 0 },
		"Tries":    func(c *Config) { c.Tries = 0 },
		"timeouts": func(c *Config) { c.MinTimeout = 2 * c.MaxTimeout },
		"Raise":    func(c *Config) { c.RaiseMax = c.Raise / 2 },
		"Confirm":  func(c *Config) { c.Confirm = 0 },
		"Silence":  func(c *Config) { c.Silence = 0 },
	} {
		config := testConfig()
		change(config)
		if err := config.Check(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
