package datapath

import (
	"errors"
	"net/netip"
	"runtime"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/internal/ring"
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
	// WireGuard first: its ports are among those that the kernel picks from for
	// the send sockets and probes of VXLAN.
	var sealed, plain []group
	for _, addr := range config.WireGuard {
		g, err := openGroup(config, addr, 1, true, count)
		if err != nil {
			return nil, err
		}
		closers = append(closers, g.close)
		sealed = append(sealed, g)
	}
	for _, addr := range config.Listen {
		g, err := openGroup(config, addr, config.SendSockets, false, count)
		if err != nil {
			return nil, err
		}
		closers = append(closers, g.close)
		plain = append(plain, g)
	}
	opened = make([]engine.Worker, count)
	withRing, err := wantsRing(config, queues, ring.Supported)
	if err != nil {
		return nil, err
	}
	for i, queue := range queues {
		w := &opened[i]
		w.Device = queue
		sockets := make([]*udp.Socket, 0, len(plain)+len(sealed))
		for _, g := range plain {
			w.Sockets = append(w.Sockets, g.sockets[i])
			sockets = append(sockets, g.sockets[i])
		}
		for _, g := range sealed {
			w.Sealed = append(w.Sealed, g.sockets[i])
			sockets = append(sockets, g.sockets[i])
		}
		if w.Poller, err = openPoller(queue, sockets, withRing, config.BusyPoll); err != nil {
			return nil, err
		}
		closers = append(closers, w.Poller.Close)
	}
	for _, g := range plain {
		opened[0].Probes = append(opened[0].Probes, g.probes)
	}
	for _, g := range sealed {
		opened[0].SealedProbes = append(opened[0].SealedProbes, g.probes)
	}
	return opened, nil
}

// group is what is opened for an outer address: a socket for each worker, and
// one for probes.
type group struct {
	sockets []*udp.Socket
	probes  *udp.ProbeSocket
}

func (g group) close() error { return errors.Join(closeAll(g.sockets), g.probes.Close()) }

// openGroup opens a group whose probes leave from the same port, or from any.
func openGroup(config Config, addr netip.AddrPort, senders int, samePort bool, count int) (group, error) {
	sockets, err := udp.ListenGroup(udp.Config{
		Addr: addr, SendSockets: senders, Polled: true,
		GSO: config.Offloads.GSO, GRO: config.Offloads.GRO, Logger: config.Logger,
	}, count)
	if err != nil {
		return group{}, err
	}
	// What is insisted on needs no test.
	testRuns := sockets[0].Offloads().UDP && config.Offloads.GSO != tunnel.On
	openProbe := sockets[0].OpenProbe
	if !samePort {
		openProbe = func(runs bool) (*udp.ProbeSocket, error) { return udp.OpenProbe(addr.Addr(), runs) }
	}
	probes, err := openProbe(testRuns)
	if err != nil {
		return group{}, errors.Join(err, closeAll(sockets))
	}
	return group{sockets: sockets, probes: probes}, nil
}
