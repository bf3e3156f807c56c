package engine

import "time"

// rate lets so many things through in every second of the clock.
type rate struct {
	perSecond int
	second    int64
	count     int
}

func (r *rate) allow(now time.Time) bool {
	if second := now.Unix(); second != r.second {
		r.second, r.count = second, 0
	}
	r.count++
	return r.count <= r.perSecond
}

// quietFor is the least time between two log lines about failing packets.
const quietFor = time.Minute

// quiet keeps a failure that repeats with every packet from filling the log.
type quiet struct {
	until time.Time
}

func (q *quiet) ready() bool {
	now := time.Now()
	if now.Before(q.until) {
		return false
	}
	q.until = now.Add(quietFor)
	return true
}
