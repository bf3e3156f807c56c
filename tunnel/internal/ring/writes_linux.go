package ring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Writes is a batch of writev(2) to one descriptor that never waits.
type Writes struct {
	ring    *Ring
	id      uint32
	fd      int
	vectors []unix.Iovec
	results []int32
	left    int
}

// Writes adds a Writes of at most so many, of so many parts together, before Start.
func (r *Ring) Writes(fd, most, parts int) *Writes {
	w := &Writes{ring: r, fd: fd, results: make([]int32, 0, most), vectors: make([]unix.Iovec, 0, parts)}
	w.id = r.add(w)
	return w
}

// Room reports whether one of so many parts can be added.
func (w *Writes) Room(parts int) bool {
	return len(w.results) < cap(w.results) && len(w.vectors)+parts <= cap(w.vectors)
}

// Add queues one, of head and parts. They must not change until Do.
func (w *Writes) Add(head []byte, parts [][]byte) {
	first := len(w.vectors)
	w.vectors = append(w.vectors, vectorOf(head))
	for _, part := range parts {
		w.vectors = append(w.vectors, vectorOf(part))
	}
	e := w.ring.queue(w.id, uint32(len(w.results)))
	e.opcode, e.fd, e.offset = opWritev, int32(w.fd), ^uint64(0)
	e.address, e.length = uint64(uintptr(unsafe.Pointer(&w.vectors[first]))), uint32(1+len(parts))
	w.results = append(w.results, 0)
	w.left++
}

func vectorOf(b []byte) unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	return v
}

// Queued is how many Add has queued.
func (w *Writes) Queued() int { return len(w.results) }

// Do carries out what is queued, in its order, also behind one that fails. It returns what
// came of each, a number of bytes or a negative errno, which is valid until the next Add.
func (w *Writes) Do() (results []int32, err error) {
	for wait := uint32(0); w.left > 0 && err == nil; wait = 1 {
		err = w.ring.Enter(wait)
	}
	clear(w.vectors) // what they point to is the caller's again
	results = w.results
	w.results, w.vectors, w.left = w.results[:0], w.vectors[:0], 0
	return results, err
}

// completed implements user.
func (w *Writes) completed(index uint32, result int32, _ uint32) {
	w.results[index] = result
	w.left--
}
