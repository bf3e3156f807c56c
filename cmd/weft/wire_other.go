//go:build !linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/guard"
	"github.com/weft-net/weft/tunnel/kernel"
	"github.com/weft-net/weft/tunnel/router"
	"github.com/weft-net/weft/tunnel/tundev"
)

// host is macOS, Windows or FreeBSD as the agent sees it. Containers do not
// run there: it is a member of its own.
type host struct{ hostConfig }

func newHost(cfg hostConfig) (agent.Host, error) { return host{cfg}, nil }

// Underlay implements agent.Host.
func (h host) Underlay(ctx context.Context, recall control.Recall, networks []netip.Prefix, inUse []netip.Addr) (agent.Outer, error) {
	outer, err := h.hostConfig.Underlay(ctx, recall, networks, inUse)
	outer.OnLink = nil // no route leads over the underlay here
	return outer, err
}

// KernelVXLAN implements agent.Host.
func (h host) KernelVXLAN(context.Context) error {
	driver, err := kernel.Open(kernel.Config{Logger: h.Logger})
	if err != nil {
		return err
	}
	return driver.Close()
}

// KernelWireGuard implements agent.Host.
func (h host) KernelWireGuard(ctx context.Context) error { return h.KernelVXLAN(ctx) }

// UsableTUN implements agent.Host. Where the engine has none it says so itself.
func (h host) UsableTUN() error { return nil }

// ExistingMAC implements agent.Host. Nothing that has one outlives the agent.
func (h host) ExistingMAC(tunnel.Link) (tunnel.MAC, bool, error) { return tunnel.MAC{}, false, nil }

// Objects implements agent.Host.
func (h host) Objects() (agent.Driver, error) { return router.Open(router.Config{Device: h.TUN}) }

// Firewall implements agent.Host.
func (h host) Firewall() (agent.Driver, error) {
	driver, err := guard.Open(guard.Config{Logger: h.Logger})
	if err != nil {
		return nil, fmt.Errorf("%w: this host forwards no pods, --iptables-forward-rules=false says so", err)
	}
	return driver, nil
}

// ProbeDevice opens the TUN and closes it again: nothing else tells whether this
// user may have one. It is tunnel.ErrNoDevice where not.
func (h host) ProbeDevice() error {
	device, err := tundev.Open(tundev.Config{Name: h.TUN, MTU: probeMTU, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	return device.Close()
}

// probeMTU is that of a TUN nothing goes through: the least that IPv6 takes.
const probeMTU = 1280

// OpenDatapath implements agent.Host. It is tunnel.ErrNoDevice where a TUN is
// asked for and this user or system can have none.
func (h host) OpenDatapath(want agent.Datapath) ([]engine.Worker, error) {
	return datapath.Open(datapath.Config{
		Device: want.Device, MTU: want.MTU, Listen: want.Listen, WireGuard: want.WireGuard, Workers: h.Workers,
		Offloads: h.Offloads, BusyPoll: h.BusyPoll, Logger: h.Logger,
	})
}

// Pinger implements agent.Host: no way is the kernel's here.
func (h host) Pinger([]netip.Addr, func(token uint64)) (agent.Pinger, error) {
	return nil, health.ErrUnknown
}
