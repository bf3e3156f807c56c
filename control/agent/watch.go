package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
)

// Pinger probes ways that are the kernel's. An error that is health.ErrUnknown
// means that this host has no means to.
type Pinger interface {
	// Ping sends an echo request of size bytes from one inner address to another by
	// the kernel's routes, and PingVXLAN past them.
	Ping(from, to netip.Addr, size int, token uint64) error
	PingVXLAN(way VXLANWay, to netip.Addr, size int, token uint64) error
	// Run takes in answers until ctx is done, and closes the Pinger.
	Run(ctx context.Context) error
	Close() error
}

// VXLANWay is how a host is reached by VXLAN whatever the routes say.
type VXLANWay struct {
	Local tunnel.Local
	To    netip.AddrPort // outer
	MAC   tunnel.MAC     // of the host's VTEP
}

// watch has all ways probed, in use or not, so that those that do not work are
// left for others, and taken again when they do.
type watch struct {
	agent   *Agent
	engine  *forwarder
	monitor *health.Monitor
	changed chan struct{} // a token: what has failed is not what it was

	mu     sync.Mutex
	self   control.Self
	ways   map[control.WayID]watched
	pinger Pinger        // nil: there is none now
	reopen chan struct{} // a token: with other addresses, or other ports
}

// watched is a way, and what is needed to probe it.
type watched struct {
	control.Option
	subnet netip.Prefix
	inUse  bool
	mac    tunnel.MAC // of the host's VTEP, where it has one
}

func newWatch(a *Agent, self control.Self, engine *forwarder) (*watch, error) {
	w := &watch{agent: a, engine: engine, self: self, changed: make(chan struct{}, 1), reopen: make(chan struct{}, 1)}
	var err error
	w.monitor, err = health.New(health.Config{Prober: w, Logger: a.Logger, Changed: func() { signal(w.changed) }})
	if err != nil {
		return nil, err
	}
	engine.answered = w.monitor.Answered
	engine.portTaken = func() { signal(w.reopen) }
	return w, nil
}

// Run probes until ctx is done.
func (w *watch) Run(ctx context.Context) error {
	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		w.ping(ctx)
	}()
	defer func() { <-pinging }()
	return w.monitor.Run(ctx)
}

// ping keeps a Pinger open for as long as there are ways of the kernel's.
func (w *watch) ping(ctx context.Context) {
	for ctx.Err() == nil {
		w.mu.Lock()
		outer := slices.Clone(w.self.Underlay.Addrs)
		w.mu.Unlock()
		if err := w.pingFrom(ctx, outer); err != nil && ctx.Err() == nil {
			w.agent.Logger.Info("ways of the kernel are not probed", "reason", err)
			select { // nothing that time alone mends
			case <-ctx.Done():
			case <-w.reopen:
			}
		}
	}
}

// pingFrom keeps a Pinger open that sends from outer addresses, until there are others.
func (w *watch) pingFrom(ctx context.Context, outer []netip.Addr) error {
	pinger, err := w.agent.Host.Pinger(outer, w.monitor.Answered)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- pinger.Run(ctx) }()
	w.use(pinger)
	defer w.use(nil)
	select {
	case err = <-ended:
		return err
	case <-w.reopen:
	case <-ctx.Done():
	}
	stop()
	return <-ended
}

func (w *watch) use(pinger Pinger) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pinger = pinger
}

// setPlan has the ways of a plan watched, which was made for self of leases.
func (w *watch) setPlan(planned control.Plan, self control.Self, leases []control.Lease) {
	macs := map[netip.Prefix]tunnel.MAC{}
	for _, l := range leases {
		for _, leg := range l.Legs {
			macs[leg.Subnet] = leg.MAC
		}
	}
	ways, targets := map[control.WayID]watched{}, []health.Target{}
	idle := idleWays(planned)
	for _, host := range planned.Hosts {
		for _, way := range host.Ways {
			if idle > mostIdle && isIdle(way) {
				continue
			}
			inUse := control.Option{Endpoint: way.Endpoint, Encap: way.Encap, Engine: way.Engine, MTU: way.MTU}
			for i, option := range append([]control.Option{inUse}, way.Others...) {
				id := control.WayID{Host: host.Host, Is4: way.Subnet.Addr().Is4(), Encap: option.Encap}
				ways[id] = watched{Option: option, subnet: way.Subnet, inUse: i == 0, mac: macs[way.Subnet]}
				targets = append(targets, health.Target{ID: id, Port: option.Endpoint.Port(), InUse: i == 0, MTU: option.MTU})
			}
		}
	}
	w.mu.Lock()
	if !slices.Equal(w.self.Underlay.Addrs, self.Underlay.Addrs) {
		signal(w.reopen)
	}
	w.self, w.ways = self, ways
	w.mu.Unlock()
	w.monitor.SetTargets(targets)
}

// mostIdle bounds the WireGuard ways that are probed although nothing could be
// done about one that fails. A probe is traffic: it keeps a session alive, with a
// handshake every two minutes, that otherwise would be none while nobody talks.
const mostIdle = 64

func isIdle(way control.Way) bool {
	return way.Encap == tunnel.EncapWireGuard && len(way.Others) == 0
}

func idleWays(planned control.Plan) (count int) {
	for _, host := range planned.Hosts {
		for _, way := range host.Ways {
			if isIdle(way) {
				count++
			}
		}
	}
	return count
}

// Probe implements health.Prober.
func (w *watch) Probe(id control.WayID, size int, token uint64) error {
	w.mu.Lock()
	way, known := w.ways[id]
	self, pinger := w.self, w.pinger
	w.mu.Unlock()
	if !known {
		return fmt.Errorf("probe %s by %s: %w", id.Host, id.Encap, health.ErrUnknown)
	}
	if way.Engine == tunnel.EngineUserspace {
		return w.engine.probeWay(way.subnet, way.Encap, size, token)
	}
	own, found := legOf(self.Lease, id.Is4)
	switch {
	case !found, pinger == nil:
	case way.inUse:
		return pinger.Ping(own.Subnet.Addr(), way.subnet.Addr(), size, token)
	case way.Encap == tunnel.EncapVXLAN:
		return pinger.PingVXLAN(VXLANWay{
			Local: tunnel.Local{Subnet: own.Subnet, MAC: own.MAC, VNI: w.agent.policy.VNI}, To: way.Endpoint, MAC: way.mac,
		}, way.subnet.Addr(), size, token)
	}
	return fmt.Errorf("probe %s by %s: %w", id.Host, id.Encap, health.ErrUnknown)
}

func legOf(lease control.Lease, is4 bool) (control.Leg, bool) {
	i := slices.IndexFunc(lease.Legs, func(leg control.Leg) bool { return leg.Subnet.Addr().Is4() == is4 })
	if i < 0 {
		return control.Leg{}, false
	}
	return lease.Legs[i], true
}
