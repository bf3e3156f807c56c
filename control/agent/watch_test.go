package agent

import (
	"context"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
)

// fakePinger answers for host b, whose VXLAN can be deaf.
type fakePinger struct {
	answered func(uint64)
	outer    []netip.Addr
	byVXLAN  func() bool // the routes lead to it
	deaf     atomic.Bool
	past     atomic.Int32 // probes past the routes
	opened   atomic.Int32 // times
	hasPort  bool         // when opened first, it is given a port that the engine is to listen on
}

func (p *fakePinger) Ping(from, to netip.Addr, _ int, token uint64) error {
	if from == netip.MustParseAddr("10.244.1.0") && to == netip.MustParseAddr("10.244.2.0") && !(p.deaf.Load() && p.byVXLAN()) {
		p.answered(token)
	}
	return nil
}

func (p *fakePinger) PingVXLAN(way VXLANWay, _ netip.Addr, _ int, token uint64) error {
	p.past.Add(1)
	want := VXLANWay{
		Local: tunnel.Local{Subnet: netip.MustParsePrefix("10.244.1.0/24"), MAC: way.Local.MAC, VNI: 1},
		To:    netip.MustParseAddrPort("192.0.2.2:8472"), MAC: tunnel.MAC{2, 0, 0, 0, 0, 2},
	}
	if way == want && way.Local.MAC != (tunnel.MAC{}) && !p.deaf.Load() {
		p.answered(token)
	}
	return nil
}

func (p *fakePinger) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (p *fakePinger) Close() error                  { return nil }

// TestPingerGivesWay: a port that the system gave to the pinger is the engine's
// as soon as it is missed there.
func TestPingerGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, speaking(t.TempDir(), func(r *rig, _ *Config) {
			r.host.pinger, r.host.slow = &fakePinger{hasPort: true}, 100*time.Millisecond // the pinger opens first
		}))
		r.source.snapshots <- control.Snapshot{Complete: true}
		time.Sleep(time.Second)
		status := r.settle()
		if opened := r.host.pinger.opened.Load(); opened != 2 || status.State != StateUp || status.Reason != "" {
			t.Errorf("opened %d times, host %s: %q", opened, status.State, status.Reason)
		}
		r.end(t)
	})
}

// TestFailedWayIsLeft: a host whose VXLAN answers no more is reached by
// WireGuard within three seconds, and by VXLAN again when that answers.
func TestFailedWayIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, speaking(t.TempDir(), func(r *rig, _ *Config) { r.host.pinger, r.host.wireGuard = &fakePinger{}, nil }))
		peer := peerLease("b", 2)
		peer.Offers.WireGuard = control.WireGuardOffer{Keys: tunnel.WireGuardKeys{{9}}, Ports: [2]uint16{51820}}
		route := func() tunnel.Route {
			r.host.mu.Lock()
			defer r.host.mu.Unlock()
			route, _ := r.host.objects[tunnel.Key{Kind: tunnel.KindRoute, Name: "10.244.2.0/24"}].(tunnel.Route)
			return route
		}
		r.host.pinger.byVXLAN = func() bool { return route().Link == "flannel.1" }
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peer}}
		if status := r.settle().Peers[0]; status.Encap != "vxlan" || status.RTT == nil || *status.Loss != 0 {
			t.Fatalf("have %+v", status)
		}
		r.host.pinger.deaf.Store(true)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		status := r.agent.Status.Current(t.Context()).Peers[0]
		if route().Link != "flannel-wg" || status.Encap != "wireguard" || !strings.Contains(status.Reason, "got 0") {
			t.Errorf("route %+v, status %+v", route(), status)
		}
		r.host.pinger.deaf.Store(false)
		time.Sleep(time.Minute)
		if status := r.settle().Peers[0]; route().Link != "flannel.1" || status.Encap != "vxlan" || r.host.pinger.past.Load() == 0 {
			t.Errorf("route %+v, status %+v, %d probes past the routes", route(), status, r.host.pinger.past.Load())
		}
		r.end(t)
	})
}

// TestPingerMoves holds that probes leave from the address the host has now.
func TestPingerMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(r *rig, _ *Config) { r.host.pinger = &fakePinger{} })
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		r.settle()
		moved := netip.MustParseAddr("192.0.2.77")
		r.host.mu.Lock()
		r.host.outer.Addrs, r.host.outer.Public = []netip.Addr{moved}, []netip.Addr{moved}
		r.host.mu.Unlock()
		r.host.changes <- struct{}{}
		r.settle()
		if outer := r.host.pinger.outer; len(outer) != 1 || outer[0] != moved {
			t.Errorf("probes leave from %v, want %v", outer, moved)
		}
		r.end(t)
	})
}

// TestUnknownIsNotFailed holds that a host without means to probe leaves no way.
func TestUnknownIsNotFailed(t *testing.T) {
	w := &watch{agent: quietAgent(), ways: map[control.WayID]watched{}}
	if err := w.Probe(control.WayID{Host: "b"}, 100, 1); err == nil || !strings.Contains(err.Error(), health.ErrUnknown.Error()) {
		t.Errorf("a way that is not there: %v", err)
	}
}
