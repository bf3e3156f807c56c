// Package reconcile makes what exists equal to what is wanted, item by item,
// and keeps it so. It acts on states, never on events: an event is a hint to
// look again. It must never know what the items are, let one item hold up
// another, or delete anything before the wants are known to be complete.
package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// Driver observes and changes the world. A Loop calls it from one goroutine.
type Driver[K comparable, V any] interface {
	// Observe returns everything that exists and is ours, in a map that it does
	// not touch again. What is not ours must not be in it, as everything in it
	// may be deleted. After an error nothing is changed until it succeeds.
	Observe(ctx context.Context) (map[K]V, error)
	// Apply creates or changes one item. Applying what is in place is no error.
	Apply(ctx context.Context, want V) error
	// Delete removes one item. Deleting what is absent is no error.
	Delete(ctx context.Context, have V) error
}

// Config is what a Loop is made of. Driver, Compare, Equal and Logger are needed.
type Config[K comparable, V any] struct {
	// Name says what is reconciled, for logs.
	Name   string
	Driver Driver[K, V]
	// Compare is the order of creation; deletion runs in reverse.
	Compare func(a, b K) int
	// Equal says whether what exists is as wanted.
	Equal func(want, have V) bool
	// Changes hints that the world may have changed. It may be nil.
	Changes <-chan struct{}
	// Interval is the time between looks without a hint; 0 means 30 s.
	Interval time.Duration
	// Pause is the shortest time between looks caused by hints; 0 means 20 ms.
	Pause time.Duration
	// BackoffMin and BackoffMax bound the wait before an item that failed is
	// tried again; 0 means 100 ms and 30 s. The wait doubles, with jitter.
	BackoffMin, BackoffMax time.Duration
	Logger                 *slog.Logger
}

// Loop compares wants with the world and acts on the difference. Its methods
// may be called from any goroutine.
type Loop[K comparable, V any] struct {
	config Config[K, V]
	kick   chan struct{} // SetWant was called
	looks  schedule      // used by Run only

	mu       sync.Mutex
	want     map[K]V
	complete bool
	wants    int // number of SetWant calls
	looked   int // value of wants at the last good look
	// have is the last look, with our own effects since then.
	have    map[K]V
	items   map[K]*item
	observe item // the fate of Observe
	changed chan struct{}
	dirty   bool // status differs from when changed was made
}

// New returns a Loop that does nothing before Run and SetWant.
func New[K comparable, V any](config Config[K, V]) *Loop[K, V] {
	orDefault(&config.Interval, 30*time.Second)
	orDefault(&config.Pause, 20*time.Millisecond)
	orDefault(&config.BackoffMin, 100*time.Millisecond)
	orDefault(&config.BackoffMax, 30*time.Second)
	config.Logger = config.Logger.With("reconcile", config.Name)
	return &Loop[K, V]{
		config:  config,
		kick:    make(chan struct{}, 1),
		items:   make(map[K]*item),
		changed: make(chan struct{}),
	}
}

func orDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// SetWant replaces everything that is wanted. Only while the last call had
// complete set does Run delete what exists and is not wanted. The map is
// copied; its values must not change any more.
func (l *Loop[K, V]) SetWant(want map[K]V, complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.notify()
	now := time.Now()
	for key, value := range want {
		old, wanted := l.want[key]
		if l.items[key] == nil || !wanted || !l.config.Equal(value, old) {
			l.items[key] = &item{since: now}
		}
	}
	for key := range l.want {
		if _, still := want[key]; !still {
			delete(l.items, key) // if it exists, it is surplus now
		}
	}
	l.want, l.complete = maps.Clone(want), complete
	l.wants++
	l.dirty = true
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Run looks and acts until ctx ends. It then returns nil and leaves everything
// as it is. It waits for the first SetWant before it touches the driver.
func (l *Loop[K, V]) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-l.kick:
	}
	l.looks.wanted = true
	for ctx.Err() == nil {
		if l.looks.wanted && !time.Now().Before(l.looks.at(l.config.Pause)) {
			l.look(ctx)
		}
		if l.act(ctx) {
			// Our own doing may have changed more than it says: a device that is
			// made anew takes its routes with it.
			l.looks.wanted = true
			continue
		}
		l.wait(ctx)
	}
	return nil
}

// wait returns when there may be something to do.
func (l *Loop[K, V]) wait(ctx context.Context) {
	hints := l.config.Changes
	if l.looks.hinted {
		hints = nil // the look that is coming answers this one too
	}
	timer := time.NewTimer(time.Until(l.wake()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-l.kick:
		l.looks.wanted = true
	case <-timer.C:
		if !time.Now().Before(l.looks.last.Add(l.config.Interval)) {
			l.looks.wanted = true
		}
	case _, open := <-hints:
		if !open {
			l.config.Changes = nil
			return
		}
		l.looks.wanted, l.looks.hinted = true, true
	}
}

// wake is the next time at which there is something to do unasked.
func (l *Loop[K, V]) wake() time.Time {
	next := l.looks.last.Add(l.config.Interval)
	if l.looks.wanted {
		next = l.looks.at(l.config.Pause)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.observe.state == Failed {
		return next // items wait for a good look
	}
	for _, it := range l.items {
		if it.state == Failed && !it.tried {
			next = earlier(next, it.due)
		}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// schedule decides when to look. Looks cost time in proportion to what exists,
// so apart from a few at once they may take a tenth of the time.
type schedule struct {
	wanted bool      // a look is wanted
	hinted bool      // because of a hint
	last   time.Time // when the last look ended
	took   time.Duration
	paid   time.Time // until when the looks so far have used up the budget
	retry  time.Time // not before, as the last look failed
}

const (
	lookShare = 10 // a look of t uses up 10 t
	lookBurst = 3  // looks that may come at once
)

// spend accounts for a look that ends now.
func (s *schedule) spend(took time.Duration) {
	s.last, s.took = time.Now(), took
	if s.paid.Before(s.last) {
		s.paid = s.last
	}
	s.paid = s.paid.Add(lookShare * took)
	s.wanted, s.hinted, s.retry = false, false, time.Time{}
}

// at is the earliest time for the next look.
func (s *schedule) at(pause time.Duration) time.Time {
	at := s.paid.Add(-lookBurst * lookShare * s.took)
	if s.hinted && at.Before(s.last.Add(pause)) {
		at = s.last.Add(pause)
	}
	if at.Before(s.retry) {
		at = s.retry
	}
	return at
}
