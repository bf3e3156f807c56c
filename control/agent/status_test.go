package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// reporting is an engine, a prober of ways and a kernel that report to the
// tracker before they answer, as one does that holds its own lock while it does.
type reporting struct{ tracker *Tracker }

func (r reporting) report() { r.tracker.setEngine(r) }

func (r reporting) Counters() map[string]uint64 { r.report(); return nil }
func (r reporting) Offloads() []string          { r.report(); return nil }
func (r reporting) PathMTUs() map[netip.Prefix]int {
	r.report()
	return nil
}
func (r reporting) Sessions() map[netip.Prefix]wireguard.Status { r.report(); return nil }
func (r reporting) Report() map[control.WayID]health.Health     { r.report(); return nil }
func (r reporting) Handshakes(context.Context) (map[tunnel.Key]time.Time, error) {
	r.report()
	return nil, nil
}

// TestAskedWithoutLock: whoever the tracker asks may report to it meanwhile. When
// that waited, status and a start of the engine could wait for each other for good.
func TestAskedWithoutLock(t *testing.T) {
	tracker := NewTracker("a", "test", slog.New(slog.DiscardHandler))
	r := reporting{tracker}
	tracker.setEngine(r)
	tracker.setWatch(r)
	tracker.setKernel(r)
	answered := make(chan Status)
	go func() { answered <- tracker.Current(t.Context()) }()
	select {
	case <-answered:
	case <-time.After(10 * time.Second):
		t.Fatal("status and its sources wait for each other")
	}
}
