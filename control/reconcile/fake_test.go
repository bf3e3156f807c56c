package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thing is what the fake world is made of. Its name is its place in the order
// of creation, as in "1 link", "2 route"; what stands on a link is lost when
// the link is made anew.
type thing struct{ name, value string }

// world is a stateful fake of a kernel, with faults to order.
type world struct {
	mu      sync.Mutex
	things  map[string]thing
	foreign map[string]thing // never shown, never to be touched
	effects []string
	looks   int
	hints   chan struct{} // a token for every effect, if not nil

	lookErr  error
	lookTime time.Duration
	// before is asked before every effect, and may refuse it.
	before func(effect string) error
	// after is called after every effect that was not refused.
	after func(effect string)
}

var errRefused = errors.New("refused")

func newWorld(things ...thing) *world {
	w := &world{things: map[string]thing{}, foreign: map[string]thing{"1 docker0": {"1 docker0", "theirs"}}}
	for _, th := range things {
		w.things[th.name] = th
	}
	return w
}

func (w *world) Observe(ctx context.Context) (map[string]thing, error) {
	time.Sleep(w.lookTime)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looks++
	if w.lookErr != nil {
		return nil, w.lookErr
	}
	if len(w.things) == 0 {
		return nil, nil
	}
	return maps.Clone(w.things), nil
}

func (w *world) Apply(ctx context.Context, want thing) error {
	return w.effect(ctx, "apply "+want.name+"="+want.value, func() {
		old, exists := w.things[want.name]
		if exists && old.value != want.value && strings.HasPrefix(want.name, "1") {
			for name := range w.things {
				if !strings.HasPrefix(name, "1") {
					delete(w.things, name) // the link took them with it
				}
			}
		}
		w.things[want.name] = want
	})
}

func (w *world) Delete(ctx context.Context, have thing) error {
	return w.effect(ctx, "delete "+have.name, func() { delete(w.things, have.name) })
}

func (w *world) effect(ctx context.Context, name string, do func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.before != nil {
		if err := w.before(name); err != nil {
			return err
		}
	}
	w.effects = append(w.effects, name)
	do()
	if w.after != nil {
		w.after(name)
	}
	if w.hints != nil {
		select {
		case w.hints <- struct{}{}:
		default:
		}
	}
	return nil
}

// takeEffects returns the effects since the last call.
func (w *world) takeEffects() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.Join(w.effects, ", ")
	w.effects = nil
	return text
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.looks
}

func (w *world) config(log *bytes.Buffer) Config[string, thing] {
	c := Config[string, thing]{
		Name: "fake", Driver: w, Compare: strings.Compare,
		Equal:  func(want, have thing) bool { return want == have },
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	if w.hints != nil {
		c.Changes = w.hints
	}
	return c
}

func wants(things ...thing) map[string]thing {
	want := map[string]thing{}
	for _, th := range things {
		want[th.name] = th
	}
	return want
}

var (
	link   = thing{"1 link", "a"}
	routeA = thing{"2 route a", "a"}
	routeB = thing{"2 route b", "b"}
	all    = []thing{link, routeA, routeB}
)

// run is a Loop over a world, in a bubble of fake time.
type run struct {
	*Loop[string, thing]
	world *world
	log   *bytes.Buffer
}

// inBubble runs a test with a Loop that is running.
func inBubble(t *testing.T, w func() *world, test func(t *testing.T, r run)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := run{world: w(), log: &bytes.Buffer{}}
		r.Loop = New(r.world.config(r.log))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		test(t, r)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v, want nil at the end", err)
		}
		if got := r.world.foreign["1 docker0"].value; got != "theirs" {
			t.Errorf("a foreign thing is %q now", got)
		}
	})
}

// states returns every item's state, as in "1 link done, 2 route a failed".
func (r run) states() string {
	s := r.Status()
	var texts []string
	for _, name := range sortedKeys(s.Items) {
		text := name + " " + s.Items[name].State.String()
		if s.Items[name].Removing {
			text += " removing"
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

// expect waits until the Loop has nothing to do at this moment, and compares.
func (r run) expect(t *testing.T, effects, states string, settled bool) {
	t.Helper()
	synctest.Wait()
	if got := r.world.takeEffects(); got != effects {
		t.Errorf("effects %q, want %q", got, effects)
	}
	if got := r.states(); got != states {
		t.Errorf("states %q, want %q", got, states)
	}
	if got := r.Status().Settled; got != settled {
		t.Errorf("settled %t, want %t", got, settled)
	}
}

func (r run) logged(t *testing.T, lines ...string) {
	t.Helper()
	got := strings.Split(strings.TrimSuffix(r.log.String(), "\n"), "\n")
	if r.log.Len() == 0 {
		got = nil
	}
	bad := len(got) != len(lines)
	for i := range min(len(got), len(lines)) {
		bad = bad || !strings.Contains(got[i], lines[i])
	}
	if bad {
		t.Errorf("log:\n%s\nwant lines with %s", r.log, fmt.Sprintf("%q", lines))
	}
}
