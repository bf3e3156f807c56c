//go:build darwin || freebsd || windows

package tundev

import (
	"fmt"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/weft-net/weft/tunnel/tundev/packetwise"
)

// Device is a TUN device of this system, and implements tunnel.Device.
type Device = packetwise.Device

// Open makes the device with its MTU set. Where it cannot be made the error
// says how to allow it.
func Open(config Config) (*Device, error) {
	config, err := config.withDefaults(defaultName)
	if err != nil {
		return nil, err
	}
	t, err := tun.CreateTUN(config.Name, config.MTU)
	if err != nil {
		if cure := cure(err); cure != "" {
			return nil, fmt.Errorf("open TUN %s: %s: %w", config.Name, cure, err)
		}
		return nil, fmt.Errorf("open TUN %s: %w", config.Name, err)
	}
	device, err := packetwise.New(t)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", config.Name, err)
	}
	for _, why := range device.Offloads().Why {
		config.Logger.Info("TUN device is slower than it could be", "device", device.Name(), "reason", why)
	}
	return device, nil
}
