package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/control/netconf"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// TestMain passes over the one goroutine that serves all named pipes of a
// Windows process for good.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("golang.zx2c4.com/wireguard/ipc/namedpipe.ioCompletionProcessor"))
}

// fakeSource leases 10.244.1.0/24 and delivers what the test puts into it.
type fakeSource struct {
	netConf   string // empty: one that uses vxlan
	recall    control.Recall
	claimed   control.Claim
	snapshots chan control.Snapshot
	ready     int
	lost      error
	refuse    error // of Move
	recalls   chan control.Recall

	mu    sync.Mutex
	moves []control.Claim
}

func (s *fakeSource) NetConf(context.Context) (netconf.Config, error) {
	return netconf.Parse([]byte(cmp.Or(s.netConf, `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`)))
}

func (s *fakeSource) Recall(context.Context) (control.Recall, error) { return s.recall, nil }

func (s *fakeSource) Acquire(_ context.Context, claim control.Claim) (control.Lease, error) {
	s.claimed = claim
	leg := claim.Legs[0]
	leg.Subnet = netip.MustParsePrefix("10.244.1.0/24")
	return control.Lease{Host: claim.Host, Backend: claim.Backend, Legs: []control.Leg{leg}, Offers: claim.Offers}, nil
}

func (s *fakeSource) Run(ctx context.Context, deliver func(control.Snapshot)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case snapshot, open := <-s.snapshots:
			if !open {
				return s.lost
			}
			deliver(snapshot)
		}
	}
}

// moved is what Move has been told so far.
func (s *fakeSource) moved() []control.Claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.moves)
}

func (s *fakeSource) Move(claim control.Claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse == nil {
		s.moves = append(s.moves, claim)
	}
	return s.refuse
}

func (s *fakeSource) Recalls() <-chan control.Recall { return s.recalls }

func (s *fakeSource) Ready(context.Context) error { s.ready++; return nil }
func (s *fakeSource) Close() error                { return nil }

// fakeHost keeps objects in memory.
type fakeHost struct {
	vxlan     error // why there is no kernel VXLAN
	wireGuard error // why there is no kernel WireGuard
	tun       error // why there is no TUN
	engine    error // why the userspace engine has no device
	slow      time.Duration
	existing  tunnel.MAC
	pinger    *fakePinger // nil: there is no means to probe

	mu      sync.Mutex
	objects map[tunnel.Key]tunnel.Object
	refuse  map[tunnel.Key]error
	outer   Outer
	outerOK bool
	changes chan struct{}
	opened  []Datapath
	devices []tunnel.Device // opened
	looks   int
}

func newFakeHost() *fakeHost {
	return &fakeHost{
		objects: map[tunnel.Key]tunnel.Object{}, refuse: map[tunnel.Key]error{}, changes: make(chan struct{}, 1), outerOK: true,
		outer: Outer{Underlay: control.Underlay{Link: "eth0", MTU: 1500, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
			Public: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	}
}

func (h *fakeHost) Underlay(_ context.Context, recall control.Recall, _ []netip.Prefix, _ []netip.Addr) (Outer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.looks++
	if !h.outerOK {
		return Outer{}, errors.New("no default route")
	}
	outer := h.outer
	if len(recall.PublicIP) > 0 {
		outer.Public = recall.PublicIP
	}
	return outer, nil
}
func (h *fakeHost) UnderlayChanges(context.Context) <-chan struct{} { return h.changes }
func (h *fakeHost) KernelVXLAN(context.Context) error               { return h.vxlan }
func (h *fakeHost) KernelWireGuard(context.Context) error           { return h.wireGuard }
func (h *fakeHost) Pinger(outer []netip.Addr, answered func(uint64)) (Pinger, error) {
	if h.pinger == nil {
		return nil, health.ErrUnknown
	}
	h.pinger.outer, h.pinger.answered = outer, answered
	h.pinger.opened.Add(1)
	return h.pinger, nil
}
func (h *fakeHost) UsableTUN() error { return h.tun }
func (h *fakeHost) ExistingMAC(tunnel.Link) (tunnel.MAC, bool, error) {
	return h.existing, h.existing != tunnel.MAC{}, nil
}
func (h *fakeHost) Objects() (Driver, error)  { return fakeDriver{h, false}, nil }
func (h *fakeHost) Firewall() (Driver, error) { return fakeDriver{h, true}, nil }

func (h *fakeHost) OpenDatapath(want Datapath) ([]engine.Worker, error) {
	time.Sleep(h.slow)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.opened = append(h.opened, want)
	if h.engine != nil {
		return nil, h.engine
	}
	if h.pinger != nil && h.pinger.hasPort && h.pinger.opened.Load() == 1 {
		return nil, fmt.Errorf("listen: %w", syscall.EADDRINUSE)
	}
	device, _ := tunneltest.NewDevices(want.MTU, tunneltest.AllOffloads())
	h.devices = append(h.devices, device)
	worker := engine.Worker{Device: device}
	for _, addr := range want.Listen {
		worker.Sockets = append(worker.Sockets, tunneltest.NewWire(tunneltest.WireConfig{}).Socket(addr, tunnel.Offloads{}))
	}
	for _, addr := range want.WireGuard {
		worker.Sealed = append(worker.Sealed, tunneltest.NewWire(tunneltest.WireConfig{}).Socket(addr, tunnel.Offloads{}))
	}
	return []engine.Worker{worker}, nil
}

type fakeDriver struct {
	*fakeHost
	firewall bool
}

func (d fakeDriver) Observe(context.Context) (map[tunnel.Key]tunnel.Object, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	have := maps.Clone(d.objects)
	maps.DeleteFunc(have, func(k tunnel.Key, _ tunnel.Object) bool { return (k.Kind == tunnel.KindFirewall) != d.firewall })
	return have, nil
}

func (d fakeDriver) Apply(_ context.Context, want tunnel.Object) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.refuse[want.Key()]; err != nil {
		return err
	}
	d.objects[want.Key()] = want
	return nil
}

func (d fakeDriver) Delete(_ context.Context, have tunnel.Object) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.objects, have.Key())
	return nil
}

func (d fakeDriver) Changes() <-chan struct{} { return nil }
func (d fakeDriver) Close() error             { return nil }

// rig is one agent on fakes, joining in a bubble of its own time.
type rig struct {
	source *fakeSource
	host   *fakeHost
	agent  *Agent
	env    string
	stop   context.CancelFunc
	ended  chan error
}

func start(t *testing.T, change func(*rig, *Config)) *rig {
	t.Helper()
	r := &rig{source: &fakeSource{snapshots: make(chan control.Snapshot), recalls: make(chan control.Recall)}, host: newFakeHost(), ended: make(chan error, 1)}
	r.env = filepath.Join(t.TempDir(), "subnet.env")
	logger := slog.New(slog.DiscardHandler)
	cfg := Config{Node: "a", Source: r.source, Host: r.host, Engine: "auto", Device: "weft0", SubnetFile: r.env,
		Masquerade: true, Resync: time.Minute, Status: NewTracker("a", "test", logger), Logger: logger}
	if change != nil {
		change(r, &cfg)
	}
	agent, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.agent = agent
	var ctx context.Context
	ctx, r.stop = context.WithCancel(t.Context())
	go func() { r.ended <- agent.join(ctx) }()
	return r
}

// settle lets time pass until everything that was started is done.
func (r *rig) settle() Status {
	time.Sleep(10 * time.Second)
	synctest.Wait()
	return r.agent.Status.Current(context.Background())
}

func (r *rig) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("join: %v", err)
	}
}

func peerLease(name string, n int) control.Lease {
	return control.Lease{Host: name, Backend: "vxlan", Legs: []control.Leg{{
		Subnet:   netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)),
		PublicIP: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)),
		MAC:      tunnel.MAC{2, 0, 0, 0, 0, byte(n)}, VNI: 1,
	}}}
}

func TestJoinProgramsPeersThenIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		if status := r.settle(); status.Ready || len(r.host.objects) != 0 {
			t.Fatalf("before any listing: ready %v, objects %v", status.Ready, r.host.objects)
		}
		r.source.snapshots <- control.Snapshot{Leases: []control.Lease{peerLease("b", 2)}}
		if status := r.settle(); status.Ready || status.Items.Done == 0 {
			t.Fatalf("after part of a listing: %+v", status)
		}
		if _, err := os.Stat(r.env); err == nil {
			t.Error("subnet.env is written before the host is ready")
		}
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2), peerLease("c", 3)}}
		status := r.settle()
		if !status.Ready || status.State != StateUp || len(status.Peers) != 2 || r.source.ready != 1 || status.Device != "flannel.1" {
			t.Fatalf("after the whole listing: %+v, source told %d times", status, r.source.ready)
		}
		if env, err := os.ReadFile(r.env); err != nil || !strings.Contains(string(env), "FLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n") {
			t.Errorf("subnet.env: %q, %v", env, err)
		}
		before := len(r.host.objects)
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		if r.settle(); len(r.host.objects) != before-3 {
			t.Errorf("a peer that left leaves %d of %d objects, want its 3 gone", len(r.host.objects), before)
		}
		r.end(t)
		if len(r.host.objects) == 0 {
			t.Error("the agent's end has removed what carries traffic")
		}
	})
}

// TestOneFailingPeerHarmsNoOther: flannel's loop stood still for 51.5 s.
func TestOneFailingPeerHarmsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		bad := tunnel.Key{Kind: tunnel.KindRoute, Name: "10.244.2.0/24"}
		r.host.refuse[bad] = errors.New("network is unreachable")
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2), peerLease("c", 3)}}
		status := r.settle()
		if status.Peers[0].State != StateFailed || !strings.Contains(status.Peers[0].Reason, "network is unreachable") || status.Peers[1].State != StateUp {
			t.Fatalf("peers: %+v", status.Peers)
		}
		r.host.mu.Lock()
		delete(r.host.refuse, bad)
		r.host.mu.Unlock()
		time.Sleep(time.Minute)
		if status = r.settle(); status.Peers[0].State != StateUp {
			t.Errorf("peer that can be programmed again: %+v", status.Peers[0])
		}
		r.end(t)
	})
}

func TestVTEPMACComesFromDeviceThenRecallThenName(t *testing.T) {
	existing, recalled := tunnel.MAC{2, 1, 1, 1, 1, 1}, tunnel.MAC{2, 2, 2, 2, 2, 2}
	tests := map[string]struct {
		existing, recalled, want tunnel.MAC
		vxlan                    error
	}{
		"existing device": {existing, recalled, existing, nil},
		"recalled":        {tunnel.MAC{}, recalled, recalled, nil},
		"derived":         {tunnel.MAC{}, tunnel.MAC{}, deriveMAC("a", 1, netip.MustParsePrefix("10.244.0.0/16")), nil},
		"userspace":       {existing, recalled, recalled, errors.New("operation not supported")},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, func(r *rig, _ *Config) {
					r.host.existing, r.host.vxlan = test.existing, test.vxlan
					r.source.recall.MACs = []tunnel.MAC{test.recalled, {}}
				})
				status := r.settle()
				if got := r.source.claimed.Legs[0].MAC; got != test.want {
					t.Errorf("claims MAC %s, want %s", got, test.want)
				}
				if test.vxlan != nil && (status.Engine != "userspace" || status.EngineReason != test.vxlan.Error()) {
					t.Errorf("engine %s because %q", status.Engine, status.EngineReason)
				}
				r.end(t)
			})
		})
	}
}

func TestWaitingHasAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(r *rig, _ *Config) { r.host.outerOK = false })
		if status := r.settle(); status.State != StateWaiting || status.Reason != "no default route" {
			t.Fatalf("without an underlay: %+v", status)
		}
		r.host.mu.Lock()
		r.host.outerOK = true
		r.host.mu.Unlock()
		if status := r.settle(); status.State != StateProgramming || status.Reason != "" {
			t.Fatalf("with an underlay again: %+v", status)
		}
		r.end(t)
	})
}

// TestLostLeaseIsAnError: flannel ended with exit code 0.
func TestLostLeaseIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(r *rig, _ *Config) { r.source.lost = errors.New("another host holds 10.244.1.0/24") })
		r.settle()
		close(r.source.snapshots)
		if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "another host holds") {
			t.Errorf("join ends with %v", err)
		}
		r.stop()
	})
}

// TestUserspaceEngineMakesReady: the engine may start after everything else is
// in place, and may have to be started again.
func TestUserspaceEngineMakesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(r *rig, cfg *Config) {
			cfg.Engine = "userspace"
			r.host.slow, r.host.engine = 3*time.Second, errors.New("/dev/net/tun: permission denied")
		})
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		if status := r.settle(); status.Ready || !strings.Contains(status.Reason, "permission denied") {
			t.Fatalf("without a device: ready %v, reason %q", status.Ready, status.Reason)
		}
		r.host.mu.Lock()
		r.host.engine = nil
		r.host.mu.Unlock()
		if status := r.settle(); !status.Ready || status.Reason != "" || status.Counters == nil {
			t.Fatalf("with a device that came last: %+v", status)
		}
		r.end(t)
	})
}
