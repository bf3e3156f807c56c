// Package health finds out which ways to other hosts work, by probes that go the
// way of data: a way that answers no more while another may is failed until it
// answers again. It must never touch the operating system, nor decide which of
// the ways that work is taken.
//
// An answer to a probe takes the way that the other host has chosen, so a way
// that works may get no answers because the other host has yet to leave one that
// does not. Where nothing answers, the next way is therefore taken on trial, and
// where that changes nothing, all are as good as before.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel/schedule"
)

const (
	// defaultInterval is between two probes of a way in use whose host has others,
	// lonely that of a host which has no other, where nothing can be done.
	defaultInterval = time.Second
	lonely          = 10 * time.Second
	// quick is between probes while a way is in doubt, and how long an answer may
	// take at least.
	quick = 200 * time.Millisecond
	// losses in a row fail a way; patience is what one that never worked gets.
	losses   = 5
	patience = 3 * time.Second
	// chance is how long a way on trial may be silent: the other host has to come
	// to the same conclusion meanwhile.
	chance = 5 * time.Second
	// returns is how many answers in a row a failed way needs, which is probed at
	// growing intervals.
	returns                = 4
	minBackoff, maxBackoff = 5 * time.Second, 10 * time.Minute
	// vainWithin: a way that fails again so soon has returned in vain.
	vainWithin = time.Minute
	// minRetrial is after which a host that was heard once and answers by no way
	// gets another trial, then twice that, and so on to maxBackoff.
	minRetrial = time.Minute

	// spacing bounds the probes of this host to 200 per second, of which bursts are
	// a tenth at most. The regular ones take up three quarters: the more ways there
	// are, the rarer each is probed.
	spacing       = 5 * time.Millisecond
	burst         = 20 * spacing
	regularUsed   = 10 * time.Millisecond // 100 per second
	regularLonely = 20 * time.Millisecond // 50 per second

	// smallSize is of ordinary probes, middleSize what has to pass for a way to be
	// of use, in bytes.
	smallSize, middleSize = 100, 576
	// One in so many probes of a way in use is of its MTU, or one in so few when
	// the last one of these was lost.
	fullEvery, fullAgain = 10, 3
	fullLosses           = 3

	waitingAnswers = 1024
)

// ErrUnknown is what a Prober says of a way that it has no means to probe. Such a
// way is never failed for it.
var ErrUnknown = errors.New("the way cannot be probed")

// Prober sends probes.
type Prober interface {
	// Probe sends one ICMP echo request to the network address of the way's host by
	// that way and no other, an inner packet of size bytes. Monitor.Answered is told
	// the token when the answer comes. It must not wait. An error that is not
	// ErrUnknown, which may be of the size alone, means that nothing can be sent by
	// this way now.
	Probe(id control.WayID, size int, token uint64) error
}

// Target is a way to be watched.
type Target struct {
	ID    control.WayID
	Port  uint16 // UDP port of the other host, for reasons; 0: none
	InUse bool
	MTU   int // largest inner packet
}

// Config is what a Monitor is made of.
type Config struct {
	Prober Prober
	Logger *slog.Logger
	// Changed is called by Run whenever what Failed returns has changed.
	Changed func()
	// Interval is between two probes of a way in use; 0: a second.
	Interval time.Duration
}

// Monitor watches ways while Run runs. Its methods may be called at any time,
// from any goroutine.
type Monitor struct {
	prober   Prober
	logger   *slog.Logger
	changed  func()
	interval time.Duration

	answers chan answer
	woken   chan struct{} // something else may be due than before

	mu           sync.Mutex
	peers        map[peerKey]*peer
	numbers      map[uint32]*way
	last         uint32 // number given
	used, single int    // ways in use with and without others
	queue        schedule.Queue[*way]
	sendable     time.Time // when all probes that were sent would have been due
	news         bool      // Changed is to be called
}

type answer struct {
	token uint64
	at    time.Time
}

// New makes a Monitor without targets.
func New(config Config) (*Monitor, error) {
	switch {
	case config.Prober == nil, config.Logger == nil, config.Changed == nil:
		return nil, errors.New("make health monitor: Config's Prober, Logger and Changed must be set")
	case config.Interval < 0:
		return nil, fmt.Errorf("make health monitor: Config.Interval %v is negative; 0 means a second", config.Interval)
	case config.Interval == 0:
		config.Interval = defaultInterval
	}
	return &Monitor{
		prober: config.Prober, logger: config.Logger, changed: config.Changed, interval: config.Interval,
		answers: make(chan answer, waitingAnswers), woken: make(chan struct{}, 1),
		peers: map[peerKey]*peer{}, numbers: map[uint32]*way{},
		// Answers to an earlier run of the program are to no way of this one.
		last: rand.Uint32(),
	}, nil
}

// SetTargets replaces the ways that are watched: all that lead to a host, of
// which one is in use. What is known of those that were there before stays.
func (m *Monitor) SetTargets(targets []Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, before := time.Now(), m.peers
	m.peers, m.used, m.single = make(map[peerKey]*peer, len(before)), 0, 0
	for _, target := range targets {
		key := peerKey{target.ID.Host, target.ID.Is4}
		p := m.peers[key]
		if p == nil {
			if p = before[key]; p == nil {
				p = &peer{key: key}
			}
			p.before, p.ways = p.ways, nil
			m.peers[key] = p
		}
		m.add(p, target, now)
	}
	for key, p := range before {
		if m.peers[key] != p {
			p.before, p.ways = p.ways, nil
			m.dropUnwanted(p)
		}
	}
	for _, p := range m.peers {
		m.dropUnwanted(p)
		m.count(p)
	}
	for _, p := range m.peers {
		m.schedule(p)
	}
	m.wake()
}

// add makes target one of the peer's ways.
func (m *Monitor) add(p *peer, target Target, now time.Time) {
	w := p.take(target.ID)
	if w == nil {
		m.last++
		w = &way{peer: p, number: m.last, untilFull: fullAgain}
		m.numbers[w.number] = w
		p.silent = false // something new to try
	}
	if target.InUse && !w.InUse {
		w.since, w.missed, w.good = now, 0, 0
		p.doubted = time.Time{}
	}
	w.Target = target
	p.ways = append(p.ways, w)
}

// dropUnwanted forgets the ways of a peer that are targets no more.
func (m *Monitor) dropUnwanted(p *peer) {
	for _, w := range p.before {
		delete(m.numbers, w.number)
		m.queue.Remove(w)
	}
	p.before = nil
}

func (m *Monitor) count(p *peer) {
	switch {
	case p.used() == nil:
	case len(p.ways) == 1:
		m.single++
	default:
		m.used++
	}
}

// Wake has failed ways probed at once, because something has changed that may
// have to do with them. Those that have returned in vain lately wait all the same.
func (m *Monitor) Wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, p := range m.peers {
		for _, w := range p.ways {
			if w.failed == "" || w.vain > 0 || now.Sub(w.tried) < m.interval {
				continue
			}
			w.tried = time.Time{}
			if now.Sub(w.failedAt) >= minBackoff {
				w.unknownUntil = now
			}
		}
		m.schedule(p)
	}
	m.wake()
}

// Answered tells that the answer to a probe has come. It neither waits nor
// allocates. With more answers than can be taken, some count as lost.
func (m *Monitor) Answered(token uint64) {
	select {
	case m.answers <- answer{token, time.Now()}:
	default:
	}
}

// Failed are the ways that do not work, and why.
func (m *Monitor) Failed() map[control.WayID]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	failed := map[control.WayID]string{}
	for _, p := range m.peers {
		for _, w := range p.ways {
			if w.failed != "" {
				failed[w.ID] = w.failed
			}
		}
	}
	return failed
}

// Report is what is known of every target.
func (m *Monitor) Report() map[control.WayID]Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	report := make(map[control.WayID]Health, len(m.numbers))
	for _, p := range m.peers {
		for _, w := range p.ways {
			report[w.ID] = w.health()
		}
	}
	return report
}

func (m *Monitor) wake() {
	select {
	case m.woken <- struct{}{}:
	default:
	}
}

// Run probes until ctx is done, and returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case a := <-m.answers:
			m.hear(a)
		case <-m.woken:
		case <-timer.C:
		}
		// What has been answered is not lost, however late this comes to hear of it.
		for more := true; more; {
			select {
			case a := <-m.answers:
				m.hear(a)
			default:
				more = false
			}
		}
		wait, ok, news := m.advance(time.Now())
		if news {
			m.changed()
		}
		if ok {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// advance takes the steps that are due, or as many as may be taken, and returns
// the time to the next. When more is due than may be sent, all wait in one line.
func (m *Monitor) advance(now time.Time) (wait time.Duration, ok, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer func() { news, m.news = m.news, false }()
	for {
		first, ok := m.queue.First()
		if !ok {
			return 0, false, false
		}
		if now.Before(first.Due()) {
			return first.Due().Sub(now), true, false
		}
		if ahead := m.sendable.Sub(now); ahead >= burst {
			return ahead - burst + spacing, true, false
		}
		m.step(first, now)
	}
}

// step settles what is overdue on a way, judges its host, and probes if that is
// still due.
func (m *Monitor) step(w *way, now time.Time) {
	w.expire(now)
	m.judge(w.peer, now)
	if next, probed := m.nextProbe(w); probed && !now.Before(next) {
		m.probe(w, now)
	}
	m.schedule(w.peer)
}

// send sends one probe.
func (m *Monitor) send(w *way, size int, now time.Time) error {
	if m.sendable.Before(now) {
		m.sendable = now
	}
	m.sendable = m.sendable.Add(spacing)
	err := m.prober.Probe(w.ID, size, w.note(size, now))
	if errors.Is(err, ErrUnknown) {
		w.withdraw()
	}
	return err
}

// probe sends what is due on a way.
func (m *Monitor) probe(w *way, now time.Time) {
	err := m.send(w, w.size(), now)
	w.unknown, w.unsent = "", ""
	switch {
	case errors.Is(err, ErrUnknown):
		w.unknown = err.Error()
		w.missed, w.good = 0, 0
		if w.failed != "" && !now.Before(w.unknownUntil) {
			m.returned(w, now) // only its use can tell
		}
	case err != nil:
		w.unsent = err.Error()
	case w.barred:
		w.barred, w.peer.retrial = false, now
	}
	if size, due := w.largeSize(); due {
		// One that cannot be sent is lost, or says nothing of the way.
		_ = m.send(w, size, now)
	}
}

func (m *Monitor) hear(a answer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.numbers[uint32(a.token>>32)]
	if w == nil || !w.hear(uint32(a.token), a.at) {
		return
	}
	p := w.peer
	p.heard = true
	if p.silent {
		p.silent = false
		m.logger.Info("peer answers again", "peer", p.key.host, "ipv4", p.key.is4, "way", w.ID.Encap)
	}
	if w.failed != "" && w.good >= returns {
		m.returned(w, a.at)
	}
	m.judge(p, a.at)
	m.schedule(p)
}

// schedule brings the queue up to what is known of a peer.
func (m *Monitor) schedule(p *peer) {
	for _, w := range p.ways {
		due, ok := m.nextProbe(w)
		if lost, waiting := w.deadline(); waiting && (!ok || lost.Before(due)) {
			due, ok = lost, true
		}
		if ok {
			m.queue.Put(w, due)
		} else {
			m.queue.Remove(w)
		}
	}
}

// nextProbe is when a way is to be probed, if at all.
func (m *Monitor) nextProbe(w *way) (time.Time, bool) {
	p, regular := w.peer, max(m.interval, time.Duration(m.used)*regularUsed)
	var after time.Duration
	switch {
	case p.used() == nil:
		return time.Time{}, false
	case len(p.ways) == 1:
		after = max(lonely, time.Duration(m.single)*regularLonely)
	case w.unknown != "" && w.failed == "":
		after = max(lonely, regular)
	case w.unknown != "":
		after = w.backoff
	case p.silent:
		after = regular
	case p.doubtful() || w.failed != "" && w.good > 0:
		after = quick
	case w.failed != "":
		after = w.backoff
	case w.InUse:
		after = regular
	default:
		return time.Time{}, false
	}
	return w.tried.Add(after), true
}
