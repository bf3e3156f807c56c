package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

const (
	// blackholeMetric is the lowest priority there is.
	blackholeMetric = 1<<32 - 1
	// defaultMetric6 is what the kernel gives an IPv6 route that names none.
	defaultMetric6 = 1024
)

// checkRoute names the field that cannot be.
func checkRoute(want tunnel.Route) error {
	switch {
	case !want.Prefix.IsValid():
		return fieldError("prefix", errUnset)
	case want.Prefix != want.Prefix.Masked():
		return fmt.Errorf("prefix %s has bits beyond its length: want %s", want.Prefix, want.Prefix.Masked())
	case want.Blackhole && (want.Link != "" || want.Via.IsValid()):
		return errors.New("blackhole: it has no link and no gateway")
	case !want.Blackhole && want.Link == "":
		return fieldError("link", errUnset)
	case want.Via.IsValid() && want.Via.BitLen() != want.Prefix.Addr().BitLen():
		return fmt.Errorf("gateway %s is not of the family of %s", want.Via, want.Prefix)
	case want.OnLink && !want.Via.IsValid():
		return errors.New("onlink: needs a gateway")
	}
	return nil
}

// plannedRoute returns the one form in which we write a route. On our own
// devices that is exactly flannel's.
func (d *Driver) plannedRoute(want tunnel.Route) (route netlink.Route, err error) {
	if err := checkRoute(want); err != nil {
		return route, err
	}
	route = netlink.Route{
		Dst:      ipNet(want.Prefix),
		Table:    unix.RT_TABLE_MAIN,
		Type:     unix.RTN_UNICAST,
		Protocol: RouteProtocol,
		MTU:      want.MTU,
	}
	if want.Blackhole {
		route.Type = unix.RTN_BLACKHOLE
		route.Priority = blackholeMetric
		return route, nil
	}
	if d.isName(want.Link) {
		route.Protocol = unix.RTPROT_BOOT
		route.LinkIndex, err = d.own(want.Link)
	} else {
		route.LinkIndex, err = d.devices.index(want.Link)
	}
	if err != nil {
		return route, err
	}
	if want.Via.IsValid() {
		route.Gw = want.Via.AsSlice()
	} else if want.Prefix.Addr().Is4() {
		route.Scope = unix.RT_SCOPE_LINK
	}
	if want.OnLink {
		route.Flags = unix.RTNH_F_ONLINK
	}
	return route, nil
}

// applyRoute never takes the place of a foreign route.
func (d *Driver) applyRoute(want tunnel.Route) error {
	route, err := d.plannedRoute(want)
	if err != nil {
		return err
	}
	if d.isAltered(want.Key()) {
		if err := d.clearRoutes(want); err != nil {
			return err
		}
	}
	err = d.netlink.RouteAdd(&route)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EINVAL) {
		if err := d.mayReplace(route); err != nil {
			return err
		}
		err = d.replaceRoute(route)
	}
	if errors.Is(err, unix.ENETUNREACH) {
		return fmt.Errorf("%w: gateway %s is not on the layer 2 of %s", err, want.Via, want.Link)
	}
	return err
}

// replaceRoute puts a route in place of one of ours, or of none. IPv6 refuses
// an onlink gateway while another device's route leads there, be it the very
// route to be replaced: there a route to the bare device goes before.
func (d *Driver) replaceRoute(route netlink.Route) error {
	err := d.netlink.RouteReplace(&route)
	if !errors.Is(err, unix.EINVAL) || route.Flags&unix.RTNH_F_ONLINK == 0 {
		return err
	}
	bare := route
	bare.Gw, bare.Flags = nil, 0
	if err := d.netlink.RouteReplace(&bare); err != nil {
		return err
	}
	return d.netlink.RouteReplace(&route)
}

// mayReplace returns an error if a foreign route has the place of this one.
func (d *Driver) mayReplace(route netlink.Route) error {
	holder, found, err := d.holder(route)
	if err != nil || !found {
		return err
	}
	if isOurRoute(holder, d.isOwnIndex) {
		return nil
	}
	// What flannel's host-gw leaves behind is the route we want but for the
	// protocol: take it over.
	if holder.Protocol == unix.RTPROT_BOOT && holder.Type == route.Type && holder.LinkIndex == route.LinkIndex && holder.Gw.Equal(route.Gw) {
		d.log.Info("taking over route", "route", holder.Dst, "gateway", holder.Gw)
		return nil
	}
	return fmt.Errorf("a foreign route is in its place and stays: %s", d.describe(holder))
}

// isOwnIndex reports whether a device is ours.
func (d *Driver) isOwnIndex(index int) bool {
	_, err := d.own(d.devices.name(index))
	return err == nil
}

// describe shows a route as ip-route(8) would.
func (d *Driver) describe(route netlink.Route) string {
	text := fmt.Sprintf("%s proto %s", route.Dst, route.Protocol)
	if route.Gw != nil {
		text += " via " + route.Gw.String()
	}
	if name := d.devices.name(route.LinkIndex); name != "" {
		text += " dev " + name
	}
	if metric := metricOf(route); metric != 0 {
		text += fmt.Sprintf(" metric %d", metric)
	}
	return text
}

// holder finds the route with the prefix and metric of another one.
func (d *Driver) holder(route netlink.Route) (holder netlink.Route, found bool, err error) {
	isHolder := func(other netlink.Route) bool {
		a, ok := prefixOf(other.Dst)
		b, _ := prefixOf(route.Dst)
		return ok && a == b && other.Table == unix.RT_TABLE_MAIN && metricOf(other) == metricOf(route)
	}
	// A lookup costs the same in any table, but may find a more specific route.
	matches, err := d.netlink.RouteGetWithOptions(route.Dst.IP, &netlink.RouteGetOptions{FIBMatch: true})
	if err == nil && len(matches) == 1 && isHolder(matches[0]) {
		return matches[0], true, nil
	}
	all, err := d.listRoutes()
	if err != nil {
		return holder, false, err
	}
	for _, other := range all {
		if isHolder(other) {
			return other, true, nil
		}
	}
	return holder, false, nil
}

// deleteRoute removes one route. Only for routes whose form is known to be odd
// does it look at what there is.
func (d *Driver) deleteRoute(have tunnel.Route) error {
	if d.isAltered(have.Key()) {
		return d.clearRoutes(have)
	}
	route, err := d.plannedRoute(have)
	if err != nil {
		return err
	}
	route.Scope, route.Flags, route.MTU = unix.RT_SCOPE_NOWHERE, 0, 0
	if route.Protocol == unix.RTPROT_BOOT {
		route.Protocol = 0 // whoever wrote it: it is on our device
	}
	return d.netlink.RouteDel(&route)
}

// clearRoutes removes all routes of ours that have the key of one, in
// whatever form they are.
func (d *Driver) clearRoutes(like tunnel.Route) error {
	all, err := d.listRoutes()
	if err != nil {
		return err
	}
	for _, route := range all {
		if !isOurRoute(route, d.isOwnIndex) {
			continue
		}
		if have, _ := routeOf(route, "", false); have.Key() != like.Key() {
			continue
		}
		if err := d.netlink.RouteDel(&route); err != nil && !isAbsent(err) {
			return fmt.Errorf("clear %s: %w", d.describe(route), err)
		}
	}
	return nil
}

func (d *Driver) isAltered(key tunnel.Key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.altered[key]
}

// listRoutes lists the main table.
func (d *Driver) listRoutes() ([]netlink.Route, error) {
	routes, err := linux.Dump(func() ([]netlink.Route, error) {
		return d.netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// isOurRoute reports whether a route of the main table is ours: it has our
// protocol, or leads to our device and was not made by the kernel.
func isOurRoute(route netlink.Route, isOwn func(index int) bool) bool {
	if route.Protocol == RouteProtocol {
		return true
	}
	switch route.Protocol {
	case unix.RTPROT_KERNEL, unix.RTPROT_RA, unix.RTPROT_REDIRECT:
		return false
	}
	if route.Type != unix.RTN_UNICAST {
		return false
	}
	for _, hop := range route.MultiPath {
		if isOwn(hop.LinkIndex) {
			return true
		}
	}
	return route.LinkIndex != 0 && isOwn(route.LinkIndex)
}

// metricOf returns a route's metric as the kernel counts it.
func metricOf(route netlink.Route) int {
	if route.Priority == 0 && len(route.Dst.IP) == 16 {
		return defaultMetric6
	}
	return route.Priority
}

// routeOf returns a route as an object, and whether it is in the form that
// plannedRoute gives it.
func routeOf(route netlink.Route, link string, own bool) (have tunnel.Route, intact bool) {
	have.Prefix, _ = prefixOf(route.Dst)
	if route.Type != unix.RTN_UNICAST && route.Type != unix.RTN_BLACKHOLE {
		return have, false
	}
	have.MTU = route.MTU
	intact = route.Src == nil && route.Tos == 0 && !route.MTULock && route.Via == nil
	if have.Blackhole = route.Type == unix.RTN_BLACKHOLE; have.Blackhole {
		return have, intact && route.Priority == blackholeMetric
	}
	have.Link = link
	have.Via, _ = netip.AddrFromSlice(route.Gw)
	have.OnLink = route.Flags&unix.RTNH_F_ONLINK != 0
	metric := 0
	if have.Prefix.Addr().Is6() {
		metric = defaultMetric6
	}
	protocol := netlink.RouteProtocol(RouteProtocol)
	if own {
		protocol = unix.RTPROT_BOOT
	}
	return have, intact && len(route.MultiPath) == 0 && route.Priority == metric && route.Protocol == protocol
}
