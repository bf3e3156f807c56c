package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The device that Probe makes for a moment. Nobody else should have its VNI.
const (
	probeName = "weft-probe"
	probeVNI  = 1<<24 - 2
	probePort = 46237
)

// Probe tells whether this kernel and these rights make VXLAN devices, by
// making one and deleting it. The error says why not, and what helps.
func (d *Driver) Probe(ctx context.Context) error {
	if err := d.ready(ctx); err != nil {
		return fmt.Errorf("probe kernel: %w", err)
	}
	if err := d.removeProbe(); err != nil { // left by a process that was killed
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
	return d.removeProbe()
}

// removeProbe deletes Probe's device if it is there.
func (d *Driver) removeProbe() error {
	link, err := d.netlink.LinkByName(probeName)
	if err != nil {
		if err := asAbsent(probeName, err); !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("kernel: RTM_GETLINK: %w", err)
		}
		return nil
	}
	if vxlan, ok := link.(*netlink.Vxlan); !ok || vxlan.VxlanId != probeVNI {
		return squatterError(link)
	}
	if err := d.netlink.LinkDel(link); err != nil && !isAbsent(err) {
		return fmt.Errorf("kernel: RTM_DELLINK %s: %w", probeName, explainRights(err))
	}
	return nil
}
