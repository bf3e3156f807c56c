package pathmtu

import "time"

// firstTimeout is the wait for an answer before any round trip has been seen.
const firstTimeout = time.Second

// rtt follows round-trip times (RFC 6298, section 2).
type rtt struct {
	smoothed, variation time.Duration
	seen                bool
}

func (r *rtt) add(sample time.Duration) {
	if !r.seen {
		r.smoothed, r.variation, r.seen = sample, sample/2, true
		return
	}
	r.variation += ((r.smoothed - sample).Abs() - r.variation) / 4
	r.smoothed += (sample - r.smoothed) / 8
}

func (r *rtt) timeout(least, most time.Duration) time.Duration {
	if !r.seen {
		return min(max(firstTimeout, least), most)
	}
	return min(max(r.smoothed+4*r.variation, least), most)
}
