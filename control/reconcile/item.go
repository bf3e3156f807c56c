package reconcile

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// State is how far an item has come.
type State uint8

// The states.
const (
	Pending State = iota // not yet tried, or not yet seen in place
	Done                 // seen in place
	Failed               // tried in vain; it will be tried again
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Done:
		return "done"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// item is the fate of one want, or of one surplus thing.
type item struct {
	state    State
	removing bool // it is surplus
	tried    bool // the last try went well, and no look has shown its outcome yet
	attempts int  // tries since it was last in place
	repairs  int  // times it was changed by someone else, in short order
	err      string
	since    time.Time // of state
	due      time.Time // when Failed: the next try
}

// freeRepairs is how often in short order an item is put right at once. After
// that someone is fighting us for it, and we must not burn the host.
const freeRepairs = 3

func (l *Loop[K, V]) enter(it *item, s State) {
	if it.state != s {
		it.state, it.since = s, time.Now()
		l.dirty = true
	}
}

// succeed notes that it is as it should be.
func (l *Loop[K, V]) succeed(it *item, what any) {
	if it.err != "" {
		l.config.Logger.Info("recovered", "item", fmt.Sprint(what), "attempts", it.attempts)
	}
	it.tried, it.attempts, it.err = false, 0, ""
	l.enter(it, Done)
}

// fail notes an error and when to try again.
func (l *Loop[K, V]) fail(it *item, what any, err error) {
	if it.err == "" {
		l.config.Logger.Warn("failed, will be tried again", "item", fmt.Sprint(what), "removing", it.removing, "err", err)
	}
	if text := err.Error(); it.err != text {
		it.err = text
		l.dirty = true
	}
	it.tried = false
	it.due = time.Now().Add(l.backoff(max(it.attempts, it.repairs-freeRepairs)))
	l.enter(it, Failed)
}

// drift notes that something which was in place no longer is.
func (l *Loop[K, V]) drift(it *item, what any) {
	if time.Since(it.since) > l.config.BackoffMax {
		it.repairs = 0
	}
	it.repairs++
	if it.repairs > freeRepairs {
		l.fail(it, what, errContested)
		return
	}
	l.enter(it, Pending)
}

// backoff is the wait after n tries in vain: doubling, the upper half random.
func (l *Loop[K, V]) backoff(n int) time.Duration {
	d := l.config.BackoffMin
	for ; n > 1 && d < l.config.BackoffMax; n-- {
		d *= 2
	}
	d = min(d, l.config.BackoffMax)
	return d/2 + rand.N(d/2+1)
}
