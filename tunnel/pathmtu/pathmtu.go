// Package pathmtu finds how large packets may be on the path to one peer, by
// probes of which only the arrival is known (RFC 8899). It says what to send and
// when, and is told what came back. It must never send, wait, read a clock or
// take the silence of a peer for a small MTU.
package pathmtu

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Config says how paths are searched. One Config serves many Searches. Sizes
// are packets in bytes, of whatever kind the caller probes with.
type Config struct {
	// Floor is the size that every path is held to carry (BASE_PLPMTU of RFC
	// 8899): the search never goes below it.
	Floor int
	// Likely are sizes that paths often turn out to carry and no more. They are
	// tried before others, all at one time.
	Likely []int
	// Confirm is the time between two probes of a size in use: what bounds the
	// time for which a path that has shrunk swallows packets.
	Confirm time.Duration
	// Tries is how often a probe is lost, while others come back, before its
	// size counts as too large.
	Tries int
	// MinTimeout and MaxTimeout bound the wait for an answer, which follows the
	// round-trip times seen.
	MinTimeout, MaxTimeout time.Duration
	// Raise is the time from a lowering to the first look whether more passes
	// again; it doubles with every vain look up to RaiseMax, the
	// PMTU_RAISE_TIMER of RFC 8899.
	Raise, RaiseMax time.Duration
	// Silence bounds the time between probes of a peer that answers none.
	Silence time.Duration
}

// Defaults are what the engine uses, but for the sizes.
func Defaults() Config {
	return Config{
		Confirm: 500 * time.Millisecond, Tries: 4,
		MinTimeout: 100 * time.Millisecond, MaxTimeout: 3 * time.Second,
		Raise: 10 * time.Second, RaiseMax: 10 * time.Minute, Silence: 10 * time.Second,
	}
}

// Check says which field is wrong.
func (c Config) Check() error {
	switch {
	case c.Floor <= 0:
		return fmt.Errorf("search path MTU: Floor is %d bytes: want more than 0", c.Floor)
	case c.Tries <= 0:
		return fmt.Errorf("search path MTU: Tries is %d: want more than 0", c.Tries)
	case c.MinTimeout <= 0 || c.MaxTimeout < c.MinTimeout:
		return fmt.Errorf("search path MTU: timeouts are %v to %v: want more than 0, in order", c.MinTimeout, c.MaxTimeout)
	case c.Raise <= 0 || c.RaiseMax < c.Raise:
		return fmt.Errorf("search path MTU: Raise is %v and RaiseMax %v: want more than 0, in order", c.Raise, c.RaiseMax)
	case c.Confirm <= 0 || c.Silence <= 0:
		return errors.New("search path MTU: Confirm and Silence: want more than 0")
	}
	return nil
}

// Search is the search of one path. It begins by trusting the ceiling, as a
// host without it would.
type Search struct {
	config  *Config
	ceiling int
	mtu     int
	// bad is the smallest size found not to pass; above the ceiling: none. The
	// search is over when nothing lies between mtu and it.
	bad     int
	lowered time.Time // answers to larger probes sent before prove nothing now

	purpose purpose
	round   round
	due     time.Time // when the round is over, or the next to begin
	lost    int       // probes of mtu in a row, while smaller ones came back

	raiseAt    time.Time
	raiseAfter time.Duration
	hintUntil  time.Time // a hint that nothing confirms or refutes holds until then

	heardAt time.Time // of the last answer; zero: none ever
	silent  int       // rounds in a row without any answer
	rtt     rtt
}

// purpose is what the round under way, or else the next one, is for.
type purpose uint8

const (
	confirm purpose = iota // is mtu right?
	suspect                // a probe of mtu was lost: what does pass?
	grow                   // what passes between mtu and bad?
)

// round is probes sent at one time, several times if need be.
type round struct {
	open   bool
	begun  time.Time // of the latest try
	tries  int
	base   int     // mtu when the round was made: lost, and the others prove nothing
	heard  int     // largest size answered during this try
	probes []probe // of other sizes, ascending
}

type probe struct {
	size     int
	answered bool
}

// New begins a search below a ceiling. Config is kept and must not change.
func New(config *Config, ceiling int, now time.Time) *Search {
	return &Search{config: config, ceiling: ceiling, mtu: ceiling, bad: ceiling + 1, due: now, raiseAfter: config.Raise}
}

// MTU is the largest size to use.
func (s *Search) MTU() int { return s.mtu }

// Due is when Probes has something to do, unless something is heard before.
func (s *Search) Due() time.Time { return s.due }

// Busy reports whether a question is open. A search that is not busy may be
// left alone for as long as nobody uses the path.
func (s *Search) Busy() bool { return s.round.open || s.purpose != confirm && s.silent == 0 }

// Heard is when an answer came last; zero means never.
func (s *Search) Heard() time.Time { return s.heardAt }

func (s *Search) floor() int { return min(s.config.Floor, s.ceiling) }

// SetCeiling changes the size that is known not to be exceeded. A lower one
// holds at once, a higher one when probes have come through, or the peer turns
// out to be one that answers none.
func (s *Search) SetCeiling(now time.Time, ceiling int) {
	if ceiling == s.ceiling {
		return
	}
	if ceiling > s.ceiling {
		s.bad, s.raiseAfter, s.hintUntil = ceiling+1, s.config.Raise, time.Time{}
	} else {
		s.bad = min(s.bad, ceiling+1)
	}
	s.ceiling = ceiling
	if s.mtu > ceiling {
		s.lower(now, ceiling)
	}
	s.mtu = max(s.mtu, s.floor())
	s.restart(now, confirm)
}

// Hint says that packets larger than size do not pass, as an error of the
// system or of a router told. It holds at once, and is looked into.
func (s *Search) Hint(now time.Time, size int) {
	if size >= s.mtu {
		return
	}
	s.lower(now, size)
	s.bad = s.mtu + 1
	s.hintUntil = now.Add(s.config.RaiseMax)
	s.raiseAt = now
	s.restart(now, confirm)
}

func (s *Search) lower(now time.Time, mtu int) {
	s.mtu = max(mtu, s.floor())
	s.lowered, s.raiseAfter, s.lost = now, s.config.Raise, 0
	s.raiseAt = now.Add(s.raiseAfter)
}

// restart drops the round under way and has another begin at once.
func (s *Search) restart(now time.Time, p purpose) {
	s.round = round{probes: s.round.probes[:0]}
	s.purpose, s.due = p, now
}

// Answered says that a probe of so many bytes that was sent at one time has
// been answered now.
func (s *Search) Answered(now time.Time, size int, sent time.Time) {
	if sent.After(now) || size <= 0 || size > s.ceiling || sent.Before(s.lowered) && size > s.mtu {
		return
	}
	s.rtt.add(now.Sub(sent))
	s.heardAt = now
	if s.silent > 0 && !s.round.open {
		s.due = now
	}
	s.silent = 0
	if size > s.mtu {
		s.mtu, s.raiseAfter = size, s.config.Raise
		if s.bad <= size {
			s.bad = s.ceiling + 1
		}
	}
	if s.round.open {
		s.hear(now, size)
	}
}

// hear notes an answer in the round under way.
func (s *Search) hear(now time.Time, size int) {
	r := &s.round
	r.heard = max(r.heard, size)
	for i := range r.probes {
		if r.probes[i].size == size {
			r.probes[i].answered = true
		}
	}
	// The time to wait for the others is known better now.
	s.due = later(now, earlier(s.due, r.begun.Add(s.timeout())))
	if r.heard >= r.base && !slices.ContainsFunc(r.probes, func(p probe) bool { return !p.answered }) {
		s.due = now
	}
}

// Probes returns the sizes to be sent now, in memory that is valid until the
// next call. It is to be called when Due says, and after everything heard.
func (s *Search) Probes(now time.Time, sizes []int) []int {
	sizes = sizes[:0]
	if s.ceiling <= s.config.Floor || now.Before(s.due) {
		if s.ceiling <= s.config.Floor {
			s.due = now.Add(s.config.Confirm)
		}
		return sizes
	}
	if s.round.open {
		s.finish(now)
		if now.Before(s.due) {
			return sizes
		}
	}
	return s.begin(now, sizes)
}

// timeout is the time to wait for an answer.
func (s *Search) timeout() time.Duration {
	wait := s.rtt.timeout(s.config.MinTimeout, s.config.MaxTimeout)
	return min(wait<<min(s.silent, 10), s.config.MaxTimeout)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
