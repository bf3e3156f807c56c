package pathmtu

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// testConfig is that of an inner IPv4 path over IPv4.
func testConfig() *Config {
	config := Defaults()
	config.Floor = 576
	for _, outer := range []int{1280, 1340, 1380, 1400, 1420, 1440, 1450, 1460, 1476, 1480, 1492, 1500, 4352, 8896, 9000} {
		config.Likely = append(config.Likely, outer-50)
	}
	return &config
}

// sim is a search and the path that it searches, in a time of their own.
type sim struct {
	t      *testing.T
	search *Search
	random *rand.Rand
	now    time.Time

	limit  int           // what passes
	delay  time.Duration // of the round trip
	jitter time.Duration
	loss   float64 // share of round trips
	silent bool    // nobody answers

	answers []answer // under way, by arrival
	sent    int      // probes
	bytes   int
	large   time.Duration // for so long packets of the MTU did not pass
}

type answer struct {
	size     int
	sent, at time.Time
}

func newSim(t *testing.T, config *Config, ceiling int) *sim {
	t.Helper()
	if err := config.Check(); err != nil {
		t.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &sim{
		t: t, search: New(config, ceiling, start), random: rand.New(rand.NewPCG(1, 2)), now: start,
		limit: ceiling, delay: time.Millisecond,
	}
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	for until := s.now.Add(d); ; {
		next := later(s.now, s.search.Due())
		if len(s.answers) > 0 && !s.answers[0].at.After(next) {
			next = s.answers[0].at
		}
		next = earlier(next, until)
		if s.search.MTU() > s.limit {
			s.large += next.Sub(s.now)
		}
		s.now = next
		for len(s.answers) > 0 && !s.answers[0].at.After(s.now) {
			a := s.answers[0]
			s.answers = s.answers[1:]
			s.search.Answered(s.now, a.size, a.sent)
		}
		s.probe()
		if !s.now.Before(until) {
			return
		}
	}
}

// probe sends what is due.
func (s *sim) probe() {
	s.t.Helper()
	for rounds := 0; !s.now.Before(s.search.Due()); rounds++ {
		if rounds > 3 {
			s.t.Fatalf("the search does not come to rest: %+v", s.search)
		}
		for _, size := range s.search.Probes(s.now, nil) {
			s.sent++
			s.bytes += size
			if size < s.search.floor() || size > s.search.ceiling {
				s.t.Fatalf("a probe of %d bytes", size)
			}
			if size > s.limit || s.silent || s.random.Float64() < s.loss {
				continue
			}
			at := s.now.Add(s.delay + time.Duration(s.random.Float64()*float64(s.jitter)))
			s.answers = append(s.answers, answer{size, s.now, at})
		}
		slices.SortStableFunc(s.answers, func(a, b answer) int { return a.at.Compare(b.at) })
	}
	if mtu := s.search.MTU(); mtu < s.search.floor() || mtu > s.search.ceiling {
		s.t.Fatalf("MTU %d, but the floor is %d and the ceiling %d", mtu, s.search.floor(), s.search.ceiling)
	}
}

// want checks the MTU.
func (s *sim) want(mtu int, when string) {
	s.t.Helper()
	if got := s.search.MTU(); got != mtu {
		s.t.Errorf("%s: MTU %d, want %d: %+v", when, got, mtu, s.search)
	}
}
