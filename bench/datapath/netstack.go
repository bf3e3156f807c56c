package datapath

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/netstack/member"
	"github.com/weft-net/weft/tunnel/datapath"
)

// proxyAddress is where ends without a device listen, on their own host.
const proxyAddress = "127.0.0.1:1080"

// weftNetstack is weftToKernel without a device: all that enters does so
// through the proxy.
func weftNetstack(ctx context.Context, p *pair, number int) error {
	config := p.vxlanConfig(number)
	config.Proxy = proxyAddress
	return p.start(ctx, "netstack", number, config)
}

// deviceless is weft's engine around a network stack, with the proxy in front
// of it, as the agent runs them on a host without a device.
type deviceless struct {
	weft
	member *member.Member
}

func openNetstack(config endConfig, logger *slog.Logger) (carrier, error) {
	stack, err := netstack.New(netstack.Config{
		Name: "netstack", MTU: config.MTU, Addresses: []netip.Addr{config.Own.Subnet.Addr()}, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	workers, err := datapath.OpenAround(stack, datapath.Config{Listen: []netip.AddrPort{config.Own.Outer}, Logger: logger})
	if err != nil {
		return nil, errors.Join(err, stack.Close())
	}
	running, err := newEngine(config, workers, logger)
	if err != nil {
		return nil, err
	}
	host, err := member.New(member.Config{Proxy: config.Proxy, Logger: logger})
	if err != nil {
		return nil, err
	}
	host.Use(stack, []netip.Prefix{config.Peer.Subnet})
	return deviceless{weft{running}, host}, nil
}

// Run implements carrier.
func (d deviceless) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.weft.Run(ctx) })
	group.Go(func() error { return d.member.Run(ctx) })
	return group.Wait()
}

// Counters implements carrier. The calls that the engine counts are left out:
// those of the stack are none of the system's, and the proxy's are not counted.
func (d deviceless) Counters() map[string]uint64 {
	counters := d.weft.Counters()
	maps.DeleteFunc(counters, func(name string, _ uint64) bool { return strings.HasSuffix(name, "_calls") })
	return counters
}
