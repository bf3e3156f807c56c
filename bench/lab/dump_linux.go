package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// devices lists the links of the calling thread's namespace but loopback.
func devices() (map[int]netlink.Link, error) {
	links, err := complete(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, link := range links {
		if link.Attrs().Flags&net.FlagLoopback == 0 {
			byIndex[link.Attrs().Index] = link
		}
	}
	return byIndex, nil
}

func deviceMACs() (map[string]string, error) {
	links, err := devices()
	macs := map[string]string{}
	for _, link := range links {
		if mac := link.Attrs().HardwareAddr; len(mac) > 0 {
			macs[link.Attrs().Name] = mac.String()
		}
	}
	return macs, err
}

func dumpLinks() (lines []dumpLine, err error) {
	links, err := devices()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		attrs := link.Attrs()
		f := fields{attrs.Name, link.Type(), "mtu", strconv.Itoa(attrs.MTU)}
		if attrs.Flags&net.FlagUp != 0 {
			f.add("up")
		} else {
			f.add("down")
		}
		f.addIf(len(attrs.HardwareAddr) > 0, "mac", attrs.HardwareAddr.String())
		if master := links[attrs.MasterIndex]; master != nil {
			f.add("master", master.Attrs().Name)
		}
		if vxlan, ok := link.(*netlink.Vxlan); ok {
			addVXLAN(&f, vxlan, links)
		}
		lines = append(lines, f.line(attrs.Name))
	}
	return lines, nil
}

func addVXLAN(f *fields, vxlan *netlink.Vxlan, links map[int]netlink.Link) {
	f.add("id", strconv.Itoa(vxlan.VxlanId))
	f.addIf(vxlan.SrcAddr != nil, "local", vxlan.SrcAddr.String())
	f.addIf(vxlan.Group != nil, "group", vxlan.Group.String())
	if parent := links[vxlan.VtepDevIndex]; parent != nil {
		f.add("dev", parent.Attrs().Name)
	}
	f.add("dstport", strconv.Itoa(vxlan.Port))
	f.addIf(!vxlan.Learning, "nolearning")
	f.addIf(vxlan.Proxy, "proxy")
	f.addIf(vxlan.L2miss, "l2miss")
	f.addIf(vxlan.L3miss, "l3miss")
	f.addIf(vxlan.TTL != 0, "ttl", strconv.Itoa(vxlan.TTL))
	f.addIf(vxlan.UDPCSum, "udpcsum")
	f.addIf(vxlan.UDP6ZeroCSumTx, "udp6zerocsumtx")
	f.addIf(vxlan.UDP6ZeroCSumRx, "udp6zerocsumrx")
	f.addIf(vxlan.GBP, "gbp")
}

func dumpAddrs() (lines []dumpLine, err error) {
	links, err := devices()
	if err != nil {
		return nil, err
	}
	addrs, err := complete(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		link := links[addr.LinkIndex]
		if link == nil || linkLocal6(addr.IP) {
			continue
		}
		name := link.Attrs().Name
		f := fields{name, addr.IPNet.String(), "scope", scopeName(netlink.Scope(addr.Scope))}
		f.addIf(addr.Flags&unix.IFA_F_NOPREFIXROUTE != 0, "noprefixroute")
		lines = append(lines, f.line(name))
	}
	return lines, nil
}

// scopeName is iproute2's.
func scopeName(scope netlink.Scope) string {
	if scope == netlink.SCOPE_UNIVERSE {
		return "global"
	}
	return scope.String()
}

func linkLocal6(ip net.IP) bool { return ip.To4() == nil && ip.IsLinkLocalUnicast() }

func dumpRoutes() (lines []dumpLine, err error) {
	links, err := devices()
	if err != nil {
		return nil, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := complete(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range routes {
			link := links[route.LinkIndex]
			onLoopback := link == nil && route.LinkIndex != 0 && route.Type == unix.RTN_UNICAST
			if onLoopback || route.Dst != nil && linkLocal6(route.Dst.IP) {
				continue
			}
			lines = append(lines, routeLine(route, link))
		}
	}
	return lines, nil
}

func routeLine(route netlink.Route, link netlink.Link) dumpLine {
	var f fields
	var device string
	f.addIf(route.Type == unix.RTN_BLACKHOLE, "blackhole")
	f.addIf(route.Type == unix.RTN_UNREACHABLE, "unreachable")
	f.addIf(route.Type == unix.RTN_PROHIBIT, "prohibit")
	switch {
	case route.Dst != nil:
		f.add(route.Dst.String())
	case route.Family == netlink.FAMILY_V6:
		f.add("::/0")
	default:
		f.add("0.0.0.0/0")
	}
	f.addIf(route.Gw != nil, "via", route.Gw.String())
	// The kernel puts an IPv6 route that leads nowhere on loopback.
	if link != nil {
		device = link.Attrs().Name
		f.add("dev", device)
	}
	f.add("proto", route.Protocol.String())
	f.addIf(route.Scope != netlink.SCOPE_UNIVERSE, "scope", route.Scope.String())
	f.addIf(route.Src != nil, "src", route.Src.String())
	f.addIf(route.Priority != 0, "metric", strconv.Itoa(route.Priority))
	f.addIf(route.MTU != 0, "mtu", strconv.Itoa(route.MTU))
	f.addIf(route.AdvMSS != 0, "advmss", strconv.Itoa(route.AdvMSS))
	f.addIf(route.Flags&int(netlink.FLAG_ONLINK) != 0, "onlink")
	return f.line(device)
}

func dumpNeigh() (lines []dumpLine, err error) {
	links, err := devices()
	if err != nil {
		return nil, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		neighs, err := complete(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, neigh := range neighs {
			link := links[neigh.LinkIndex]
			if link == nil || neigh.State&netlink.NUD_PERMANENT == 0 {
				continue
			}
			name := link.Attrs().Name
			lines = append(lines, fields{name, neigh.IP.String(), "lladdr", neigh.HardwareAddr.String(), "permanent"}.line(name))
		}
	}
	return lines, nil
}

func dumpFDB() (lines []dumpLine, err error) {
	links, err := devices()
	if err != nil {
		return nil, err
	}
	neighs, err := complete(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, neigh := range neighs {
		link := links[neigh.LinkIndex]
		remote, ok := netip.AddrFromSlice(neigh.IP)
		if link == nil || !ok {
			continue
		}
		name := link.Attrs().Name
		f := fields{name, neigh.HardwareAddr.String(), "dst", remote.Unmap().String()}
		f.addIf(neigh.State&netlink.NUD_PERMANENT != 0, "permanent")
		f.addIf(neigh.State&netlink.NUD_PERMANENT == 0, "learned")
		lines = append(lines, f.line(name))
	}
	return lines, nil
}

func dumpNFT() (string, error) {
	out, err := exec.Command("nft", "-s", "list", "ruleset").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: install nftables", err)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("run nft: %w: %s", err, exit.Stderr)
	}
	return string(out), err
}
