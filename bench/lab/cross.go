package lab

import (
	"fmt"
	"net/netip"
)

// CrossConfig describes a cable between two hosts.
type CrossConfig struct {
	Device    string          // its name on both hosts
	Addresses [2]netip.Prefix // of either end
	MTU       int             // 0: 1500
	Offload   Offload         // empty: OffloadFull
}

// Cross joins two hosts by a veth pair with no switch on the way, for
// measurements to which a bridge would add its own cost. The hosts keep their
// eth0.
func (h *Host) Cross(other *Host, config CrossConfig) error {
	if config.MTU == 0 {
		config.MTU = defaultMTU
	}
	if config.Offload == "" {
		config.Offload = OffloadFull
	}
	err := LinkProps{MTU: config.MTU, Offload: config.Offload}.check()
	if err == nil {
		err = h.cross(other, config)
	}
	if err != nil {
		return fmt.Errorf("cross hosts %s and %s: %w", h.name, other.name, err)
	}
	return nil
}
