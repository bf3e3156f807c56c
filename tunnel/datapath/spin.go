package datapath

import "time"

// DefaultBusyPoll is how long a worker looks for the next packet before it
// sleeps: some times what being woken costs, as net.core.busy_poll is set.
const DefaultBusyPoll = 50 * time.Microsecond

// MaxBusyPoll bounds Config.BusyPoll.
const MaxBusyPoll = time.Millisecond

// spin decides when a thread looks again and again instead of sleeping. Between
// two looks it yields. Others then run: those that the packets are for, shortly, or
// such as would never stop, for as long as the scheduler lets them. Beside these it is
// better to sleep, as a sleeper is woken at once.
type spin struct {
	length   time.Duration // of one spin; 0: there are none
	patience time.Duration // a yield that takes so much is a long one
	soon     bool          // the last sleep was shorter than length

	pause time.Duration // after the next long yield
	until time.Time     // of this one
}

const (
	// patience is more than anybody runs who waits for packets.
	patience = 500 * time.Microsecond
	// Bounds of pause.
	minPause = 10 * time.Millisecond
	maxPause = time.Second
)

func newSpin(length time.Duration) spin { return spin{length: length, patience: patience} }

// wait sleeps in look until that has found something, after looking again and again
// if it may and that is worth it. EINTR may end it, too.
func (s *spin) wait(may bool, look func(sleep bool) (found bool, err error), yield func()) error {
	if !may || s.length == 0 {
		_, err := look(true)
		return err
	}
	start := time.Now()
	for now := start; s.worthwhile(now) && now.Sub(start) < s.length; {
		found, err := look(false)
		if err != nil {
			return err
		}
		if found {
			s.hit()
			return nil
		}
		yield()
		before := now
		now = time.Now()
		if !s.yielded(now, now.Sub(before)) {
			break
		}
	}
	start = time.Now()
	_, err := look(true)
	s.slept(time.Since(start))
	return err
}

// worthwhile reports whether to spin rather than sleep now.
func (s *spin) worthwhile(now time.Time) bool {
	return s.soon && s.length > 0 && !now.Before(s.until)
}

// slept says how long a sleep was.
func (s *spin) slept(d time.Duration) { s.soon = d < s.length }

// hit says that a spin has found something. As long as there are such, the next
// pause becomes shorter.
func (s *spin) hit() { s.pause -= s.pause / 1024 }

// yielded says how long a yield was, and reports whether that was short.
func (s *spin) yielded(now time.Time, d time.Duration) bool {
	if d < s.patience {
		return true
	}
	s.pause = min(max(2*s.pause, minPause), maxPause)
	s.until = now.Add(s.pause)
	return false
}
