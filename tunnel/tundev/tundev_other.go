//go:build darwin || freebsd || windows

package tundev

import (
	"fmt"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tundev/packetwise"
)

// Device is a TUN device of this system, and implements tunnel.Device.
type Device = packetwise.Device

// Open makes the device with its MTU set. Where it cannot be made the error
// says how to allow it, and is tunnel.ErrNoDevice where no other could be either.
func Open(config Config) (*Device, error) {
	config, err := config.withDefaults(defaultName)
	if err != nil {
		return nil, err
	}
	t, err := tun.CreateTUN(config.Name, config.MTU)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", config.Name, explain(err))
	}
	device, err := packetwise.New(packetwise.Config{TUN: t, Large: large})
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", config.Name, err)
	}
	for _, why := range device.Offloads().Why {
		config.Logger.Info("TUN device is slower than it could be", "device", device.Name(), "reason", why)
	}
	return device, nil
}

// explain adds the cure to an error of opening.
func explain(err error) error {
	cure, none := cure(err)
	switch {
	case none:
		return fmt.Errorf("%w: %s: %w", tunnel.ErrNoDevice, cure, err)
	case cure != "":
		return fmt.Errorf("%s: %w", cure, err)
	}
	return err
}
