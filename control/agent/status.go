package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/keys"
	"github.com/weft-net/weft/tunnel"
)

// The states of a host and of a peer.
const (
	StateWaiting     = "waiting"     // for the lease source or the underlay
	StateProgramming = "programming" // the plan is being put in place
	StateUp          = "up"
	StateFailed      = "failed"      // an object could not be put in place; it is retried
	StateUnreachable = "unreachable" // there is no way to this peer
)

// Status is what `weft status -o json` prints.
type Status struct {
	Host         string            `json:"host"`
	Version      string            `json:"version"`
	State        string            `json:"state"`
	Reason       string            `json:"reason,omitempty"`
	Ready        bool              `json:"ready"`
	Engine       string            `json:"engine,omitempty"`
	EngineReason string            `json:"engine_reason,omitempty"`
	Device       string            `json:"device,omitempty"` // where inner packets enter and leave; two joined by a comma where each family has its own
	Encap        string            `json:"encap,omitempty"`
	Subnets      []string          `json:"subnets"`
	PublicIPs    []string          `json:"public_ips"`
	Moved        *Move             `json:"moved,omitempty"` // the last one; none since the start: nil
	MTU          int               `json:"mtu,omitempty"`
	Since        time.Time         `json:"since"`
	Peers        []PeerStatus      `json:"peers"`
	Problems     []Problem         `json:"problems"`
	Items        ItemCounts        `json:"items"`
	Failures     []ItemFailure     `json:"failures"`
	WireGuard    *WireGuardStatus  `json:"wireguard,omitempty"`
	Offloads     []string          `json:"offloads,omitempty"` // what the userspace engine has to do without, and why
	Counters     map[string]uint64 `json:"counters,omitempty"` // of the userspace engine
}

// Move is a change of the addresses that peers are told to send to.
type Move struct {
	From   []netip.Addr `json:"from"`
	To     []netip.Addr `json:"to"`
	Reason string       `json:"reason"`
	At     time.Time    `json:"at"`
}

// WireGuardStatus is how this host speaks WireGuard. Keys are public ones.
type WireGuardStatus struct {
	Engine string `json:"engine"` // empty: nobody carries it
	Reason string `json:"reason"`
	Key    string `json:"key,omitempty"`
	// Other is a key that takes the place of Key soon, or that Key has taken the place
	// of, as Phase says.
	Other string     `json:"other,omitempty"`
	Phase string     `json:"phase,omitempty"`
	Since *time.Time `json:"since,omitempty"` // of the phase
}

// PeerStatus is one other host.
type PeerStatus struct {
	Name       string    `json:"name"`
	Subnets    []string  `json:"subnets"`
	Endpoint   string    `json:"endpoint"`
	Encap      string    `json:"encap"`
	Engine     string    `json:"engine"`
	MTU        int       `json:"mtu"`
	PathMTU    int       `json:"path_mtu,omitempty"` // largest inner packet that gets there in one piece, as the userspace engine finds it
	Features   []string  `json:"features"`           // what is used because the peer offers it
	State      string    `json:"state"`
	Reason     string    `json:"reason"`
	LastChange time.Time `json:"last_change"`
	// Of the WireGuard session with it, if there was ever one.
	LastHandshake *time.Time `json:"last_handshake,omitempty"`
	LastReceived  *time.Time `json:"last_received,omitempty"`

	// What probes of the way in use say: the worst of its families. RTT is in
	// milliseconds, Loss from 0 to 1; nothing while nothing was answered.
	RTT  *float64 `json:"rtt_ms,omitempty"`
	Loss *float64 `json:"loss,omitempty"`
	// Trouble is what is wrong with a way that is in use all the same.
	Trouble string `json:"trouble,omitempty"`

	objects []tunnel.Key // that its ways need
	ways    []control.WayID
}

// Problem is something unusable in the lease source.
type Problem struct {
	Source string `json:"source"`
	Reason string `json:"reason"`
}

// ItemCounts counts host objects by state.
type ItemCounts struct {
	Done    int `json:"done"`
	Pending int `json:"pending"`
	Failed  int `json:"failed"`
}

// ItemFailure is one host object that could not be put in place.
type ItemFailure struct {
	Item     string `json:"item"`
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
}

// Tracker is the one place that knows how this host stands. It is safe for
// concurrent use, and logs transitions, never repeats.
type Tracker struct {
	logger *slog.Logger
	now    func() time.Time

	mu      sync.Mutex
	status  Status
	reasons map[topic]string // of everything that is waited for
	engine  engineCounters
	kernel  kernelSessions
	watch   reporter
	events  eventKeeper // nil: nobody keeps events
}

// topic is something a host may wait for.
type topic int

const (
	topicStart topic = iota
	topicLeases
	topicUnderlay
	topicEngine
	topicCount
)

// eventKeeper is a lease source where people look for what has happened to a
// host. Event does not wait.
type eventKeeper interface {
	Event(warning bool, reason, note string)
}

const starting = "starting"

// NewTracker starts in the waiting state.
func NewTracker(host, version string, logger *slog.Logger) *Tracker {
	return &Tracker{logger: logger, now: time.Now, reasons: map[topic]string{topicStart: starting}, status: Status{
		Host: host, Version: version, State: StateWaiting, Reason: starting, Since: time.Now(),
		Subnets: []string{}, PublicIPs: []string{}, Peers: []PeerStatus{}, Problems: []Problem{}, Failures: []ItemFailure{},
	}}
}

// Waiting records why the lease source has nothing to say; the empty reason
// ends the wait.
func (t *Tracker) Waiting(reason string) { t.waitFor(topicLeases, reason) }

// waitFor records why topic keeps this host waiting; empty: it does not.
func (t *Tracker) waitFor(topic topic, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if reason == t.reasons[topic] {
		return
	}
	t.reasons[topic] = reason
	delete(t.reasons, topicStart) // there is something better to say
	if reason != "" {
		t.logger.Warn("waiting", "reason", reason)
	}
	var reasons []string
	for topic := range topicCount {
		if reason := t.reasons[topic]; reason != "" {
			reasons = append(reasons, reason)
		}
	}
	t.status.Reason = strings.Join(reasons, "; ")
}

// Current is a copy of the status, with what the engine, the kernel and who
// probes ways know read now. They are asked without the lock: each has one of
// its own, and may want to report here while it holds that.
func (t *Tracker) Current(ctx context.Context) Status {
	t.mu.Lock()
	status := t.status
	status.Peers = slices.Clone(status.Peers)
	engine, kernel, watch := t.engine, t.kernel, t.watch
	t.mu.Unlock()
	if engine != nil {
		status.Counters = engine.Counters()
		status.Offloads = engine.Offloads()
		putPathMTUs(status.Peers, engine.PathMTUs())
		putSessions(status.Peers, engine.Sessions())
	}
	if watch != nil {
		putHealth(status.Peers, watch.Report())
	}
	if kernel != nil {
		handshakes, err := kernel.Handshakes(ctx)
		if err != nil {
			t.logger.Debug("ask for WireGuard's handshakes", "err", err)
		}
		putHandshakes(status.Peers, handshakes)
	}
	watchHandshakes(status.Peers, t.now())
	return status
}

// readiness says whether this host is ready, and if not, how it stands.
func (t *Tracker) readiness() (ready bool, state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status.Ready, t.status.State + " " + t.status.Reason
}

// setWireGuard records who carries WireGuard, and this host's keys.
func (t *Tracker) setWireGuard(engine tunnel.Engine, reason string, ring *keyring) {
	t.mu.Lock()
	t.status.WireGuard = &WireGuardStatus{Engine: string(engine), Reason: reason}
	t.mu.Unlock()
	if ring != nil {
		t.setKeys(ring.now())
	}
}

// setKeys records this host's keys, the public part of them.
func (t *Tracker) setKeys(k keys.Keys) {
	t.mu.Lock()
	defer t.mu.Unlock()
	status := *t.status.WireGuard // whoever has the one before may read it still
	status.Key, status.Other, status.Phase, status.Since = k.Public()[0].String(), "", string(k.Phase), nil
	if k.Phase != keys.Settled {
		status.Other = k.Public()[1].String()
	}
	if !k.Since.IsZero() {
		status.Since = &k.Since
	}
	t.status.WireGuard = &status
}

// noDevice stands for the device of a host that has none.
const noDevice = "none"

// joined records the lease and the engine.
func (t *Tracker) joined(self control.Self, policy control.Policy, engineReason string) {
	t.waitFor(topicStart, "")
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.status
	s.Engine, s.EngineReason = string(self.Engine), engineReason
	s.Encap = policy.Backend
	s.Device = self.Underlay.Link // until the plan has one of our own
	if self.Engine == tunnel.EngineUserspace && self.Device == "" {
		s.Device = noDevice
	}
	for _, leg := range self.Lease.Legs {
		s.Subnets = append(s.Subnets, leg.Subnet.String())
	}
	s.PublicIPs = texts(publicIPs(self.Lease.Legs))
	t.setState(StateProgramming)
}

// moved records that peers are told other addresses.
func (t *Tracker) moved(from, to []netip.Addr, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.PublicIPs = texts(to)
	t.status.Moved = &Move{From: from, To: to, Reason: reason, At: t.now()}
}

func texts(addrs []netip.Addr) []string {
	all := make([]string, 0, len(addrs))
	for _, addr := range addrs {
		all = append(all, addr.String())
	}
	return all
}

// tellOf keeps an event of a peer that is reached in another way than before, or
// not at all. It must be called with mu held.
func (t *Tracker) tellOf(old, peer PeerStatus) {
	if t.events == nil {
		return
	}
	lost := func(p PeerStatus) bool { return p.State == StateUnreachable || p.State == StateFailed }
	switch {
	case lost(peer) && !lost(old):
		t.events.Event(true, "PeerLost", fmt.Sprintf("%s: %s: %s", peer.Name, peer.State, peer.Reason))
	case lost(old) && !lost(peer):
		t.events.Event(false, "PeerBack", fmt.Sprintf("%s: by %s: %s", peer.Name, peer.Encap, peer.Reason))
	case old.Encap != peer.Encap:
		t.events.Event(false, "PeerWayChanged", fmt.Sprintf("%s: by %s, before by %s: %s", peer.Name, peer.Encap, old.Encap, peer.Reason))
	}
}

func (t *Tracker) setWatch(watch reporter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watch = watch
}

func (t *Tracker) setKernel(kernel kernelSessions) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kernel = kernel
}

func (t *Tracker) setEngine(engine engineCounters) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.engine = engine
}

// setState must be called with mu held.
func (t *Tracker) setState(state string) {
	if t.status.State == state {
		return
	}
	t.logger.Info("host state", "from", t.status.State, "to", state)
	t.status.State, t.status.Since = state, t.now()
}

// progress records how far the plan is in place. items knows every object that
// has been tried.
func (t *Tracker) progress(planned control.Plan, items map[tunnel.Key]itemState, ready bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &t.status
	s.MTU, s.Ready = planned.MTU, ready
	if names := linkNames(planned.Objects); names != "" {
		s.Device = names
	}
	s.Peers = t.peers(planned.Hosts, items)
	s.Problems = []Problem{}
	for _, p := range planned.Problems {
		s.Problems = append(s.Problems, Problem(p))
	}
	s.Items, s.Failures = ItemCounts{}, []ItemFailure{}
	for _, object := range planned.Objects {
		item := items[object.Key()]
		switch {
		case item.Err != "":
			s.Items.Failed++
			s.Failures = append(s.Failures, ItemFailure{Item: object.Key().String(), Reason: item.Err, Attempts: item.Attempts})
		case item.Done:
			s.Items.Done++
		default:
			s.Items.Pending++
		}
	}
	switch {
	case ready:
		t.setState(StateUp)
	case s.Items.Failed > 0 || planned.Complete && planned.MTU == 0:
		t.setState(StateFailed)
	default:
		t.setState(StateProgramming)
	}
}

// linkNames are the devices that carry inner packets, that of IPv4 first,
// joined by a comma.
func linkNames(objects []tunnel.Object) string {
	var addresses []tunnel.Address // each device has one of its family
	for _, object := range objects {
		if address, ok := object.(tunnel.Address); ok {
			addresses = append(addresses, address)
		}
	}
	slices.SortFunc(addresses, func(a, b tunnel.Address) int { return a.Prefix.Compare(b.Prefix) })
	var names []string
	for _, address := range addresses {
		if !slices.Contains(names, address.Link) {
			names = append(names, address.Link)
		}
	}
	return strings.Join(names, ",")
}

// peers joins decisions and item states, keeping the time of the last change.
// It must be called with mu held.
func (t *Tracker) peers(hosts []control.HostPlan, items map[tunnel.Key]itemState) []PeerStatus {
	before := map[string]PeerStatus{}
	for _, peer := range t.status.Peers {
		before[peer.Name] = peer
	}
	peers := make([]PeerStatus, 0, len(hosts))
	for _, host := range hosts {
		peer := peerStatus(host, items)
		old, known := before[peer.Name]
		peer.LastChange = old.LastChange
		if !known || old.State != peer.State || old.Reason != peer.Reason || old.Endpoint != peer.Endpoint || !slices.Equal(old.Subnets, peer.Subnets) {
			peer.LastChange = t.now()
			if known {
				t.tellOf(old, peer)
			}
			t.logger.Info("peer", "name", peer.Name, "state", peer.State, "endpoint", peer.Endpoint, "subnets", peer.Subnets, "reason", peer.Reason)
		}
		peers = append(peers, peer)
		delete(before, peer.Name)
	}
	for name := range before {
		t.logger.Info("peer is gone", "name", name)
	}
	return peers
}
