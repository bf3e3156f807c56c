// Package schedule keeps what waits for its next step, the earliest first. It
// must never read the clock: who takes the steps says what time it is.
package schedule

import (
	"container/heap"
	"time"
)

// Entry is what an item of a Queue embeds. Its zero value is in no Queue.
type Entry struct {
	due   time.Time
	place int // in the heap, from 1 on
}

// Due is the time of the next step, as last put.
func (e *Entry) Due() time.Time { return e.due }

// Scheduled reports whether the item is in a Queue.
func (e *Entry) Scheduled() bool { return e.place > 0 }

func (e *Entry) entry() *Entry { return e }

// Item is a pointer to what embeds an Entry. It may be in one Queue at a time.
type Item interface{ entry() *Entry }

// Queue is items by the time of their next step. The zero value is empty. It is
// not safe for concurrent use.
type Queue[T Item] struct{ items items[T] }

// Len is the number of items.
func (q *Queue[T]) Len() int { return len(q.items) }

// First is the item that is due first; false if there is none. It stays.
func (q *Queue[T]) First() (first T, ok bool) {
	if len(q.items) == 0 {
		return first, false
	}
	return q.items[0], true
}

// Put adds an item, or moves it if it is there already.
func (q *Queue[T]) Put(item T, due time.Time) {
	e := item.entry()
	e.due = due
	if e.Scheduled() {
		heap.Fix(&q.items, e.place-1)
	} else {
		heap.Push(&q.items, item)
	}
}

// Remove takes an item out, if it is there.
func (q *Queue[T]) Remove(item T) {
	if e := item.entry(); e.Scheduled() {
		heap.Remove(&q.items, e.place-1)
	}
}

// items implements heap.Interface.
type items[T Item] []T

func (h items[T]) Len() int           { return len(h) }
func (h items[T]) Less(i, j int) bool { return h[i].entry().due.Before(h[j].entry().due) }

func (h items[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].entry().place, h[j].entry().place = i+1, j+1
}

// Push implements heap.Interface.
func (h *items[T]) Push(x any) {
	item := x.(T)
	*h = append(*h, item)
	item.entry().place = len(*h)
}

// Pop implements heap.Interface.
func (h *items[T]) Pop() any {
	last := len(*h) - 1
	item := (*h)[last]
	clear((*h)[last:])
	*h = (*h)[:last]
	item.entry().place = 0
	return item
}
