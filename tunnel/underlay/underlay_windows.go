package underlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Observe lists this host's interfaces, addresses and routes.
func Observe(context.Context) (Facts, error) {
	facts, err := observeLinks()
	if err != nil {
		return Facts{}, err
	}
	metrics, err := observeMetrics()
	if err != nil {
		return Facts{}, err
	}
	var table *windows.MibIpForwardTable2
	if err := windows.GetIpForwardTable2(windows.AF_UNSPEC, &table); err != nil {
		return Facts{}, fmt.Errorf("observe routes: %w", err)
	}
	defer windows.FreeMibTable(unsafe.Pointer(table))
	for i := range table.Rows() {
		if route, ok := readRoute(&table.Rows()[i], facts.Links, metrics); ok {
			facts.Routes = append(facts.Routes, route)
		}
	}
	return facts, nil
}

// metric is an interface's, per family.
type metric struct{ v4, v6 int }

// observeMetrics asks for the metrics of all interfaces, by their index.
func observeMetrics() (map[uint32]metric, error) {
	const flags = windows.GAA_FLAG_SKIP_UNICAST | windows.GAA_FLAG_SKIP_ANYCAST | windows.GAA_FLAG_SKIP_MULTICAST | windows.GAA_FLAG_SKIP_DNS_SERVER
	words := make([]uint64, 4<<10)
	for {
		size := uint32(8 * len(words))
		first := (*windows.IpAdapterAddresses)(unsafe.Pointer(&words[0]))
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, flags, 0, first, &size)
		switch {
		case errors.Is(err, windows.ERROR_BUFFER_OVERFLOW) && int(size) > 8*len(words):
			words = make([]uint64, size/8+1)
			continue
		case errors.Is(err, windows.ERROR_NO_DATA):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("observe metrics of interfaces: %w", err)
		}
		metrics := map[uint32]metric{}
		for a := first; a != nil; a = a.Next {
			metrics[a.IfIndex] = metric{int(a.Ipv4Metric), int(a.Ipv6Metric)}
		}
		return metrics, nil
	}
}

// readRoute reads one row. The metric that counts is the route's and its
// interface's together.
func readRoute(row *windows.MibIpForwardRow2, links []Link, metrics map[uint32]metric) (Route, bool) {
	i := slices.IndexFunc(links, func(l Link) bool { return l.Index == int(row.InterfaceIndex) })
	prefix := netip.PrefixFrom(readAddr(&row.DestinationPrefix.Prefix), int(row.DestinationPrefix.PrefixLength))
	if i < 0 || !prefix.IsValid() {
		return Route{}, false
	}
	route := Route{Prefix: prefix.Masked(), Link: links[i].Name, Metric: int(row.Metric)}
	if via := readAddr(&row.NextHop); via.IsValid() && !via.IsUnspecified() {
		route.Via = via
	}
	if prefix.Addr().Is4() {
		route.Metric += metrics[row.InterfaceIndex].v4
	} else {
		route.Metric += metrics[row.InterfaceIndex].v6
	}
	return route, true
}

// readAddr reads a SOCKADDR_INET; the zero Addr means neither IPv4 nor IPv6.
func readAddr(raw *windows.RawSockaddrInet) netip.Addr {
	bytes := (*[unsafe.Sizeof(*raw)]byte)(unsafe.Pointer(raw))
	switch binary.NativeEndian.Uint16(bytes[:]) {
	case windows.AF_INET:
		return netip.AddrFrom4([4]byte(bytes[4:]))
	case windows.AF_INET6:
		return netip.AddrFrom16([16]byte(bytes[8:]))
	}
	return netip.Addr{}
}

// RouteTo finds out how this host would send to addr. Nothing is sent.
func RouteTo(ctx context.Context, addr netip.Addr) Reach {
	facts, err := Observe(ctx)
	if err != nil {
		return Reach{Err: err}
	}
	return facts.reach(addr)
}

// reach takes the longest prefix with addr in it and of those the lowest metric.
func (f Facts) reach(addr netip.Addr) Reach {
	var best Route
	for _, r := range f.Routes {
		longer := r.Prefix.Bits() - best.Prefix.Bits() // of no Route: -1 bits
		if r.Prefix.Contains(addr) && (longer > 0 || longer == 0 && r.Metric < best.Metric) {
			best = r
		}
	}
	link, ok := f.link(best.Link)
	if !ok {
		return Reach{Err: fmt.Errorf("look up route to %v: network is unreachable", addr)}
	}
	family := IPv6
	if addr.Is4() {
		family = IPv4
	}
	local := link.best(family)
	if len(local) == 0 {
		return Reach{Err: fmt.Errorf("look up route to %v: %s has no %v address", addr, link.Name, family)}
	}
	return Reach{Link: link.Name, Local: local[0]}
}

// Watch returns a channel that has a token when Observe may return something
// new. It is never closed. Watching ends with ctx.
func Watch(ctx context.Context, _ *slog.Logger) <-chan struct{} { return tick(ctx) }
