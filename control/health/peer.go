package health

import (
	"fmt"
	"slices"
	"time"

	"github.com/weft-net/weft/control"
)

// noWay is what is wrong with a host that may be down, or answers no echo
// requests.
const noWay = "answers by no way"

// peerKey names one family of one host.
type peerKey struct {
	host string
	is4  bool
}

// peer is the ways to one family of one host, which are judged together.
type peer struct {
	key    peerKey
	ways   []*way
	before []*way // ways that are not known to be targets still

	heard   bool      // it has ever answered
	doubted time.Time // since when the way in use is in doubt; zero: it is not
	settled time.Time // when doubts were over
	trial   bool      // that way is on trial
	silent  bool      // it answers by no way
	trials  int       // in vain, one after the other
	retrial time.Time // when silent; zero: never
}

// take returns the way that was there before.
func (p *peer) take(id control.WayID) *way {
	i := slices.IndexFunc(p.before, func(w *way) bool { return w.ID == id })
	if i < 0 {
		return nil
	}
	w := p.before[i]
	p.before = slices.Delete(slices.Clone(p.before), i, i+1)
	return w
}

func (p *peer) used() *way {
	for _, w := range p.ways {
		if w.InUse {
			return w
		}
	}
	return nil
}

// doubtful: it is to be found out at once which ways work.
func (p *peer) doubtful() bool { return !p.doubted.IsZero() || p.trial }

// judge draws conclusions from what is known of the ways to a host.
func (m *Monitor) judge(p *peer, now time.Time) {
	used := p.used()
	if used == nil || len(p.ways) == 1 || used.failed != "" {
		return // nothing to choose, or the choice is being changed
	}
	switch {
	case used.missed == 0 && used.good > 0:
		m.works(p, used, now)
	case used.missed == 0:
	case p.doubted.IsZero():
		p.doubted = now
	case used.missed >= losses:
		m.lost(p, used, now)
	}
}

// works notes that the way in use answers.
func (m *Monitor) works(p *peer, used *way, now time.Time) {
	if p.doubtful() {
		p.doubted, p.settled, p.trial, p.trials = time.Time{}, now, false, 0
		for _, w := range p.ways {
			if w.failed == "" {
				w.missed = 0 // or it would be of several doubts
			}
		}
	}
	if used.middleMissed >= fullLosses && slices.ContainsFunc(p.ways, func(w *way) bool { return w != used && w.failed == "" }) {
		used.middleMissed = 0
		m.fail(used, fmt.Sprintf("packets of %d bytes get no answer by %s, smaller ones do", middleSize, used.name()), now)
	}
}

// lost decides what becomes of a way in use that answers no more.
func (m *Monitor) lost(p *peer, used *way, now time.Time) {
	answering := func(w *way) bool { return w.failed == "" && w.missed == 0 && w.heard.After(p.doubted) }
	if slices.ContainsFunc(p.ways, answering) {
		for _, w := range p.ways {
			if w.failed == "" && w.missed >= losses {
				m.fail(w, w.silence(), now)
			}
		}
		p.trials = 0
		return
	}
	switch {
	case p.silent && (p.retrial.IsZero() || now.Before(p.retrial)),
		p.trial && now.Sub(used.since) < chance,
		!p.heard && now.Sub(used.since) < patience:
		return
	}
	candidate := func(w *way) bool { return w != used && w.failed == "" && w.unsent == "" }
	if slices.ContainsFunc(p.ways, candidate) {
		m.try(p, used, now)
	} else {
		m.giveUp(p, now)
	}
}

// try has the next way taken, although it is not known to work.
func (m *Monitor) try(p *peer, used *way, now time.Time) {
	p.trial, p.silent = true, false
	m.fail(used, used.silence(), now)
	for _, w := range p.ways {
		if w.failed == "" && w.unsent != "" {
			m.fail(w, w.unsent, now)
		}
	}
}

// giveUp takes back all failures, as no way is better than another.
func (m *Monitor) giveUp(p *peer, now time.Time) {
	if p.trials == 0 {
		m.logger.Warn("peer answers by no way", "peer", p.key.host, "ipv4", p.key.is4, "ways", len(p.ways))
	}
	p.silent, p.trial, p.retrial = true, false, time.Time{}
	if p.heard {
		p.retrial = now.Add(min(minRetrial<<min(p.trials, 10), maxBackoff))
		p.trials++
	}
	for _, w := range p.ways {
		w.barred = w.unsent != ""
		if w.failed != "" {
			w.failed, m.news = "", true
		}
	}
}

// fail has a way left.
func (m *Monitor) fail(w *way, why string, now time.Time) {
	if !w.returned.IsZero() && now.Sub(w.returned) < vainWithin {
		w.vain++
	} else {
		w.vain = 0
	}
	w.failed, w.failedAt, w.good, m.news = why, now, 0, true
	w.backoff = min(minBackoff<<min(w.vain, 10), maxBackoff)
	w.unknownUntil = now.Add(max(w.backoff, minRetrial))
	m.logger.Warn("way failed", "peer", w.ID.Host, "ipv4", w.ID.Is4, "way", w.ID.Encap, "reason", why, "again_in", w.backoff)
}

// returned has a failed way taken again.
func (m *Monitor) returned(w *way, now time.Time) {
	w.failed, w.returned, m.news = "", now, true
	w.fullMissed, w.middleMissed = 0, 0
	m.logger.Info("way works again", "peer", w.ID.Host, "ipv4", w.ID.Is4, "way", w.ID.Encap, "rtt", w.rtt)
}
