package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	roundTrip = time.Millisecond
	// planning is how long a host takes to change its choice.
	planning = 20 * time.Millisecond
	fullMTU  = 1450
)

var (
	vxlanFirst = []tunnel.Encap{tunnel.EncapVXLAN, tunnel.EncapWireGuard}
	allWays    = []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapVXLAN, tunnel.EncapWireGuard}
)

// path is one direction of a way.
type path struct {
	from, to string
	encap    tunnel.Encap
}

// world is hosts with Monitors whose choices come true, and what is between them.
type world struct {
	t *testing.T

	mu      sync.Mutex
	hosts   map[string]*host
	closed  map[path]bool
	limit   map[path]int // packets that pass; 0: all
	rtt     time.Duration
	down    map[string]bool // and does not answer either
	mute    map[string]bool // answers nothing
	refused map[path]error  // what Probe says
	large   error           // what it says of large ones
	probes  []sent
}

type sent struct {
	path
	at   time.Duration // since the start of the test
	size int
}

type host struct {
	w       *world
	name    string
	monitor *Monitor
	ways    map[string][]tunnel.Encap // by host
	chosen  map[string]tunnel.Encap
	choices map[string][]choice
}

type choice struct {
	at    time.Duration
	encap tunnel.Encap
}

var start time.Time

// run runs f in fake time with a world that ends after it.
func run(t *testing.T, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, hosts: map[string]*host{}, closed: map[path]bool{}, limit: map[path]int{}, rtt: roundTrip,
			down: map[string]bool{}, mute: map[string]bool{}, refused: map[path]error{},
		}
		start = time.Now()
		f(w)
	})
}

// add starts a host that has ways to others.
func (w *world) add(name string, ways map[string][]tunnel.Encap) *host {
	w.t.Helper()
	h := &host{w: w, name: name, ways: ways, chosen: map[string]tunnel.Encap{}, choices: map[string][]choice{}}
	var err error
	h.monitor, err = New(Config{
		Prober: h, Logger: slog.New(slog.DiscardHandler),
		Changed: func() { time.AfterFunc(planning, h.plan) },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.hosts[name] = h
	w.mu.Unlock()
	h.plan()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.monitor.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return h
}

// plan takes the first way to each host that has not failed.
func (h *host) plan() {
	failed := h.monitor.Failed()
	h.w.mu.Lock()
	var targets []Target
	for to, ways := range h.ways {
		taken := ways[0]
		for _, encap := range slices.Backward(ways) {
			if failed[id(to, encap)] == "" {
				taken = encap
			}
		}
		if h.chosen[to] != taken {
			h.chosen[to] = taken
			h.choices[to] = append(h.choices[to], choice{time.Since(start), taken})
		}
		for _, encap := range ways {
			targets = append(targets, Target{ID: id(to, encap), Port: port(encap), InUse: encap == taken, MTU: fullMTU})
		}
	}
	h.w.mu.Unlock()
	h.monitor.SetTargets(targets)
}

func id(host string, encap tunnel.Encap) control.WayID {
	return control.WayID{Host: host, Is4: true, Encap: encap}
}

func port(encap tunnel.Encap) uint16 {
	return map[tunnel.Encap]uint16{tunnel.EncapVXLAN: 8472, tunnel.EncapWireGuard: 51820}[encap]
}

// Probe implements Prober.
func (h *host) Probe(id control.WayID, size int, token uint64) error {
	w := h.w
	w.mu.Lock()
	defer w.mu.Unlock()
	p := path{h.name, id.Host, id.Encap}
	if err := w.refused[p]; err != nil {
		return err
	}
	if size > middleSize && w.large != nil {
		return w.large
	}
	w.probes = append(w.probes, sent{p, time.Since(start), size})
	if len(h.ways) > 50 {
		time.AfterFunc(w.rtt, func() { h.monitor.Answered(token) })
		return nil
	}
	to := w.hosts[id.Host]
	if to == nil || w.down[to.name] || w.mute[to.name] || !w.passes(p, size) {
		return nil
	}
	time.AfterFunc(w.rtt, func() {
		w.mu.Lock()
		back := path{to.name, h.name, to.chosen[h.name]}
		passes := w.passes(back, size) && !w.down[to.name]
		w.mu.Unlock()
		if passes {
			h.monitor.Answered(token)
		}
	})
	return nil
}

func (w *world) passes(p path, size int) bool {
	limit := w.limit[p]
	return !w.closed[p] && (limit == 0 || size <= limit)
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// closeWay closes or opens a way between a and b in both directions.
func (w *world) closeWay(encap tunnel.Encap, closed bool) {
	w.set(func() {
		w.closed[path{"a", "b", encap}] = closed
		w.closed[path{"b", "a", encap}] = closed
	})
}

// pair is two hosts that have been well for a while.
func (w *world) pair(ways []tunnel.Encap) (a, b *host) {
	a = w.add("a", map[string][]tunnel.Encap{"b": ways})
	b = w.add("b", map[string][]tunnel.Encap{"a": ways})
	return a, b
}

func (h *host) to(other string) tunnel.Encap {
	synctest.Wait()
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return h.chosen[other]
}

// switches are the choices after the first, as "way at seconds".
func (h *host) switches(other string) int {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	return len(h.choices[other]) - 1
}

func (h *host) want(other string, encap tunnel.Encap, when string) {
	h.w.t.Helper()
	if got := h.to(other); got != encap {
		h.w.t.Errorf("%s: %s reaches %s by %s, want %s; choices %v", when, h.name, other, got, encap, h.choices[other])
	}
}

func (h *host) health(other string, encap tunnel.Encap) Health {
	synctest.Wait()
	return h.monitor.Report()[id(other, encap)]
}

// count is the probes from a since a moment.
func (w *world) count(p path, since time.Duration) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.probes {
		if s.path == p && s.at >= since {
			n++
		}
	}
	return n
}

var errNoKeys = errors.New("no keys yet")

func unknown(why string) error { return fmt.Errorf("%w: %s", ErrUnknown, why) }
