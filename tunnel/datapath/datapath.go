// Package datapath puts together what the userspace engine of one host works
// on: the queues of its TUN and its UDP sockets, as many as there are workers,
// in the way that is fastest on the system at hand. It must never decide which
// addresses, peers or MTU those are, and never move a packet itself.
package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
)

const (
	// MaxWorkers bounds Config.Workers.
	MaxWorkers = 64
	// DefaultSendSockets is per worker and outer family. ECMP, the receive queues
	// of peers and limits per flow see this many flows at least.
	DefaultSendSockets = 8
)

// Config says what Open opens.
type Config struct {
	// Device is the name of the TUN, and MTU its largest inner packet in bytes.
	Device string
	MTU    int
	// Listen are the local outer addresses and ports, at most one per family, and
	// WireGuard those that carry WireGuard. One of the two may be empty.
	Listen    []netip.AddrPort
	WireGuard []netip.AddrPort
	// Workers is how many there are; 0 means by the number of CPUs. Linux only.
	Workers int
	// SendSockets is per worker and family; 0 means DefaultSendSockets, 1 that
	// the port that is listened on also sends, as it always does for WireGuard.
	SendSockets int
	Offloads    Offloads
	// BusyPoll is how long a worker looks for the next packet of traffic to and fro
	// before it sleeps; 0: it sleeps at once. Linux only.
	BusyPoll time.Duration
	// Inside runs what opens the TUN in the network namespace that it is to be in;
	// nil: in that of the calling thread, as the sockets. Linux only.
	Inside func(func() error) error
	// Logger is told what could not be had.
	Logger *slog.Logger
}

// Offloads is what the kernel is to do of the engine's work. Linux only.
type Offloads struct {
	TSO tunnel.Switch // TCP super-packets of the TUN; without them none of UDP either
	USO tunnel.Switch // UDP super-packets of the TUN
	GSO tunnel.Switch // runs of datagrams to send
	GRO tunnel.Switch // runs of datagrams received
	// Ring is io_uring: to read, receive and write with few system calls.
	Ring tunnel.Switch
}

// Open opens everything in the network namespace of the calling thread, but for
// what Inside is there for.
func Open(config Config) ([]engine.Worker, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	return open(config)
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Logger == nil:
		return c, errors.New("open datapath: Logger is missing")
	case len(c.Listen)+len(c.WireGuard) == 0:
		return c, errors.New("open datapath: Listen is empty: want a local outer address per family")
	case c.Workers < 0 || c.Workers > MaxWorkers:
		return c, fmt.Errorf("open datapath: Workers is %d, want 0 (by the number of CPUs) to %d", c.Workers, MaxWorkers)
	}
	if c.BusyPoll < 0 || c.BusyPoll > MaxBusyPoll {
		return c, fmt.Errorf("open datapath: BusyPoll is %v, want 0 (none) to %v", c.BusyPoll, MaxBusyPoll)
	}
	for field, listen := range map[string][]netip.AddrPort{"Listen": c.Listen, "WireGuard": c.WireGuard} {
		families := map[bool]netip.AddrPort{}
		for _, addr := range listen {
			is4 := addr.Addr().Is4()
			if other, ok := families[is4]; ok {
				return c, fmt.Errorf("open datapath: %s has %v and %v: want one per family", field, other, addr)
			}
			families[is4] = addr
		}
	}
	if c.SendSockets == 0 {
		c.SendSockets = DefaultSendSockets
	}
	if c.Inside == nil {
		c.Inside = func(f func() error) error { return f() }
	}
	return c, nil
}

// workers is how many workers suit a number of CPUs: on few, another one only
// takes time from the programs that make the traffic.
func workers(cpus int) int {
	if cpus <= 2 {
		return 1
	}
	return min(cpus/2, 4)
}

// closeAll closes what has been opened when the rest could not be.
func closeAll[C interface{ Close() error }](all []C) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
