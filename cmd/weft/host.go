package main

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/underlay"
	"github.com/weft-net/weft/tunnel/userns"
)

// hostConfig is what the wiring of every operating system is made of.
type hostConfig struct {
	TUN    string
	Choice underlay.Request // what the flags say of the outer interface
	Logger *slog.Logger
	// Workers, Offloads and BusyPoll are of the userspace engine.
	Workers  int
	Offloads datapath.Offloads
	BusyPoll time.Duration
	// Inner is the network namespace to program; nil: that of the process.
	Inner *userns.Inner
}

// Underlay implements agent.Host.
func (c hostConfig) Underlay(ctx context.Context, recall control.Recall, networks []netip.Prefix, inUse []netip.Addr) (agent.Outer, error) {
	request := c.request(recall, networks)
	request.InUse = inUse
	choice, err := underlay.Find(ctx, request)
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
func (c hostConfig) UnderlayChanges(ctx context.Context) <-chan struct{} {
	return underlay.Watch(ctx, c.Logger)
}

// request completes the flags with what the lease source knows: an address the
// user has set there for this host goes before the flag.
func (c hostConfig) request(recall control.Recall, networks []netip.Prefix) underlay.Request {
	request := c.Choice
	request.InternalIPs = recall.InternalIP
	request.Families, request.PublicIPs = nil, nil
	for _, network := range networks {
		family, is4 := underlay.IPv6, network.Addr().Is4()
		if is4 {
			family = underlay.IPv4
		}
		request.Families = append(request.Families, family)
		for _, addr := range append(recall.PublicIP[:len(recall.PublicIP):len(recall.PublicIP)], c.Choice.PublicIPs...) {
			if addr.Is4() == is4 {
				request.PublicIPs = append(request.PublicIPs, addr)
				break
			}
		}
	}
	return request
}
