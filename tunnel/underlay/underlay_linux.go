package underlay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/internal/linux"
	"github.com/weft-net/weft/tunnel/internal/watch"
)

// Observe lists this host's interfaces, addresses and the routes of the main
// table, in the network namespace of the calling thread.
func Observe(ctx context.Context) (Facts, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Facts{}, fmt.Errorf("observe interfaces: %w", err)
	}
	defer handle.Close()
	links, err := list(ctx, "interfaces", handle.LinkList)
	if err != nil {
		return Facts{}, err
	}
	addrs, err := list(ctx, "addresses", func() ([]netlink.Addr, error) { return handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Facts{}, err
	}
	var facts Facts
	names := make(map[int]string, len(links))
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		facts.Links = append(facts.Links, Link{
			Name:  a.Name,
			Index: a.Index,
			MTU:   a.MTU,
			Up:    a.Flags&net.FlagUp != 0,
			Addrs: addrsOf(a.Index, addrs),
		})
	}
	slices.SortFunc(facts.Links, func(x, y Link) int { return x.Index - y.Index })
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		routes, err := list(ctx, "routes", func() ([]netlink.Route, error) {
			return handle.RouteListFiltered(family, &filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return Facts{}, err
		}
		for _, r := range routes {
			facts.Routes = append(facts.Routes, hops(r, names)...)
		}
	}
	return facts, nil
}

func list[T any](ctx context.Context, what string, do func() ([]T, error)) ([]T, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("observe %s: %w", what, err)
	}
	all, err := linux.Dump(do)
	if err != nil {
		return nil, fmt.Errorf("observe %s: %w", what, err)
	}
	return all, nil
}

func addrsOf(index int, all []netlink.Addr) []Addr {
	var addrs []Addr
	for _, a := range all {
		if a.LinkIndex != index || a.IPNet == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		bits, _ := a.Mask.Size()
		addrs = append(addrs, Addr{
			Prefix:     netip.PrefixFrom(addr, bits),
			Permanent:  a.Flags&unix.IFA_F_PERMANENT != 0,
			Temporary:  addr.Is6() && a.Flags&unix.IFA_F_TEMPORARY != 0, // the bit means "secondary" for IPv4
			Deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
			Tentative:  a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0,
		})
	}
	return addrs
}

// hops returns one Route per next hop that goes through a link we know.
func hops(r netlink.Route, names map[int]string) (routes []Route) {
	prefix := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if r.Family == netlink.FAMILY_V6 {
		prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if r.Dst != nil {
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		addr = addr.Unmap() // the default route comes in sixteen bytes
		if !ok {
			return nil
		}
		bits, _ := r.Dst.Mask.Size()
		prefix = netip.PrefixFrom(addr, bits)
	}
	nextHops := r.MultiPath
	if len(nextHops) == 0 {
		nextHops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via}}
	}
	for _, hop := range nextHops {
		name, ok := names[hop.LinkIndex]
		if !ok {
			continue
		}
		via, _ := netip.AddrFromSlice(hop.Gw)
		if other, ok := hop.Via.(*netlink.Via); ok { // a gateway of the other family, RFC 5549
			via, _ = netip.AddrFromSlice(other.Addr)
		}
		routes = append(routes, Route{Prefix: prefix, Link: name, Via: via, Metric: r.Priority})
	}
	return routes
}

// RouteTo asks the kernel how it would send to addr. Nothing is sent.
func RouteTo(ctx context.Context, addr netip.Addr) Reach {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Reach{Err: fmt.Errorf("look up route: %w", err)}
	}
	defer handle.Close()
	routes, err := handle.RouteGet(addr.AsSlice())
	if err != nil {
		return Reach{Err: fmt.Errorf("look up route to %v: %w", addr, err)}
	}
	if len(routes) == 0 {
		return Reach{Err: fmt.Errorf("look up route to %v: none", addr)}
	}
	link, err := handle.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return Reach{Err: fmt.Errorf("look up interface of route to %v: %w", addr, err)}
	}
	local, _ := netip.AddrFromSlice(routes[0].Src)
	return Reach{Link: link.Attrs().Name, Local: local.Unmap()}
}

// Watch returns a channel that has a token when Observe may return something
// new. It is never closed. Watching ends with ctx.
func Watch(ctx context.Context, logger *slog.Logger) <-chan struct{} {
	watcher, err := watch.Open(watch.Config{
		Protocol: unix.NETLINK_ROUTE,
		Groups: []uint32{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		},
		Relevant: relevant,
		Logger:   logger,
	})
	if err != nil {
		logger.Warn("interfaces cannot be watched, looking at them from time to time", "err", err)
		return tick(ctx)
	}
	context.AfterFunc(ctx, func() { watcher.Close() })
	return watcher.Tokens()
}

// relevant leaves out the routes that Choose does not look at, which are most:
// those of peers among them.
func relevant(message syscall.NetlinkMessage) bool {
	if t := message.Header.Type; t != unix.RTM_NEWROUTE && t != unix.RTM_DELROUTE {
		return true
	}
	const prefixLength, table = 1, 4 // struct rtmsg
	if len(message.Data) < unix.SizeofRtMsg || message.Data[table] != unix.RT_TABLE_MAIN {
		return false
	}
	if message.Data[prefixLength] == 0 {
		return true
	}
	attributes := message.Data[unix.SizeofRtMsg:]
	_, gateway := watch.Attribute(attributes, unix.RTA_GATEWAY)
	_, via := watch.Attribute(attributes, unix.RTA_VIA)
	return !gateway && !via
}
