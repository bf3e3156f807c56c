package pathmtu

import (
	"slices"
	"time"
)

// spread is how many sizes between two known ones are tried, where none is likely.
const spread = 4

// begin sends a round, or sends again what is open of one.
func (s *Search) begin(now time.Time, sizes []int) []int {
	if s.purpose == confirm && !s.settled() {
		s.purpose = grow
	}
	if s.round.tries == 0 {
		s.make(now)
	}
	r := &s.round
	r.open, r.begun, r.heard = true, now, 0
	r.tries++
	sizes = append(sizes, r.base)
	if s.purpose == suspect {
		sizes = append(sizes, r.base) // what hangs on it is worth two
	}
	for _, p := range r.probes {
		if s.purpose == suspect || !p.answered {
			sizes = append(sizes, p.size)
		}
	}
	s.due = now.Add(s.timeout())
	return sizes
}

// settled reports whether nothing is left to find out but what time may change.
func (s *Search) settled() bool { return s.mtu == s.ceiling || s.bad == s.mtu+1 }

// make chooses what a round probes.
func (s *Search) make(now time.Time) {
	s.round = round{base: s.mtu, probes: s.round.probes[:0]}
	floor := s.floor()
	switch {
	case s.purpose == confirm && s.mtu < s.ceiling && !now.Before(s.raiseAt):
		s.purpose = grow
		s.candidates(s.bad, s.bad)
	case s.purpose == confirm:
		if !s.rtt.seen && floor < s.mtu {
			// Whatever becomes of the other, this one tells how long to wait.
			s.candidates(floor, floor)
		}
	case s.purpose == grow:
		s.candidates(s.mtu+1, s.bad-1)
	case floor < s.mtu:
		s.candidates(floor, floor)
		if s.silent == 0 {
			s.likely(floor+1, s.mtu-1)
		}
	}
}

// candidates adds sizes from least to most, both ends' neighbourhood included:
// likely ones if there are any, else some at equal distances.
func (s *Search) candidates(least, most int) {
	if least > most {
		return
	}
	s.likely(least, most-1)
	if len(s.round.probes) == 0 {
		for i := 1; i <= spread; i++ {
			if size := least - 1 + (most-least+1)*i/(spread+1); size >= least && size < most {
				s.add(size)
			}
		}
	}
	s.add(most)
}

func (s *Search) likely(least, most int) {
	for _, size := range s.config.Likely {
		if size >= least && size <= most {
			s.add(size)
		}
	}
}

// add keeps the probes in order.
func (s *Search) add(size int) {
	at, found := slices.BinarySearchFunc(s.round.probes, size, func(p probe, size int) int { return p.size - size })
	if !found {
		s.round.probes = slices.Insert(s.round.probes, at, probe{size: size})
	}
}

// finish draws the conclusion from a round and says what comes next, and when.
func (s *Search) finish(now time.Time) {
	r := &s.round
	r.open = false
	based := r.heard >= r.base
	switch {
	case r.heard == 0:
		s.unheard(now)
	case based && s.purpose == grow:
		s.grown(now)
	case based:
		s.rest(r.begun.Add(s.config.Confirm))
	case s.purpose != suspect:
		// The base was lost. If anything else was too, that proves nothing.
		s.lost = 1
		s.restart(now, suspect)
	default:
		s.suspected(now)
	}
}

// rest ends all questions until a time.
func (s *Search) rest(until time.Time) {
	s.lost = 0
	s.restart(until, confirm)
}

// unheard is the end of a round that brought no answer. It says nothing of
// sizes: the peer may be down, far, or forbidden to answer.
func (s *Search) unheard(now time.Time) {
	if s.purpose == confirm && len(s.round.probes) == 0 {
		s.lost = 1
		s.restart(now, suspect) // nothing but a large packet was lost yet
		return
	}
	s.silent++
	s.lost = min(s.lost, 1)
	if s.mtu < s.ceiling && s.silent > 1 && now.Sub(s.heardAt) >= s.config.RaiseMax && !now.Before(s.hintUntil) {
		// As good as a peer that never answers. Nobody will say more than the ceiling does.
		s.mtu, s.bad = s.ceiling, s.ceiling+1
	}
	wait := min(s.config.Confirm<<min(s.silent, 10), s.config.Silence)
	s.restart(now.Add(wait), suspect)
}

// suspected is the end of a try in which the base was lost and a smaller size
// was not.
func (s *Search) suspected(now time.Time) {
	s.lost++
	if s.lost < s.config.Tries {
		s.due = now
		if len(s.round.probes) == 1 {
			s.round.tries = 0 // so far only the floor was asked for
		}
		return
	}
	best, bad := s.floor(), s.mtu
	for _, p := range slices.Backward(s.round.probes) {
		if p.answered {
			best = p.size
			break
		}
		bad = p.size
	}
	s.lower(now, best)
	s.bad = max(bad, s.mtu+1)
	s.restart(now, confirm)
}

// grown is the end of a try of sizes above the base, which itself came back.
func (s *Search) grown(now time.Time) {
	failed := slices.IndexFunc(s.round.probes, func(p probe) bool { return !p.answered && p.size > s.mtu })
	if failed >= 0 && s.round.tries < s.config.Tries {
		s.due = now
		return
	}
	if failed >= 0 {
		s.bad = s.round.probes[failed].size
	}
	if !s.settled() {
		s.restart(now, grow)
		return
	}
	s.raiseAt = now.Add(s.raiseAfter)
	s.raiseAfter = min(2*s.raiseAfter, s.config.RaiseMax)
	s.rest(s.round.begun.Add(s.config.Confirm))
}
