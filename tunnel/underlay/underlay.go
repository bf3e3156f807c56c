// Package underlay finds the interface and the addresses through which this
// host and its peers reach each other. Observe looks, Choose decides: it is
// pure, so that a host can be described in a table. It must never change
// anything on the host, and never choose in silence: every choice has a reason
// and every refusal a cure.
package underlay

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"
)

// Facts is what a host has, at one moment.
type Facts struct {
	Links  []Link
	Routes []Route // main table
	Reach  Reach   // answer to Request.CanReach, if there was one
}

// Link is a network interface.
type Link struct {
	Name  string
	Index int
	MTU   int // bytes
	Up    bool
	Addrs []Addr
}

// Addr is an address of a Link. A flag the operating system does not tell is
// not set, but for Permanent, which then is.
type Addr struct {
	Prefix     netip.Prefix // address and length, not masked
	Permanent  bool         // has no lifetime: neither DHCP nor SLAAC
	Temporary  bool         // RFC 8981: changes by itself
	Deprecated bool         // not for new connections
	Tentative  bool         // not proven unique yet, or proven not to be
}

// Route is a unicast route. One with several next hops is several Routes.
type Route struct {
	Prefix netip.Prefix
	Link   string
	Via    netip.Addr // gateway; zero if on-link
	Metric int
}

// Reach is how a host sends to one address.
type Reach struct {
	Link  string
	Local netip.Addr // source address it uses
	Err   error      // why it cannot be reached
}

// Find observes and chooses.
func Find(ctx context.Context, request Request) (Choice, error) {
	facts, err := Observe(ctx)
	if err != nil {
		return Choice{}, err
	}
	if request.CanReach.IsValid() {
		facts.Reach = RouteTo(ctx, request.CanReach)
	}
	return Choose(request, facts)
}

// eligible says whether peers can send to an address.
func (a Addr) eligible() bool {
	addr := a.Prefix.Addr()
	if a.Deprecated || a.Tentative || addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() {
		return false
	}
	return addr.Is4() || !addr.IsLinkLocalUnicast()
}

// best returns the addresses of one family that peers can send to, the best
// first: those that stay the same before those that do not.
func (l Link) best(f Family) []netip.Addr {
	var fit []Addr
	for _, a := range l.Addrs {
		if f.has(a.Prefix.Addr()) && a.eligible() {
			fit = append(fit, a)
		}
	}
	slices.SortStableFunc(fit, func(x, y Addr) int {
		return cmp.Or(
			after(x.Prefix.Addr().IsLinkLocalUnicast(), y.Prefix.Addr().IsLinkLocalUnicast()),
			after(!x.Permanent, !y.Permanent),
			after(x.Temporary, y.Temporary))
	})
	addrs := make([]netip.Addr, 0, len(fit))
	for _, a := range fit {
		addrs = append(addrs, a.Prefix.Addr())
	}
	return addrs
}

// after orders what is x behind what is not.
func after(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}

// usable reports whether addr is one of the link's that peers can send to.
func (l Link) usable(addr netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(a Addr) bool { return a.Prefix.Addr() == addr && a.eligible() })
}

// owner returns the link that has an address.
func (f Facts) owner(addr netip.Addr) (Link, bool) {
	i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Up && l.usable(addr) })
	if i < 0 {
		return Link{}, false
	}
	return f.Links[i], true
}

func (f Facts) link(name string) (Link, bool) {
	i := slices.IndexFunc(f.Links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return f.Links[i], true
}

// onLink returns the prefixes that a link reaches without a gateway. A default
// route without one (PPP) says nothing about who is near.
func (f Facts) onLink(link string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, r := range f.Routes {
		if r.Link == link && !r.Via.IsValid() && r.Prefix.Bits() > 0 &&
			!r.Prefix.Addr().IsLinkLocalUnicast() && !r.Prefix.Addr().IsMulticast() {
			prefixes = append(prefixes, r.Prefix.Masked())
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return slices.Compact(prefixes)
}

// lookInterval is how often something may have changed where nobody tells. To
// look costs less than to be out of reach of all peers for longer.
const lookInterval = time.Second

// tick is a Watch that knows nothing.
func tick(ctx context.Context) <-chan struct{} {
	tokens := make(chan struct{}, 1)
	go func() {
		ticker := time.NewTicker(lookInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			select {
			case tokens <- struct{}{}:
			default:
			}
		}
	}()
	return tokens
}
