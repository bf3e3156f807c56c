package schedule

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

type task struct {
	Entry
	name int
}

// TestQueue puts, moves and removes at random, and compares with a sorted list.
func TestQueue(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	epoch := time.Unix(0, 0)
	tasks := make([]*task, 50)
	for i := range tasks {
		tasks[i] = &task{name: i}
	}
	var q Queue[*task]
	if _, ok := q.First(); ok {
		t.Fatal("an empty queue has a first item")
	}
	want := map[*task]time.Time{}
	for range 10_000 {
		item := tasks[random.IntN(len(tasks))]
		if random.IntN(3) == 0 {
			q.Remove(item)
			delete(want, item)
		} else {
			due := epoch.Add(time.Duration(random.IntN(1000)))
			q.Put(item, due)
			want[item] = due
		}
		if q.Len() != len(want) {
			t.Fatalf("%d items, want %d", q.Len(), len(want))
		}
		for _, item := range tasks {
			due, in := want[item]
			if item.Scheduled() != in || in && !item.Due().Equal(due) {
				t.Fatalf("item %d: scheduled %v for %v, want %v, %v", item.name, item.Scheduled(), item.Due(), in, due)
			}
		}
		first, ok := q.First()
		if ok != (len(want) > 0) {
			t.Fatalf("a first item: %v, of %d", ok, len(want))
		}
		if ok {
			var dues []time.Time
			for _, due := range want {
				dues = append(dues, due)
			}
			if earliest := slices.MinFunc(dues, time.Time.Compare); !first.Due().Equal(earliest) {
				t.Fatalf("first is due at %v, want %v", first.Due(), earliest)
			}
		}
	}
}
