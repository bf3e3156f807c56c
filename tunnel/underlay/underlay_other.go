//go:build !linux && !windows

package underlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
)

// Observe lists this host's interfaces and addresses. The standard library
// knows no routes: addresses stand for the routes to their own subnets, and
// the source address of a connection that is never used tells the default
// route's interface.
func Observe(ctx context.Context) (Facts, error) {
	facts, err := observeLinks()
	if err != nil {
		return Facts{}, err
	}
	for _, l := range facts.Links {
		for _, a := range l.Addrs {
			if l.Up {
				facts.Routes = append(facts.Routes, Route{Prefix: a.Prefix.Masked(), Link: l.Name})
			}
		}
	}
	for _, far := range []string{"192.0.2.1", "2001:db8::1"} { // RFC 5737, RFC 3849: nobody's
		addr := netip.MustParseAddr(far)
		if reach := reach(ctx, addr, facts); reach.Err == nil {
			everywhere := netip.PrefixFrom(addr, 0).Masked()
			facts.Routes = append(facts.Routes, Route{Prefix: everywhere, Link: reach.Link})
		}
	}
	return facts, nil
}

// RouteTo finds out how this host would send to addr. Nothing is sent.
func RouteTo(ctx context.Context, addr netip.Addr) Reach {
	facts, err := Observe(ctx)
	if err != nil {
		return Reach{Err: err}
	}
	return reach(ctx, addr, facts)
}

// reach connects a UDP socket, which chooses a source address and sends nothing.
func reach(ctx context.Context, addr netip.Addr, facts Facts) Reach {
	const discard = 9 // any port would do
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", netip.AddrPortFrom(addr, discard).String())
	if err != nil {
		return Reach{Err: fmt.Errorf("look up route to %v: %w", addr, err)}
	}
	defer conn.Close()
	udp, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return Reach{Err: fmt.Errorf("look up route to %v: no local address", addr)}
	}
	local := udp.AddrPort().Addr().Unmap().WithZone("")
	link, ok := facts.owner(local)
	if !ok {
		return Reach{Err: errors.New("look up route: no interface has the source address " + local.String())}
	}
	return Reach{Link: link.Name, Local: local}
}

// Watch returns a channel that has a token when Observe may return something
// new. It is never closed. Watching ends with ctx.
func Watch(ctx context.Context, _ *slog.Logger) <-chan struct{} { return tick(ctx) }
