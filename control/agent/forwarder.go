package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/control/plan"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// forwarder runs the userspace engine: it opens its device and sockets, again
// if they fail, and hands it the plan's peers.
type forwarder struct {
	agent *Agent
	moved chan<- struct{} // takes a token when working may answer differently
	// answered is told the tokens of probes of ways that were answered.
	answered func(token uint64)
	// portTaken is told that a port to listen on is in use. It may be one that the
	// system gave to the Pinger, which keeps it: WireGuard's are among those it picks from.
	portTaken func()

	mu      sync.Mutex
	self    control.Self
	reopen  context.CancelFunc // ends what Run is at, which starts over
	planned control.Plan
	engine  *engine.Engine // nil while not running
	workers []engine.Worker
	// strangers are to be greeted when the engine knows its peers; nil: no more.
	strangers *contacts
}

func newForwarder(a *Agent, self control.Self, moved chan<- struct{}) *forwarder {
	return &forwarder{agent: a, self: self, moved: moved, portTaken: func() {}, reopen: func() {}}
}

// Run keeps an engine running until ctx is done. The wanted UDP port may be
// taken for a while by a kernel VXLAN device that is about to be removed.
func (f *forwarder) Run(ctx context.Context) error {
	const firstWait, lastWait = 100 * time.Millisecond, 5 * time.Second
	wait := firstWait
	for {
		attempt, want := f.begin(ctx)
		err := f.runOnce(attempt, want)
		if ctx.Err() != nil {
			return nil
		}
		if attempt.Err() != nil {
			wait = firstWait
			continue // this host has moved
		}
		f.agent.Status.waitFor(topicEngine, fmt.Sprintf("userspace engine: %v", err))
		if errors.Is(err, syscall.EADDRINUSE) {
			f.portTaken()
		}
		select {
		case <-attempt.Done():
			wait = firstWait
		case <-time.After(wait):
			wait = min(2*wait, lastWait)
		}
	}
}

// begin says what is to be opened now. The context ends when that has changed.
func (f *forwarder) begin(ctx context.Context) (context.Context, Datapath) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reopen()
	ctx, f.reopen = context.WithCancel(ctx)
	want := Datapath{
		Device: f.self.Device, MTU: plan.Plan(control.Snapshot{}, f.self, f.agent.policy).MTU, Networks: f.agent.policy.Networks,
	}
	want.Listen, want.WireGuard = f.listen(f.self)
	for _, leg := range f.self.Lease.Legs {
		want.Addresses = append(want.Addresses, leg.Subnet.Addr())
	}
	return ctx, want
}

// setSelf takes over where this host is now. Sockets for other addresses take
// a new engine.
func (f *forwarder) setSelf(self control.Self) {
	f.mu.Lock()
	defer f.mu.Unlock()
	vxlan, wireGuard := f.listen(f.self)
	nowVXLAN, nowWireGuard := f.listen(self)
	if !slices.Equal(vxlan, nowVXLAN) || !slices.Equal(wireGuard, nowWireGuard) {
		f.reopen()
	}
	f.self = self
}

// runOnce opens everything, runs, and closes everything.
func (f *forwarder) runOnce(ctx context.Context, want Datapath) error {
	workers, err := f.agent.Host.OpenDatapath(want)
	if err != nil {
		return err
	}
	config := engine.Config{Workers: workers, KeepAcks: f.agent.KeepAcks, Answered: f.answered, Logger: f.agent.Logger}
	if ring := f.agent.ring; ring != nil {
		k := ring.now()
		config.WireGuard = wireguard.Config{Key: k.Current, Next: k.Other, Preshared: ring.preshared}
	}
	running, err := engine.New(config)
	if err != nil {
		errs := []error{err}
		for _, w := range workers {
			errs = append(errs, w.Close())
		}
		return errors.Join(errs...)
	}
	var noted *contacts
	if sessions := running.WireGuard(); sessions != nil {
		noted = &contacts{agent: f.agent, sessions: sessions}
		defer noted.keep()()
	}
	f.start(running, workers, noted)
	defer f.stop()
	return running.Run(ctx)
}

func (f *forwarder) start(running *engine.Engine, workers []engine.Worker, strangers *contacts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.engine, f.workers, f.strangers = running, workers, strangers
	f.apply()
	f.agent.Status.setEngine(f)
	f.agent.Status.waitFor(topicEngine, "")
	signal(f.moved)
}

func (f *forwarder) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.engine = nil
	signal(f.moved)
}

// setPlan hands over the peers of a new plan.
func (f *forwarder) setPlan(planned control.Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.planned = planned
	f.apply()
}

// apply must be called with mu held.
func (f *forwarder) apply() {
	if f.engine == nil {
		return
	}
	if err := errors.Join(f.engine.SetLocals(f.planned.Locals), f.engine.SetPeers(f.planned.Peers)); err != nil {
		f.agent.Logger.Error("hand plan to the userspace engine", "err", err)
	}
	if f.strangers != nil && f.planned.Complete {
		f.strangers.greet()
		f.strangers = nil
	}
	// A TUN's MTU is one of the plan's objects; a device of our own is told.
	for _, worker := range f.workers {
		device, ok := worker.Device.(interface{ SetMTU(mtu int) error })
		if !ok || f.planned.MTU == 0 {
			continue
		}
		if err := device.SetMTU(f.planned.MTU); err != nil {
			f.agent.Logger.Error("set the device's MTU", "err", err)
		}
	}
}

// working reports whether packets can flow as far as the engine is concerned.
func (f *forwarder) working() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.engine != nil || f.self.Engine != tunnel.EngineUserspace
}

// Counters implements engineCounters.
func (f *forwarder) Counters() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	counters := map[string]uint64{}
	if f.engine != nil {
		f.engine.Stats().Each(func(name string, value uint64) { counters[name] = value })
	}
	return counters
}

// Offloads implements engineCounters.
func (f *forwarder) Offloads() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.engine == nil {
		return nil
	}
	// All workers are opened alike.
	why := append([]string(nil), f.workers[0].Device.Offloads().Why...)
	for _, socket := range f.workers[0].Sockets {
		why = append(why, socket.Offloads().Why...)
	}
	return append(why, f.engine.Fallbacks()...)
}

// PathMTUs implements engineCounters.
func (f *forwarder) PathMTUs() map[netip.Prefix]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.engine == nil {
		return nil
	}
	return f.engine.PathMTUs()
}

// listen is where datagrams for each leg arrive. Peers accept frames only from
// the address they send to, so what we send must leave from it: the sockets are
// bound to the local outer address, and not to all.
func (f *forwarder) listen(self control.Self) (vxlan, wireGuard []netip.AddrPort) {
	policy := f.agent.policy
	for _, leg := range self.Lease.Legs {
		addr := addrOfFamily(self.Underlay.Addrs, leg.Subnet)
		if self.Engine == tunnel.EngineUserspace && policy.Backend == string(tunnel.EncapVXLAN) && !f.agent.NoVXLAN {
			vxlan = append(vxlan, netip.AddrPortFrom(addr, policy.Port))
		}
		if self.WireGuard == tunnel.EngineUserspace {
			wireGuard = append(wireGuard, netip.AddrPortFrom(addr, policy.WireGuardPorts[familyIndex(leg.Subnet)]))
		}
	}
	return vxlan, wireGuard
}

// SetKeys implements keyHolder. An engine that is opened later has them anyway.
func (f *forwarder) SetKeys(key, other, _ tunnel.SecretKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.engine == nil || f.engine.WireGuard() == nil {
		return nil
	}
	return f.engine.WireGuard().SetKeys(key, other)
}

// probeWay probes a way of the engine's.
func (f *forwarder) probeWay(subnet netip.Prefix, encap tunnel.Encap, size int, token uint64) error {
	f.mu.Lock()
	running := f.engine
	f.mu.Unlock()
	if running == nil {
		return errors.New("the userspace engine does not run")
	}
	err := running.ProbeWay(subnet, encap, size, token)
	if errors.Is(err, engine.ErrProbeSize) {
		return fmt.Errorf("%w: %w", health.ErrUnknown, err)
	}
	return err
}

// Sessions implements engineCounters.
func (f *forwarder) Sessions() map[netip.Prefix]wireguard.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.engine == nil {
		return nil
	}
	return f.engine.Sessions()
}
