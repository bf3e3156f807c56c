// Package agent puts the parts of one host together: it asks the lease source
// what is true, plans, hands the plan to the reconcilers and the userspace
// engine, and tells people and programs how it stands. It must never call the
// operating system itself: cmd supplies that as a Host.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/netconf"
	"github.com/weft-net/weft/control/reconcile"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
)

// Source is where leases come from and go to: Kubernetes Nodes or etcd. Every
// method that blocks says why through the Waiting callback it was built with.
type Source interface {
	// NetConf blocks until there is a valid network configuration.
	NetConf(ctx context.Context) (netconf.Config, error)
	// Recall returns what the source already knows about this host.
	Recall(ctx context.Context) (control.Recall, error)
	// Acquire blocks until this host holds a lease and has published claim.
	Acquire(ctx context.Context, claim control.Claim) (control.Lease, error)
	// Run keeps the own lease and delivers every change, from one goroutine,
	// until ctx is done or the own lease is lost for good.
	Run(ctx context.Context, deliver func(control.Snapshot)) error
	// Move replaces the claim of Acquire, as this host's outer addresses have
	// changed; Run publishes it. It does not wait.
	Move(claim control.Claim) error
	// Recalls has what Recall would return now, when that has changed while Run
	// runs; nil: it never does.
	Recalls() <-chan control.Recall
	// Ready tells the source that this host's peers are programmed.
	Ready(ctx context.Context) error
	Close() error
}

// Driver keeps host objects of some kinds.
type Driver interface {
	reconcile.Driver[tunnel.Key, tunnel.Object]
	// Changes carries a token when something of ours may have changed.
	Changes() <-chan struct{}
	Close() error
}

// Outer is the outer device as chosen, and the addresses to publish.
type Outer struct {
	control.Underlay
	Public []netip.Addr // one per wanted family, IPv4 first
	Reason string       // why this device
}

// Host is what the operating system does for the agent.
type Host interface {
	// Underlay chooses the outer device and addresses for the networks' families.
	// Of several that are as good, those inUse stay.
	Underlay(ctx context.Context, recall control.Recall, networks []netip.Prefix, inUse []netip.Addr) (Outer, error)
	// UnderlayChanges carries a token when Underlay may answer differently.
	UnderlayChanges(ctx context.Context) <-chan struct{}
	// KernelVXLAN says why this host's kernel cannot carry VXLAN; nil if it can.
	// KernelWireGuard and UsableTUN are the same for WireGuard and a TUN.
	KernelVXLAN(ctx context.Context) error
	KernelWireGuard(ctx context.Context) error
	UsableTUN() error
	// ExistingMAC is the MAC of a device that is already there and fits want.
	ExistingMAC(want tunnel.Link) (mac tunnel.MAC, exists bool, err error)
	// Objects opens the driver of links, addresses, neighbours and routes, a keyHolder
	// where KernelWireGuard may be nil.
	Objects() (Driver, error)
	// Firewall opens the driver of tunnel.Firewall objects.
	Firewall() (Driver, error)
	// OpenDatapath opens what the userspace engine works on.
	OpenDatapath(want Datapath) ([]engine.Worker, error)
	// Pinger opens what probes ways that are the kernel's. It sends from outer
	// addresses, and answered is told the tokens of probes that were answered.
	Pinger(outer []netip.Addr, answered func(token uint64)) (Pinger, error)
}

// Datapath is what the userspace engine works on: a device where inner packets
// enter and leave, and sockets for outer ones.
type Datapath struct {
	Device    string           // TUN name; empty: the host has no device
	MTU       int              // of the device
	Addresses []netip.Addr     // inner, of this host itself, one per family
	Listen    []netip.AddrPort // local outer addresses for VXLAN, one per family
	WireGuard []netip.AddrPort // the same for WireGuard
	Networks  []netip.Prefix   // the pod networks
}

// Config is everything an agent is made of.
type Config struct {
	Node    string // host name; empty: the lease source knows it
	Version string
	Source  Source
	Host    Host
	Engine  string // auto, kernel or userspace
	Device  string // TUN name; empty: this host has no device, and programs nothing
	// DeviceReason is why it has none.
	DeviceReason string

	Masquerade    bool
	RandomFully   bool
	ForwardRules  bool
	Blackhole     bool
	Confine       bool // as in control.Policy
	KeepChecksums bool // as in control.Policy
	KeepAcks      bool // as in engine.Config
	NoDirect      bool // as in control.Offers; a host without a device offers that anyway
	NoVXLAN       bool // this host is to terminate no VXLAN
	// WireGuard is how this host speaks it; nil: not at all.
	WireGuard *WireGuard

	SubnetFile string // where subnet.env goes
	Socket     string // local API, a unix socket
	// API is what the local API answers beyond status, by path below /v1/.
	API    map[string]http.Handler
	Health string // host:port of /healthz, /readyz and /metrics; empty: none
	Resync time.Duration

	// Status is shared with whoever reports waiting.
	Status *Tracker
	Logger *slog.Logger
}

// Agent is one host's agent. Run it once.
type Agent struct {
	Config
	policy    control.Policy
	preshared tunnel.SecretKey // of the whole network's WireGuard; zero: none
	ring      *keyring         // nil: no WireGuard
	rotations chan chan error  // each asks for a new key
	recall    control.Recall
	snapshot  mailbox[control.Snapshot]
	subnetEnv []byte // as last written
	// notified is set once the source and systemd know that this host is ready.
	notified bool
}

// New checks cfg.
func New(cfg Config) (*Agent, error) {
	switch cfg.Engine {
	case "auto", string(tunnel.EngineKernel), string(tunnel.EngineUserspace):
	default:
		return nil, fmt.Errorf("--engine %q: want auto, kernel or userspace", cfg.Engine)
	}
	if cfg.WireGuard != nil {
		switch cfg.WireGuard.Engine {
		case "auto", string(tunnel.EngineKernel), string(tunnel.EngineUserspace):
		default:
			return nil, fmt.Errorf("--wireguard %q: want auto, kernel, userspace or off", cfg.WireGuard.Engine)
		}
	}
	cfg.Status.events, _ = cfg.Source.(eventKeeper)
	return &Agent{Config: cfg, snapshot: newMailbox[control.Snapshot](), rotations: make(chan chan error)}, nil
}

// Run makes this host a member and keeps it one until ctx is done. What it has
// put into the kernel stays there when it returns.
func (a *Agent) Run(ctx context.Context) error {
	local, err := listenLocal(ctx, a.Socket)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serve(ctx, local, a.localAPI()) })
	if a.Health != "" {
		health, err := listenHealth(ctx, a.Health)
		if err != nil {
			return errors.Join(err, local.Close())
		}
		group.Go(func() error { return serve(ctx, health, a.healthAPI()) })
	}
	group.Go(func() error { return a.join(ctx) })
	err = group.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// join goes from nothing to a running member.
func (a *Agent) join(ctx context.Context) error {
	config, err := a.Source.NetConf(ctx)
	if err != nil {
		return fmt.Errorf("read network configuration: %w", err)
	}
	a.policy, a.preshared = a.policyOf(config), config.Backend.PSK
	if a.recall, err = a.Source.Recall(ctx); err != nil {
		return fmt.Errorf("look up this host in the lease source: %w", err)
	}
	if a.recall.Host != "" {
		a.Node = a.recall.Host
	}
	changes := a.Host.UnderlayChanges(ctx)
	outer, err := a.waitUnderlay(ctx, changes)
	if err != nil {
		return err
	}
	self := control.Self{Host: a.Node, Underlay: outer.Underlay, Device: a.Device}
	reason, err := a.equip(ctx, &self)
	if err != nil {
		return err
	}
	claim, err := a.claim(self, outer)
	if err != nil {
		return err
	}
	if self.Lease, err = a.Source.Acquire(ctx, claim); err != nil {
		return fmt.Errorf("acquire lease: %w", err)
	}
	self.Host = self.Lease.Host
	a.Status.joined(self, a.policy, reason)
	a.Logger.Info("lease acquired", "host", self.Host, "legs", legsText(self.Lease.Legs))
	return a.member(ctx, self, &mover{agent: a, changes: changes, claim: claim})
}

// equip finds out what this host can do, and says why it does not do better.
func (a *Agent) equip(ctx context.Context, self *control.Self) (reason string, err error) {
	if self.Engine, reason, err = a.chooseEngine(ctx); err != nil {
		return "", err
	}
	a.Logger.Info("engine chosen", "engine", self.Engine, "reason", reason)
	why := ""
	if a.ring, why, err = a.openKeys(); err != nil {
		return "", err
	}
	if a.ring != nil {
		if self.WireGuard, why, err = a.chooseWireGuard(ctx, self.Engine); err != nil {
			return "", err
		}
	}
	if self.WireGuard == "" {
		a.ring = nil // nothing is offered
		if a.NoVXLAN && !mayElse(a.policy) {
			return "", fmt.Errorf("nobody could reach this host: --vxlan=false, and no WireGuard: %s", why)
		}
	}
	a.Logger.Info("WireGuard", "engine", self.WireGuard, "reason", why)
	a.Status.setWireGuard(self.WireGuard, why, a.ring)
	return reason, nil
}

// defaultVXLANPort is what Linux, and so flannel, uses where no port is given.
const defaultVXLANPort = 8472

// policyOf joins net-conf.json and flags.
func (a *Agent) policyOf(config netconf.Config) control.Policy {
	policy := control.Policy{
		Backend: config.Backend.Type, VNI: config.Backend.VNI, Port: config.Backend.Port, MTU: config.Backend.MTU,
		Learning: config.Backend.Learning, GBP: config.Backend.GBP, Direct: config.Backend.DirectRouting,
		Masquerade: a.Masquerade, RandomFully: a.RandomFully, ForwardRules: a.ForwardRules, Blackhole: a.Blackhole, Confine: a.Confine,
		KeepChecksums: a.KeepChecksums,
		Prefer:        config.Backend.Prefer, Encrypt: config.Backend.Encrypt,
		WireGuardPorts: config.Backend.ListenPorts, Keepalive: config.Backend.PersistentKeepalive,
	}
	policy.Networks = config.Networks()
	if policy.Port == 0 {
		policy.Port = defaultVXLANPort
	}
	return policy
}

// waitUnderlay waits for an outer device that fits: DHCP may be late.
func (a *Agent) waitUnderlay(ctx context.Context, changes <-chan struct{}) (Outer, error) {
	for {
		outer, err := a.Host.Underlay(ctx, a.recall, a.policy.Networks, nil)
		if err == nil {
			a.Status.waitFor(topicUnderlay, "")
			a.Logger.Info("underlay chosen", "link", outer.Link, "mtu", outer.MTU, "publish", outer.Public, "reason", outer.Reason)
			return outer, nil
		}
		a.Status.waitFor(topicUnderlay, err.Error())
		select {
		case <-ctx.Done():
			return Outer{}, ctx.Err()
		case <-changes:
		case <-time.After(2 * time.Second):
		}
	}
}

// chooseEngine probes what this host can do, and says why the better way is
// not taken.
func (a *Agent) chooseEngine(ctx context.Context) (engine tunnel.Engine, reason string, err error) {
	switch {
	case a.Device == "":
		return tunnel.EngineUserspace, "no device: " + a.DeviceReason, nil
	case a.Engine == string(tunnel.EngineUserspace):
		return tunnel.EngineUserspace, "asked for by --engine=userspace", nil
	}
	var probe error
	if a.policy.Backend == string(tunnel.EncapVXLAN) {
		probe = a.Host.KernelVXLAN(ctx)
	}
	switch {
	case probe == nil && a.Engine == string(tunnel.EngineKernel):
		return tunnel.EngineKernel, "asked for by --engine=kernel", nil
	case probe == nil:
		return tunnel.EngineKernel, "the kernel can do it", nil
	case a.Engine == string(tunnel.EngineKernel):
		return "", "", fmt.Errorf("--engine=kernel: %w", probe)
	}
	return tunnel.EngineUserspace, probe.Error(), nil
}

// mailbox holds the latest value only: a slow reader never makes a writer wait.
type mailbox[T any] struct{ ch chan T }

func newMailbox[T any]() mailbox[T] { return mailbox[T]{ch: make(chan T, 1)} }

// put replaces what is there. There may be one writer only.
func (m mailbox[T]) put(value T) {
	select {
	case <-m.ch:
	default:
	}
	m.ch <- value
}
