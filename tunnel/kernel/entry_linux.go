package kernel

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// ipNet returns a prefix as the netlink library wants it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the inverse of ipNet; ok is false for what is no prefix.
func prefixOf(n *net.IPNet) (p netip.Prefix, ok bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, ones), ok
}

var errUnset = errors.New("not set")

func (d *Driver) applyAddress(want tunnel.Address) error {
	if !want.Prefix.IsValid() {
		return fieldError("prefix", errUnset)
	}
	index, err := d.own(want.Link)
	if err != nil {
		return err
	}
	return d.netlink.AddrReplace(nil, &netlink.Addr{LinkIndex: index, IPNet: ipNet(want.Prefix)})
}

func (d *Driver) deleteAddress(have tunnel.Address) error {
	index, err := d.own(have.Link)
	if err != nil {
		return err
	}
	return d.netlink.AddrDel(nil, &netlink.Addr{LinkIndex: index, IPNet: ipNet(have.Prefix)})
}

func (d *Driver) applyNeighbor(want tunnel.Neighbor) error {
	if !want.IP.IsValid() {
		return fieldError("IP", errUnset)
	}
	if want.MAC == (tunnel.MAC{}) {
		return fieldError("MAC", errUnset)
	}
	index, err := d.own(want.Link)
	if err != nil {
		return err
	}
	return d.netlink.NeighSet(&netlink.Neigh{
		LinkIndex:    index,
		State:        unix.NUD_PERMANENT,
		IP:           want.IP.AsSlice(),
		HardwareAddr: want.MAC[:],
	})
}

func (d *Driver) deleteNeighbor(have tunnel.Neighbor) error {
	index, err := d.own(have.Link)
	if err != nil {
		return err
	}
	return d.netlink.NeighDel(&netlink.Neigh{LinkIndex: index, IP: have.IP.AsSlice()})
}

// applyFDB relies on two habits of the VXLAN driver: a unicast MAC has one
// remote only, whatever is appended, and replace changes it in place.
func (d *Driver) applyFDB(want tunnel.FDBEntry) error {
	if !want.Remote.IsValid() {
		return fieldError("remote", errUnset)
	}
	if want.MAC == (tunnel.MAC{}) {
		return fieldError("MAC", errUnset)
	}
	index, err := d.own(want.Link)
	if err != nil {
		return err
	}
	return d.netlink.NeighSet(fdbEntry(index, want.MAC, want.Remote))
}

// deleteFDB names no remote, so that the kernel removes all there are.
func (d *Driver) deleteFDB(have tunnel.FDBEntry) error {
	index, err := d.own(have.Link)
	if err != nil {
		return err
	}
	return d.netlink.NeighDel(fdbEntry(index, have.MAC, netip.IPv4Unspecified()))
}

func fdbEntry(index int, mac tunnel.MAC, remote netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    index,
		Family:       unix.AF_BRIDGE,
		State:        unix.NUD_PERMANENT,
		Flags:        unix.NTF_SELF,
		IP:           remote.AsSlice(),
		HardwareAddr: mac[:],
	}
}
