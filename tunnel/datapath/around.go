package datapath

import (
	"errors"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/udp"
)

// OpenAround opens the sockets for a device that is there already, which is
// then the worker's; on an error it stays the caller's. There is one worker, and
// no poller: such a device is no file that could be waited for. Of config the
// fields about the TUN are not looked at.
func OpenAround(device tunnel.Device, config Config) ([]engine.Worker, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	worker := engine.Worker{Device: device}
	failed := func(err error) ([]engine.Worker, error) {
		return nil, errors.Join(err, closeAll(worker.Sockets), closeAll(worker.Sealed), closeAll(worker.Probes))
	}
	for _, addr := range config.WireGuard { // first, as Open does
		// Its port is not shared, so that no probe could leave from it: what is too
		// large for the path goes out in fragments.
		socket, err := listen(config, addr, 1)
		if err != nil {
			return failed(err)
		}
		worker.Sealed = append(worker.Sealed, socket)
	}
	for _, addr := range config.Listen {
		if err := openSocket(&worker, addr, config); err != nil {
			return failed(err)
		}
	}
	return []engine.Worker{worker}, nil
}

func listen(config Config, addr netip.AddrPort, senders int) (*udp.Socket, error) {
	return udp.Listen(udp.Config{
		Addr: addr, SendSockets: senders, GSO: config.Offloads.GSO, GRO: config.Offloads.GRO, Logger: config.Logger,
	})
}

// openSocket adds the socket for an outer address, and one for probes where the
// system has those.
func openSocket(worker *engine.Worker, addr netip.AddrPort, config Config) error {
	socket, err := listen(config, addr, config.SendSockets)
	if err != nil {
		return err
	}
	worker.Sockets = append(worker.Sockets, tunnel.Socket(socket))
	// What is insisted on needs no test.
	probes, err := udp.OpenProbe(addr.Addr(), socket.Offloads().UDP && config.Offloads.GSO != tunnel.On)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	worker.Probes = append(worker.Probes, probes)
	return nil
}
