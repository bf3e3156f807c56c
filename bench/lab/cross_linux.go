package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

func (h *Host) cross(other *Host, config CrossConfig) error {
	err := h.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = config.Device, config.MTU
		veth := &netlink.Veth{
			LinkAttrs: attrs, PeerName: config.Device, PeerMTU: uint32(config.MTU),
			PeerNamespace: netlink.NsFd(int(other.net.Fd())),
		}
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	ends := []*Host{h, other}
	for i, end := range ends {
		err := end.Do(func() error { return prepareCrossEnd(config, config.Addresses[i]) })
		if err != nil {
			return fmt.Errorf("on %s: %w", end.name, err)
		}
	}
	for _, end := range ends {
		if err := end.Do(func() error { return awaitUp(config.Device) }); err != nil {
			return err
		}
	}
	return nil
}

// prepareCrossEnd sets up one end in the calling thread's namespace.
func prepareCrossEnd(config CrossConfig, address netip.Prefix) error {
	if config.Offload != OffloadFull {
		if err := setOffload(config.Device, config.Offload, true); err != nil {
			return fmt.Errorf("set offloads of %s: %w", config.Device, err)
		}
	}
	return bringUp(config.Device, []netip.Prefix{address})
}
