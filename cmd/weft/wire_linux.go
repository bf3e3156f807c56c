package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/guard"
	"github.com/weft-net/weft/tunnel/kernel"
	waypinger "github.com/weft-net/weft/tunnel/pinger"
	"github.com/weft-net/weft/tunnel/tundev"
)

// host is Linux as the agent sees it.
type host struct{ hostConfig }

func newHost(cfg hostConfig) (agent.Host, error) { return host{cfg}, nil }

// Underlay implements agent.Host.
func (h host) Underlay(ctx context.Context, recall control.Recall, networks []netip.Prefix, inUse []netip.Addr) (agent.Outer, error) {
	outer, err := h.hostConfig.Underlay(ctx, recall, networks, inUse)
	if h.Inner != nil {
		outer.OnLink = nil // no device of the host is where the routes are
	}
	return outer, err
}

// errRootlessKernel is why a rootless host has the userspace engine.
var errRootlessKernel = errors.New("rootless: a tunnel device in the containers' network namespace cannot reach the host's wire")

// KernelVXLAN implements agent.Host.
func (h host) KernelVXLAN(ctx context.Context) error {
	return h.probeKernel(func(driver *kernel.Driver) error { return driver.Probe(ctx) })
}

// KernelWireGuard implements agent.Host.
func (h host) KernelWireGuard(ctx context.Context) error {
	return h.probeKernel(func(driver *kernel.Driver) error { return driver.ProbeWireGuard(ctx) })
}

// probeKernel asks the kernel whether it can carry packets for this host.
func (h host) probeKernel(probe func(*kernel.Driver) error) error {
	if h.Inner != nil {
		return errRootlessKernel
	}
	driver, err := h.kernel()
	if err != nil {
		return err
	}
	defer driver.Close()
	return probe(driver)
}

// ExistingMAC implements agent.Host.
func (h host) ExistingMAC(want tunnel.Link) (tunnel.MAC, bool, error) {
	driver, err := h.kernel()
	if err != nil {
		return tunnel.MAC{}, false, err
	}
	defer driver.Close()
	return driver.ExistingMAC(want)
}

// UsableTUN implements agent.Host.
func (h host) UsableTUN() error { return tundev.Usable() }

// Objects implements agent.Host.
func (h host) Objects() (agent.Driver, error) {
	driver, err := h.kernel()
	return objects{driver}, err
}

// objects is the driver as the agent gives it keys.
type objects struct{ *kernel.Driver }

// SetKeys has the devices use a key. They know no other at the same time.
func (o objects) SetKeys(key, _, preshared tunnel.SecretKey) error {
	o.SetWireGuard(kernel.WireGuard{Key: key, Preshared: preshared})
	return nil
}

func (h host) kernel() (driver *kernel.Driver, err error) {
	err = h.inside(func() (err error) {
		driver, err = kernel.Open(kernel.Config{Logger: h.Logger, TUN: h.TUN})
		return err
	})
	return driver, err
}

// Handshakes is when each of the kernel's WireGuard peers had one last.
func (o objects) Handshakes(ctx context.Context) (map[tunnel.Key]time.Time, error) {
	sessions, err := o.WireGuardSessions(ctx)
	handshakes := make(map[tunnel.Key]time.Time, len(sessions))
	for key, session := range sessions {
		handshakes[key] = session.LastHandshake
	}
	return handshakes, err
}

// Firewall implements agent.Host.
func (h host) Firewall() (agent.Driver, error) {
	var driver *guard.Driver
	err := h.inside(func() (err error) {
		driver, err = guard.Open(guard.Config{Logger: h.Logger})
		return err
	})
	return driver, err
}

// inside runs f in the network namespace to program. What f opens stays there.
func (h host) inside(f func() error) error {
	if h.Inner == nil {
		return f()
	}
	return h.Inner.Do(f)
}

// OpenDatapath implements agent.Host.
func (h host) OpenDatapath(want agent.Datapath) ([]engine.Worker, error) {
	return datapath.Open(datapath.Config{
		Device: want.Device, MTU: want.MTU, Listen: want.Listen, WireGuard: want.WireGuard, Workers: h.Workers,
		Offloads: h.Offloads, BusyPoll: h.BusyPoll, Inside: h.inside, Logger: h.Logger,
	})
}

// errRootlessPinger is why a rootless host has no Pinger.
var errRootlessPinger = fmt.Errorf("%w: a rootless host has no ways of the kernel's", health.ErrUnknown)

// Pinger implements agent.Host.
func (h host) Pinger(outer []netip.Addr, answered func(token uint64)) (agent.Pinger, error) {
	if h.Inner != nil {
		return nil, errRootlessPinger
	}
	p, err := waypinger.Open(waypinger.Config{Outer: outer, Answered: answered})
	return kernelPinger{p}, err
}

// kernelPinger is a Pinger in the words of the agent.
type kernelPinger struct{ *waypinger.Pinger }

// Ping implements agent.Pinger.
func (p kernelPinger) Ping(from, to netip.Addr, size int, token uint64) error {
	return unknownIfUnable(p.Pinger.Ping(from, to, size, token))
}

// PingVXLAN implements agent.Pinger.
func (p kernelPinger) PingVXLAN(way agent.VXLANWay, to netip.Addr, size int, token uint64) error {
	return unknownIfUnable(p.Pinger.PingVXLAN(waypinger.VXLAN(way), to, size, token))
}

func unknownIfUnable(err error) error {
	if errors.Is(err, waypinger.ErrUnable) {
		return fmt.Errorf("%w: %w", health.ErrUnknown, err)
	}
	return err
}
