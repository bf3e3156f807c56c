package datapath

import (
	"errors"
	"net/netip"
	"runtime"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tundev"
	"github.com/weft-net/weft/tunnel/udp"
)

func open(config Config) (opened []engine.Worker, err error) {
	count := config.Workers
	if count == 0 {
		count = workers(runtime.NumCPU())
	}
	var queues []*tundev.Device
	err = config.Inside(func() (err error) {
		queues, err = tundev.OpenQueues(tundev.Config{
			Name: config.Device, MTU: config.MTU, Queues: count, Polled: true,
			TSO: config.Offloads.TSO, USO: config.Offloads.USO, Logger: config.Logger,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	closers := []func() error{func() error { return closeAll(queues) }}
	defer func() {
		if err == nil {
			return
		}
		for _, c := range closers {
			err = errors.Join(err, c())
		}
	}()
	opened = make([]engine.Worker, count)
	descriptors := make([][][]int, count) // per worker, of the Device and each Socket
	for i, queue := range queues {
		opened[i].Device = queue
		descriptors[i] = [][]int{{queue.Descriptor()}}
	}
	for _, addr := range config.Listen {
		group, probes, err := openGroup(config, addr, config.SendSockets, 0, count)
		if err != nil {
			return nil, err
		}
		closers = append(closers, func() error { return closeAll(group) }, probes.Close)
		for i, socket := range group {
			opened[i].Sockets = append(opened[i].Sockets, socket)
			descriptors[i] = append(descriptors[i], socket.Descriptors())
		}
		opened[0].Probes = append(opened[0].Probes, probes)
	}
	for _, addr := range config.WireGuard {
		group, probes, err := openGroup(config, addr, 1, addr.Port(), count)
		if err != nil {
			return nil, err
		}
		closers = append(closers, func() error { return closeAll(group) }, probes.Close)
		for i, socket := range group {
			opened[i].Sealed = append(opened[i].Sealed, socket)
			descriptors[i] = append(descriptors[i], socket.Descriptors())
		}
		opened[0].SealedProbes = append(opened[0].SealedProbes, probes)
	}
	for i := range opened {
		p, err := newPoller(descriptors[i])
		if err != nil {
			return nil, err
		}
		closers = append(closers, p.Close)
		opened[i].Poller = p
	}
	return opened, nil
}

// openGroup opens the sockets of all workers for an outer address, and the one
// for probes, which leave from a port: 0 is any.
func openGroup(config Config, addr netip.AddrPort, senders int, probePort uint16, count int) ([]*udp.Socket, *udp.ProbeSocket, error) {
	group, err := udp.ListenGroup(udp.Config{
		Addr: addr, SendSockets: senders, Polled: true,
		GSO: config.Offloads.GSO, GRO: config.Offloads.GRO, Logger: config.Logger,
	}, count)
	if err != nil {
		return nil, nil, err
	}
	// What is insisted on needs no test.
	testRuns := group[0].Offloads().UDP && config.Offloads.GSO != tunnel.On
	probes, err := udp.OpenProbe(netip.AddrPortFrom(addr.Addr(), probePort), testRuns)
	if err != nil {
		return nil, nil, errors.Join(err, closeAll(group))
	}
	return group, probes, nil
}
