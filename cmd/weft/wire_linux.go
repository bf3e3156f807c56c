package main

import (
	"context"
	"net/netip"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/guard"
	"github.com/weft-net/weft/tunnel/kernel"
	"github.com/weft-net/weft/tunnel/underlay"
)

// host is Linux as the agent sees it.
type host struct{ hostConfig }

func newHost(cfg hostConfig) (agent.Host, error) { return host{cfg}, nil }

// Underlay implements agent.Host.
func (h host) Underlay(ctx context.Context, recall control.Recall, networks []netip.Prefix) (agent.Outer, error) {
	choice, err := underlay.Find(ctx, h.request(recall, networks))
	if err != nil {
		return agent.Outer{}, err
	}
	return agent.Outer{
		Underlay: control.Underlay{Link: choice.Link, MTU: choice.MTU, Addrs: choice.Addrs, OnLink: choice.OnLink},
		Public:   choice.Public,
		Reason:   choice.Reason,
	}, nil
}

// UnderlayChanges implements agent.Host.
func (h host) UnderlayChanges(ctx context.Context) <-chan struct{} {
	return underlay.Watch(ctx, h.Logger)
}

// KernelVXLAN implements agent.Host.
func (h host) KernelVXLAN(ctx context.Context) error {
	driver, err := kernel.Open(kernel.Config{Logger: h.Logger, TUN: h.TUN})
	if err != nil {
		return err
	}
	defer driver.Close()
	return driver.Probe(ctx)
}

// ExistingMAC implements agent.Host.
func (h host) ExistingMAC(want tunnel.Link) (tunnel.MAC, bool, error) {
	driver, err := kernel.Open(kernel.Config{Logger: h.Logger, TUN: h.TUN})
	if err != nil {
		return tunnel.MAC{}, false, err
	}
	defer driver.Close()
	return driver.ExistingMAC(want)
}

// Objects implements agent.Host.
func (h host) Objects() (agent.Driver, error) {
	return kernel.Open(kernel.Config{Logger: h.Logger, TUN: h.TUN})
}

// Firewall implements agent.Host.
func (h host) Firewall() (agent.Driver, error) {
	return guard.Open(guard.Config{Logger: h.Logger})
}

// OpenDatapath implements agent.Host.
func (h host) OpenDatapath(want agent.Datapath) ([]engine.Worker, error) {
	return datapath.Open(datapath.Config{
		Device: want.Device, MTU: want.MTU, Listen: want.Listen, Workers: h.Workers, Offloads: h.Offloads, Logger: h.Logger,
	})
}
