package kube

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/control"
)

// TestEvents holds that what happens is told of the own Node, what repeats once,
// and that a guest, who has no right to, tells nothing.
func TestEvents(t *testing.T) {
	f := newFakeServer(t)
	f.set(newNode("own", cidr4(1)))
	s, _ := newSource(t, f, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(control.Snapshot) {}) }()
	s.Event(true, "PeerLost", "b: unreachable")
	s.Event(true, "PeerLost", "b: unreachable")
	f.await(t, "the event and its repetition", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.told) == 1 && len(f.repeats) == 1
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	event := f.told[0]
	if event.Type != corev1.EventTypeWarning || event.Reason != "PeerLost" || event.Message != "b: unreachable" ||
		event.InvolvedObject.Kind != "Node" || event.InvolvedObject.Name != "own" || event.Source.Component != "weft" || event.Namespace != "default" {
		t.Errorf("event %+v", event)
	}
	if !strings.Contains(f.repeats[0], `"count":2`) {
		t.Errorf("patch %s", f.repeats[0])
	}
	invite := newInvite()
	guest := &Source{cfg: Config{Invite: &invite}, happenings: make(chan happening, 1)}
	if guest.Event(false, "PeerBack", "b"); len(guest.happenings) != 0 {
		t.Error("a guest tells of an event")
	}
}

// TestEventsDoNotWait holds that more than can be told hold nobody up.
func TestEventsDoNotWait(t *testing.T) {
	s := &Source{happenings: make(chan happening, maxHappenings)}
	for range 2 * maxHappenings {
		s.Event(false, "PeerBack", "b")
	}
}
