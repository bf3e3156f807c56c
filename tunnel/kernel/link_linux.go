package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

func fieldError(field string, err error) error { return fmt.Errorf("%s: %w", field, err) }

func (d *Driver) applyLink(want tunnel.Link) error {
	switch want.Type {
	case tunnel.LinkTUN:
		return d.applyTUN(want)
	case tunnel.LinkVXLAN:
		return d.applyVXLAN(want)
	case tunnel.LinkWireGuard:
		return d.applyWireGuard(want)
	}
	return fmt.Errorf("type %q: want %q, %q or %q", want.Type, tunnel.LinkVXLAN, tunnel.LinkWireGuard, tunnel.LinkTUN)
}

// applyTUN manages the MTU and the up state of the engine's device.
func (d *Driver) applyTUN(want tunnel.Link) error {
	if want.Name == "" || want.Name != d.tun {
		return fmt.Errorf("name %q: the TUN device of this driver is %q", want.Name, d.tun)
	}
	link, err := d.find(want.Name)
	if err != nil {
		return err
	}
	if link == nil {
		return fmt.Errorf("device %s: %w: the userspace engine has not opened it", want.Name, unix.ENODEV)
	}
	return d.tune(link, want)
}

func (d *Driver) applyVXLAN(want tunnel.Link) error {
	if err := checkVXLAN(want); err != nil {
		return err
	}
	parent, err := d.devices.index(want.Parent)
	if err != nil {
		return fieldError("parent", err)
	}
	have, err := d.find(want.Name)
	if err != nil {
		return err
	}
	if have != nil && !d.reshape(have.(*netlink.Vxlan), want, parent) {
		d.log.Info("recreating device, its settings cannot be changed in place", "device", want.Name)
		if err := d.netlink.LinkDel(have); err != nil && !isAbsent(err) {
			return err
		}
		have = nil
	}
	if have == nil {
		if have, err = d.createVXLAN(want, parent); err != nil {
			return err
		}
	}
	return d.tune(have, want)
}

// checkVXLAN names the field that cannot be.
func checkVXLAN(want tunnel.Link) error {
	switch {
	case !isVXLANName(want.Name):
		return fmt.Errorf("name %q: want flannel.<VNI> or flannel-v6.<VNI>", want.Name)
	case len(want.Name) > maxName:
		return fmt.Errorf("name %q is longer than %d bytes: choose a VNI with fewer digits", want.Name, maxName)
	case want.VNI == 0 || want.VNI >= 1<<24:
		return fmt.Errorf("VNI %d: want 1 to 16777215", want.VNI)
	case want.Port == 0:
		return fieldError("port", errUnset)
	case want.MAC == (tunnel.MAC{}):
		return fieldError("MAC", errUnset)
	case want.MTU <= 0:
		return fieldError("MTU", errUnset)
	case !want.Local.IsValid():
		return fieldError("local", errUnset)
	case want.Parent == "":
		return fieldError("parent", errUnset)
	}
	return nil
}

// isFlawed reports whether a device was created with settings that ours never
// have and that cannot be changed afterwards.
func isFlawed(have *netlink.Vxlan) bool {
	return have.Group != nil || have.Proxy || have.RSC || have.L2miss || have.L3miss || have.FlowBased ||
		!have.UDPCSum || have.UDP6ZeroCSumTx || have.UDP6ZeroCSumRx ||
		have.TTL != 0 || have.TOS != 0 || have.Limit != 0
}

// local returns the device's outer source address, zero if it has none.
func local(have *netlink.Vxlan) netip.Addr {
	addr, _ := netip.AddrFromSlice(have.SrcAddr)
	return addr
}

// reshape gives a device what a VXLAN device is made of. It reports false if
// that takes a new device.
func (d *Driver) reshape(have *netlink.Vxlan, want tunnel.Link, parent int) bool {
	if isFlawed(have) || have.VxlanId != int(want.VNI) || have.Port != int(want.Port) || have.GBP != want.GBP ||
		local(have).BitLen() != want.Local.BitLen() {
		return false
	}
	if local(have) == want.Local && have.VtepDevIndex == parent && have.Learning == want.Learning {
		return true
	}
	if err := d.changeVXLAN(have.Index, want, parent); err != nil {
		d.log.Debug("device cannot be changed in place", "device", want.Name, "err", err)
		return false
	}
	d.log.Info("changed device in place", "device", want.Name, "local", want.Local, "parent", want.Parent)
	return true
}

// changeVXLAN changes what most kernels let change: local address, parent
// and learning, with all entries kept. The library would send every setting,
// and the kernel refuses those it cannot change even if they are the same.
func (d *Driver) changeVXLAN(index int, want tunnel.Link, parent int) error {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: d.raw}
	header := nl.NewIfInfomsg(unix.AF_UNSPEC)
	header.Index = int32(index)
	request.AddData(header)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(parent)))
	attribute := nl.IFLA_VXLAN_LOCAL
	if want.Local.Is6() {
		attribute = nl.IFLA_VXLAN_LOCAL6
	}
	data.AddRtAttr(attribute, want.Local.AsSlice())
	learning := uint8(0)
	if want.Learning {
		learning = 1
	}
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(learning))
	request.AddData(info)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// createVXLAN makes the device, down. The MAC is given at creation, which the
// kernel records: systemd and NetworkManager then leave it alone.
func (d *Driver) createVXLAN(want tunnel.Link, parent int) (netlink.Link, error) {
	link := &netlink.Vxlan{
		LinkAttrs:    netlink.NewLinkAttrs(),
		VxlanId:      int(want.VNI),
		VtepDevIndex: parent,
		SrcAddr:      want.Local.AsSlice(),
		Learning:     want.Learning,
		GBP:          want.GBP,
		UDPCSum:      true,
		Port:         int(want.Port),
	}
	link.Name = want.Name
	link.MTU = want.MTU
	link.HardwareAddr = want.MAC[:]
	if err := d.netlink.LinkAdd(link); err != nil {
		return nil, d.explainCreate(want, err)
	}
	made, err := d.find(want.Name)
	if err == nil && made == nil {
		err = fmt.Errorf("device %s vanished after it was made: %w", want.Name, unix.ENODEV)
	}
	return made, err
}

// explainCreate says why a VXLAN device could not be made, and what helps.
func (d *Driver) explainCreate(want tunnel.Link, err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		if rival := d.rival(want); rival != "" {
			return fmt.Errorf("another VXLAN device (%s) already uses VNI %d and port %d: %w: delete it (ip link delete %s) or choose another VNI",
				rival, want.VNI, want.Port, err, rival)
		}
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("kernel: RTM_NEWLINK vxlan: %w: %s", err, noVXLAN)
	}
	return fmt.Errorf("kernel: RTM_NEWLINK vxlan: %w", err)
}

const noVXLAN = "this kernel has no VXLAN: load the module (modprobe vxlan); " +
	"where it is missing, install the kernel's extra modules (on Raspberry Pi: linux-modules-extra-raspi)"

// rival returns the name of the device that holds our VNI and port.
func (d *Driver) rival(want tunnel.Link) string {
	links, err := linux.Dump(d.netlink.LinkList)
	if err != nil {
		return ""
	}
	for _, link := range links {
		if other, ok := link.(*netlink.Vxlan); ok && other.Name != want.Name &&
			other.VxlanId == int(want.VNI) && other.Port == int(want.Port) {
			return other.Name
		}
	}
	return ""
}

// tune sets what can be changed on a device in use, and brings it up.
func (d *Driver) tune(have netlink.Link, want tunnel.Link) error {
	attrs := have.Attrs()
	if attrs.MasterIndex != 0 {
		if err := d.netlink.LinkSetNoMaster(have); err != nil {
			return fmt.Errorf("take %s out of its bridge: %w", want.Name, err)
		}
	}
	if attrs.MTU != want.MTU {
		if err := d.netlink.LinkSetMTU(have, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d (now %d): %w: the underlay may be too small for it", want.MTU, attrs.MTU, err)
		}
	}
	if want.MAC != (tunnel.MAC{}) && string(attrs.HardwareAddr) != string(want.MAC[:]) {
		if err := d.netlink.LinkSetHardwareAddr(have, want.MAC[:]); err != nil {
			return fmt.Errorf("set MAC %s: %w", want.MAC, err)
		}
	}
	if want.Type == tunnel.LinkVXLAN {
		d.refuseRouters(want.Name)
	}
	if attrs.RawFlags&unix.IFF_UP != 0 {
		return nil
	}
	err := d.netlink.LinkSetUp(have)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("bring up: %w: another program, or a device with other settings, has UDP port %d", err, want.Port)
	}
	if err != nil {
		return fmt.Errorf("bring up: %w", err)
	}
	return nil
}

// deleteLink removes a device and with it all that is on it.
func (d *Driver) deleteLink(have tunnel.Link) error {
	link, err := d.find(have.Name)
	if err != nil || link == nil {
		return err
	}
	d.wireguard.forget(func(key tunnel.Key) bool { return strings.HasPrefix(key.Name, have.Name+" ") })
	return d.netlink.LinkDel(link)
}

// ExistingMAC returns the MAC of the device that Apply would keep for want: one
// of ours with the same VNI, parent, local address, port and policy extension.
// Its MAC is the one to publish, since peers may hold it. The MAC, MTU and
// learning of want do not matter.
func (d *Driver) ExistingMAC(want tunnel.Link) (mac tunnel.MAC, ok bool, err error) {
	link, err := d.find(want.Name)
	if err != nil {
		return mac, false, fmt.Errorf("look for an existing %s: %w", want.Name, err)
	}
	have, ok := link.(*netlink.Vxlan)
	if !ok || isFlawed(have) || len(have.HardwareAddr) != len(mac) {
		return mac, false, nil
	}
	shape := linkOf(have, d.devices.name(have.VtepDevIndex))
	want.MAC, want.MTU, want.Learning = shape.MAC, shape.MTU, shape.Learning
	return shape.MAC, shape == want, nil
}
