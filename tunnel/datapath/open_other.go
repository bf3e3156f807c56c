//go:build !linux

package datapath

import (
	"errors"

	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tundev"
)

// open opens one worker without a poller: neither the TUN nor the sockets of
// these systems can be waited for from outside.
func open(config Config) ([]engine.Worker, error) {
	device, err := tundev.Open(tundev.Config{Name: config.Device, MTU: config.MTU, Logger: config.Logger})
	if err != nil {
		return nil, err
	}
	workers, err := OpenAround(device, config)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return workers, nil
}
