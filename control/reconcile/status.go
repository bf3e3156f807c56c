package reconcile

import "time"

// Status is the state of a Loop at one moment.
type Status[K comparable] struct {
	// Settled means that the world was looked at after the last SetWant, and
	// every item is Done or Failed: all was tried that can be.
	Settled bool
	// Error is why the world cannot be looked at; empty if it can.
	Error string
	// Items has every want and everything that is being removed.
	Items map[K]Item
}

// Item is the state of one item.
type Item struct {
	State    State
	Removing bool      // it exists and is not wanted
	Error    string    // last error; empty if none since it was last in place
	Attempts int       // tries since it was last in place
	Since    time.Time // when State began
}

// Status returns the state of every item.
func (l *Loop[K, V]) Status() Status[K] {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status[K]{
		Settled: l.wants > 0 && l.looked == l.wants,
		Error:   l.observe.err,
		Items:   make(map[K]Item, len(l.items)),
	}
	for key, it := range l.items {
		if it.state == Pending {
			s.Settled = false
		}
		s.Items[key] = Item{State: it.state, Removing: it.removing, Error: it.err, Attempts: it.attempts, Since: it.since}
	}
	return s
}

// Changed returns a channel that is closed when Status changes. Take it before
// calling Status, so that no change is missed.
func (l *Loop[K, V]) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// notify closes the channel that Changed returned, if there is a reason.
func (l *Loop[K, V]) notify() {
	if l.dirty {
		close(l.changed)
		l.changed = make(chan struct{})
		l.dirty = false
	}
}
