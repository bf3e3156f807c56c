package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	errNotInPlace = errors.New("applied without an error, but not in place")
	errStillThere = errors.New("deleted without an error, but still there")
	errContested  = errors.New("changed by someone else again and again")
)

// look observes the world and notes on every item what it shows.
func (l *Loop[K, V]) look(ctx context.Context) {
	select {
	case <-l.config.Changes: // answered by this look
	default:
	}
	l.mu.Lock()
	wants := l.wants
	l.mu.Unlock()
	began := time.Now()
	have, err := l.config.Driver.Observe(ctx)
	if ctx.Err() != nil {
		return
	}
	l.looks.spend(time.Since(began))
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.notify()
	if err != nil {
		l.observe.attempts++
		l.fail(&l.observe, "observe", err)
		l.looks.wanted, l.looks.retry = true, l.observe.due
		return
	}
	l.succeed(&l.observe, "observe")
	l.have = have
	if have == nil {
		l.have = make(map[K]V)
	}
	if l.looked != wants {
		l.looked = wants
		l.dirty = true
	}
	l.judge()
}

// judge compares every item with the look that was just taken.
func (l *Loop[K, V]) judge() {
	drifted := 0
	for key, it := range l.items {
		value, exists := l.have[key]
		if it.removing {
			switch {
			case !exists:
				l.succeed(it, key)
				delete(l.items, key)
			case it.tried:
				l.fail(it, key, errStillThere)
			}
			continue
		}
		switch {
		case exists && l.config.Equal(l.want[key], value):
			l.succeed(it, key)
		case it.tried:
			err := errNotInPlace
			if exists {
				err = fmt.Errorf("%w: want %+v, have %+v", err, l.want[key], value)
			}
			l.fail(it, key, err)
		case it.state == Done:
			drifted++
			l.drift(it, key)
		}
	}
	if drifted > 0 {
		l.config.Logger.Info("repairing what is no longer in place", "items", drifted)
	}
}

// step is one thing to be done.
type step[K comparable, V any] struct {
	key   K
	value V
	item  *item
}

// act does what is due and reports whether it tried anything.
func (l *Loop[K, V]) act(ctx context.Context) (tried bool) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.notify()
	}()
	missing, surplus := l.todo()
	recovered := false
	for _, s := range missing {
		if ctx.Err() != nil {
			return tried
		}
		due, retried := l.isDue(s, recovered)
		if !due {
			continue
		}
		err := l.config.Driver.Apply(ctx, s.value)
		l.record(ctx, s, err)
		tried = true
		// What comes later may have failed only because this one had.
		recovered = recovered || retried && err == nil
	}
	for _, s := range surplus {
		if ctx.Err() != nil {
			return tried
		}
		if due, _ := l.isDue(s, false); due {
			l.record(ctx, s, l.config.Driver.Delete(ctx, s.value))
			tried = true
		}
	}
	return tried
}

// todo returns what is missing in order of creation, due or not, and what is
// surplus in reverse.
func (l *Loop[K, V]) todo() (missing, surplus []step[K, V]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.observe.state == Failed {
		return nil, nil
	}
	for key, it := range l.items {
		if it.removing || it.tried || it.state == Done {
			continue
		}
		if value, exists := l.have[key]; !exists || !l.config.Equal(l.want[key], value) {
			missing = append(missing, step[K, V]{key, l.want[key], it})
		}
	}
	for key, value := range l.have {
		if _, wanted := l.want[key]; wanted {
			continue
		}
		it := l.items[key]
		if !l.complete {
			delete(l.items, key)
			continue
		}
		if it == nil {
			it = &item{removing: true, since: time.Now()}
			l.items[key] = it
			l.dirty = true
		}
		if !it.tried {
			surplus = append(surplus, step[K, V]{key, value, it})
		}
	}
	slices.SortFunc(missing, func(a, b step[K, V]) int { return l.config.Compare(a.key, b.key) })
	slices.SortFunc(surplus, func(a, b step[K, V]) int { return l.config.Compare(b.key, a.key) })
	return missing, surplus
}

// isDue says whether a step may be done now, given that what it may have waited
// for has recovered, and whether it was tried before. A step whose want has
// changed meanwhile never is.
func (l *Loop[K, V]) isDue(s step[K, V], recovered bool) (due, retried bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.items[s.key] != s.item {
		return false, false
	}
	return recovered || s.item.state != Failed || !time.Now().Before(s.item.due), s.item.attempts > 0
}

// record notes the outcome of a step. If the want has changed since it began,
// its item is no longer in the loop, and only have sees the outcome.
func (l *Loop[K, V]) record(ctx context.Context, s step[K, V], err error) {
	if err != nil && ctx.Err() != nil {
		return // cut off, not failed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.item.attempts++
	if err != nil {
		if l.items[s.key] == s.item {
			l.fail(s.item, s.key, err)
		}
		return
	}
	s.item.tried = true
	if s.item.removing {
		delete(l.have, s.key)
	} else {
		l.have[s.key] = s.value
	}
}
