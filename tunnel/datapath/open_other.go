//go:build !linux

package datapath

import (
	"errors"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tundev"
	"github.com/weft-net/weft/tunnel/udp"
)

// open opens one worker without a poller: neither the TUN nor the sockets of
// these systems can be waited for from outside.
func open(config Config) ([]engine.Worker, error) {
	device, err := tundev.Open(tundev.Config{Name: config.Device, MTU: config.MTU, Logger: config.Logger})
	if err != nil {
		return nil, err
	}
	worker := engine.Worker{Device: device}
	for _, addr := range config.Listen {
		socket, err := udp.Listen(udp.Config{Addr: addr, SendSockets: config.SendSockets, Logger: config.Logger})
		if err != nil {
			return nil, errors.Join(err, device.Close(), closeAll(worker.Sockets))
		}
		worker.Sockets = append(worker.Sockets, tunnel.Socket(socket))
	}
	return []engine.Worker{worker}, nil
}
