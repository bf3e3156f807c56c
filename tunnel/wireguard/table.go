package wireguard

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
)

const smallestTable = 64

// table finds sessions by the index their datagrams carry. A slot is addressed
// by the low bits of the index; readers take no lock, writers hold Host.mu.
// Initiations in flight are in it as well, as sessions without keys.
type table struct {
	slots atomic.Pointer[[]atomic.Pointer[Session]]
	used  int
}

func (t *table) init() {
	slots := make([]atomic.Pointer[Session], smallestTable)
	t.slots.Store(&slots)
}

func (t *table) get(index uint32) *Session {
	slots := *t.slots.Load()
	if s := slots[index&uint32(len(slots)-1)].Load(); s != nil && s.index == index {
		return s
	}
	return nil
}

// free returns a random index whose slot is free. At most a quarter of the slots
// is in use, so that it is found soon.
func (t *table) free() uint32 {
	if slots := *t.slots.Load(); 4*(t.used+1) > len(slots) {
		larger := make([]atomic.Pointer[Session], 2*len(slots))
		for i := range slots {
			if s := slots[i].Load(); s != nil {
				larger[s.index&uint32(len(larger)-1)].Store(s)
			}
		}
		t.slots.Store(&larger)
	}
	slots := *t.slots.Load()
	for {
		var random [4]byte
		rand.Read(random[:])
		index := binary.LittleEndian.Uint32(random[:])
		if slots[index&uint32(len(slots)-1)].Load() == nil {
			return index
		}
	}
}

// put places a session in its slot, which is free or that of the initiation that
// has become this session.
func (t *table) put(s *Session) {
	slots := *t.slots.Load()
	if slots[s.index&uint32(len(slots)-1)].Swap(s) == nil {
		t.used++
	}
}

// drop takes a session out, if it is there.
func (t *table) drop(s *Session) {
	if s == nil {
		return
	}
	slots := *t.slots.Load()
	if slots[s.index&uint32(len(slots)-1)].CompareAndSwap(s, nil) {
		t.used--
	}
}
