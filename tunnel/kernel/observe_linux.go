package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

// Observe lists every object of ours. What exists in another form than Apply
// gives it (a link that is down, a route with a foreign metric) is listed with
// an MTU (a peer with a keepalive) that no want has, so that it never compares equal.
func (d *Driver) Observe(ctx context.Context) (map[tunnel.Key]tunnel.Object, error) {
	o := observation{driver: d, objects: make(map[tunnel.Key]tunnel.Object), altered: make(map[tunnel.Key]bool)}
	for _, list := range []func() error{o.links, o.wireguard, o.addresses, o.neighbors, o.fdb, o.routes} {
		err := d.ready(ctx)
		if err == nil {
			err = list()
		}
		if err != nil {
			return nil, fmt.Errorf("observe kernel: %w", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.altered = o.altered
	return o.objects, nil
}

// observation is one Observe under way.
type observation struct {
	driver  *Driver
	names   map[int]string // of every device
	own     map[int]bool   // devices of ours
	objects map[tunnel.Key]tunnel.Object
	altered map[tunnel.Key]bool
}

// notAsWanted is the MTU, or keepalive, of an object that exists in another form than ours.
const notAsWanted = -1

func (o *observation) links() error {
	links, err := linux.Dump(o.driver.netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	o.names = make(map[int]string, len(links))
	o.own = make(map[int]bool)
	for _, link := range links {
		o.names[link.Attrs().Index] = link.Attrs().Name
	}
	for _, link := range links {
		if !o.driver.isOurs(link) {
			continue
		}
		o.own[link.Attrs().Index] = true
		have := tunnel.Link{Name: link.Attrs().Name, Type: tunnel.LinkTUN, MTU: link.Attrs().MTU}
		intact := link.Attrs().RawFlags&unix.IFF_UP != 0 && link.Attrs().MasterIndex == 0
		if vxlan, ok := link.(*netlink.Vxlan); ok {
			have = linkOf(vxlan, o.names[vxlan.VtepDevIndex])
			intact = intact && !isFlawed(vxlan) &&
				(!o.driver.acceptsRouters(have.Name) || !o.driver.canRefuseRouters(have.Name))
		}
		if isWireGuardName(have.Name) {
			have.Type = tunnel.LinkWireGuard
		}
		if !intact {
			have.MTU = notAsWanted
		}
		o.objects[have.Key()] = have
	}
	return nil
}

// linkOf returns a VXLAN device as an object.
func linkOf(have *netlink.Vxlan, parent string) tunnel.Link {
	return tunnel.Link{
		Name:     have.Name,
		Type:     tunnel.LinkVXLAN,
		MTU:      have.MTU,
		MAC:      macOf(have.HardwareAddr),
		VNI:      uint32(have.VxlanId),
		Port:     uint16(have.Port),
		Local:    local(have),
		Parent:   parent,
		Learning: have.Learning,
		GBP:      have.GBP,
	}
}

// macOf returns the zero MAC for what is not 48 bits long.
func macOf(address []byte) (mac tunnel.MAC) {
	if len(address) == len(mac) {
		copy(mac[:], address)
	}
	return mac
}

func (o *observation) addresses() error {
	all, err := linux.Dump(func() ([]netlink.Addr, error) { return o.driver.netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, address := range all {
		prefix, ok := prefixOf(address.IPNet)
		if !ok || !o.own[address.LinkIndex] || isLinkLocal6(prefix.Addr()) {
			continue
		}
		have := tunnel.Address{Link: o.names[address.LinkIndex], Prefix: prefix}
		o.objects[have.Key()] = have
	}
	return nil
}

// isLinkLocal6 is for the addresses that the kernel gives each device.
func isLinkLocal6(addr netip.Addr) bool { return addr.Is6() && addr.IsLinkLocalUnicast() }

func (o *observation) neighbors() error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		all, err := o.neighborEntries(family)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, entry := range all {
			ip, ok := netip.AddrFromSlice(entry.IP)
			if !ok || entry.State&unix.NUD_PERMANENT == 0 {
				continue
			}
			have := tunnel.Neighbor{Link: o.names[entry.LinkIndex], IP: ip, MAC: macOf(entry.HardwareAddr)}
			o.objects[have.Key()] = have
		}
	}
	return nil
}

func (o *observation) fdb() error {
	all, err := o.neighborEntries(unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, entry := range all {
		remote, ok := netip.AddrFromSlice(entry.IP)
		lasting := entry.State&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0
		if !ok || !lasting || entry.Flags&unix.NTF_SELF == 0 {
			continue
		}
		have := tunnel.FDBEntry{Link: o.names[entry.LinkIndex], MAC: macOf(entry.HardwareAddr), Remote: remote}
		o.objects[have.Key()] = have
	}
	return nil
}

// neighborEntries lists the entries of one family on our devices.
func (o *observation) neighborEntries(family uint8) ([]netlink.Neigh, error) {
	all, err := linux.Dump(func() ([]netlink.Neigh, error) {
		return o.driver.netlink.NeighListExecute(netlink.Ndmsg{Family: family})
	})
	return slices.DeleteFunc(all, func(entry netlink.Neigh) bool { return !o.own[entry.LinkIndex] }), err
}

func (o *observation) routes() error {
	all, err := o.driver.listRoutes()
	if err != nil {
		return err
	}
	for _, route := range all {
		if !isOurRoute(route, func(index int) bool { return o.own[index] }) {
			continue
		}
		have, intact := routeOf(route, o.names[route.LinkIndex], o.own[route.LinkIndex])
		key := have.Key()
		if _, twice := o.objects[key]; twice || !intact {
			o.altered[key] = true
			have.MTU = notAsWanted
		}
		o.objects[key] = have
	}
	return nil
}
