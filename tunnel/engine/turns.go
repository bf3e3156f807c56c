package engine

import "math"

// yieldAfter is how many UDP datagrams are carried before others get a turn: those
// that are to take what was written to the Device, and those that what was sent is to
// be carried on by, where they share the processor. A socket's buffer of the usual 208
// KiB holds some ninety of 1350 bytes, and nothing slows their sender down; TCP does
// that by itself.
const yieldAfter = 32

// turns has others take turns with one direction of a worker.
type turns struct {
	poller    Poller // nil: others have a thread of their own anyway
	datagrams int    // UDP, since the last turn of others
}

// left is how many datagrams can be carried until others are to have a turn.
func (t *turns) left() int {
	if t.poller == nil {
		return math.MaxInt
	}
	return yieldAfter - t.datagrams
}

// after gives others their turn if so many datagrams more have made it due.
func (t *turns) after(datagrams int) {
	if t.poller == nil {
		return
	}
	if t.datagrams += datagrams; t.datagrams >= yieldAfter {
		t.datagrams = 0
		t.poller.Yield()
	}
}
