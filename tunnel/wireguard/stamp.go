package wireguard

import (
	"time"

	"golang.zx2c4.com/wireguard/tai64n"
)

// bar is what timestamps of one key have to exceed, so that an initiation is not
// taken twice.
//
// A clock that was once set far ahead must not shut its host out until the world
// has caught up (CVE-2021-46873). So timestamps from beyond our own clock, and
// some leeway, have a bar of their own: among themselves they still have to
// increase, which is all that a host whose clock is ahead needs, and when the
// clock is right again its timestamps are held against the ordinary bar, which
// the false ones have not raised. The most that is lost is the leeway.
//
// What can be replayed because of that, once our clock reaches it, does no harm
// here: a session that nobody confirms is not sent with, displaces none that is
// in use, and an initiation does not move the endpoint.
type bar struct {
	past, future tai64n.Timestamp
}

// pass says whether the timestamp exceeds the bar, and raises it.
func (b *bar) pass(stamp, leeway tai64n.Timestamp) bool {
	if !b.future.After(leeway) && b.future.After(b.past) {
		b.past = b.future
	}
	held := &b.past
	if stamp.After(leeway) {
		held = &b.future
	}
	if !stamp.After(*held) {
		return false
	}
	*held = stamp
	return true
}

// later adds to a timestamp. Those of whole seconds suffice for a leeway.
func later(stamp tai64n.Timestamp, by time.Duration) tai64n.Timestamp {
	return add(stamp, 7, uint64(by/time.Second))
}

// add adds to the big-endian number that ends with the byte at.
func add(stamp tai64n.Timestamp, at int, n uint64) tai64n.Timestamp {
	for ; at >= 0 && n > 0; at-- {
		n += uint64(stamp[at])
		stamp[at] = byte(n)
		n >>= 8
	}
	return stamp
}

// stamp is the timestamp of the next initiation. It exceeds all before, also
// when the clock is set back.
func (h *Host) stamp() tai64n.Timestamp {
	stamp := tai64n.Now()
	if !stamp.After(h.stamped) {
		stamp = add(h.stamped, len(stamp)-1, 1)
	}
	h.stamped = stamp
	return stamp
}
