package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The devices that the probes make for a moment. Nobody else should have the VNI.
const (
	probeName          = "weft-probe"
	probeVNI           = 1<<24 - 2
	probePort          = 46237
	probeWireGuardName = "weft-probe-wg"
)

// Probe tells whether this kernel and these rights make VXLAN devices, by
// making one and deleting it. The error says why not, and what helps.
func (d *Driver) Probe(ctx context.Context) error {
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("probe kernel: %w", err)
	}
	isProbe := func(link netlink.Link) bool {
		vxlan, ok := link.(*netlink.Vxlan)
		return ok && vxlan.VxlanId == probeVNI
	}
	if err := d.removeProbe(probeName, isProbe); err != nil { // left by a process that was killed
		return err
	}
	probe := &netlink.Vxlan{LinkAttrs: netlink.NewLinkAttrs(), VxlanId: probeVNI, Port: probePort}
	probe.Name = probeName
	err := d.netlink.LinkAdd(probe)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("kernel: RTM_NEWLINK vxlan: %w: %s", err, noVXLAN)
	}
	if err != nil {
		return fmt.Errorf("kernel: RTM_NEWLINK vxlan: %w", explainRights(err))
	}
	return d.removeProbe(probeName, isProbe)
}

// ProbeWireGuard is Probe for WireGuard devices, which must also let themselves
// be read.
func (d *Driver) ProbeWireGuard(ctx context.Context) error {
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("probe kernel: %w", err)
	}
	isProbe := func(link netlink.Link) bool { return link.Type() == d.wireguard.kind }
	if err := d.removeProbe(probeWireGuardName, isProbe); err != nil {
		return err
	}
	if err := d.netlink.LinkAdd(d.wireguard.newLink(probeWireGuardName)); err != nil {
		return explainRights(d.wireguard.explainCreate(err))
	}
	_, err := d.wireguard.device(probeWireGuardName)
	if err != nil {
		err = fmt.Errorf("kernel: %w", explainRights(err))
	}
	return errors.Join(err, d.removeProbe(probeWireGuardName, isProbe))
}

// removeProbe deletes a probe's device if it is there.
func (d *Driver) removeProbe(name string, isProbe func(netlink.Link) bool) error {
	link, err := d.netlink.LinkByName(name)
	if err != nil {
		if err := asAbsent(name, err); !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("kernel: RTM_GETLINK: %w", err)
		}
		return nil
	}
	if !isProbe(link) {
		return squatterError(link)
	}
	if err := d.netlink.LinkDel(link); err != nil && !isAbsent(err) {
		return fmt.Errorf("kernel: RTM_DELLINK %s: %w", name, explainRights(err))
	}
	return nil
}
