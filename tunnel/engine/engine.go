// Package engine is the userspace forwarder: it carries inner packets between
// a Device and UDP Sockets in VXLAN (RFC 7348), looking peers up in an
// immutable table. It must never call the operating system, allocate or lock
// per packet, or let a packet in whose inner source does not belong to the peer
// that sent it.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/peertable"
)

// Config is what an Engine is made of.
type Config struct {
	// Device and Sockets belong to Run from its start: it closes them when it
	// returns. There is one Socket or more per outer family in use; equal flows
	// leave by the same one.
	Device  tunnel.Device
	Sockets []tunnel.Socket
	Logger  *slog.Logger
}

// Engine forwards packets while Run runs. Its other methods may be called at
// any time, from any goroutine.
type Engine struct {
	device  device
	sockets []tunnel.Socket
	logger  *slog.Logger
	started atomic.Bool

	peers  atomic.Pointer[peertable.Table]
	locals atomic.Pointer[[]tunnel.Local]

	tx *tx
	rx []*rx
}

// device is the Device with its writers put one after the other: every socket
// has one, and so have the ICMP errors of the other direction.
type device struct {
	tunnel.Device
	mu sync.Mutex
}

func (d *device) Write(packets []tunnel.Outgoing) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Device.Write(packets)
}

// New makes an Engine without peers. It starts nothing.
func New(config Config) (*Engine, error) {
	switch {
	case config.Device == nil:
		return nil, errors.New("make engine: Config.Device is missing")
	case len(config.Sockets) == 0:
		return nil, errors.New("make engine: Config.Sockets is empty: want one or more per outer family")
	case config.Logger == nil:
		return nil, errors.New("make engine: Config.Logger is missing")
	}
	e := &Engine{sockets: config.Sockets, logger: config.Logger}
	e.device.Device = config.Device
	e.tx = newTx(e)
	for _, socket := range config.Sockets {
		e.rx = append(e.rx, newRx(e, socket))
	}
	return e, nil
}

// SetPeers replaces all peers, from the next batch on. Peers that cannot be
// used are left out, and the error says which and why; the others work.
func (e *Engine) SetPeers(peers []tunnel.Peer) error {
	table, err := peertable.Build(peers)
	e.peers.Store(table)
	if err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	return nil
}

// SetLocals replaces what this host terminates, from the next batch on: at
// most one Local per inner family. On an error nothing changes.
func (e *Engine) SetLocals(locals []tunnel.Local) error {
	seen := map[bool]netip.Prefix{}
	for _, local := range locals {
		if !local.Subnet.IsValid() || local.Subnet != local.Subnet.Masked() {
			return fmt.Errorf("set locals: subnet %v: want a valid masked prefix, as in 10.244.1.0/24", local.Subnet)
		}
		is4 := local.Subnet.Addr().Is4()
		if other, ok := seen[is4]; ok {
			return fmt.Errorf("set locals: subnets %v and %v: want one per family", other, local.Subnet)
		}
		seen[is4] = local.Subnet
	}
	own := append([]tunnel.Local(nil), locals...)
	e.locals.Store(&own)
	return nil
}

// Run forwards packets until ctx is done, which gives nil, or the Device or a
// Socket fails, which gives that error. It may be called once. When it returns
// the Device and all Sockets are closed, and nothing of the engine still runs.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return errors.New("run engine: it has run already")
	}
	group, stop := errgroup.WithContext(ctx)
	group.Go(e.tx.run)
	for _, rx := range e.rx {
		group.Go(rx.run)
	}
	// Closing is what wakes a waiting Read or Receive. The workers never
	// return without an error, so this always comes to pass.
	group.Go(func() error {
		<-stop.Done()
		return e.close()
	})
	err := group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("run engine: %w", err)
}

func (e *Engine) close() error {
	errs := []error{e.device.Close()}
	for _, socket := range e.sockets {
		errs = append(errs, socket.Close())
	}
	return errors.Join(errs...)
}

// Stats returns all counters. Each is exact as of the last batch.
func (e *Engine) Stats() Stats {
	var stats Stats
	e.tx.counters.addTo(&stats)
	for _, rx := range e.rx {
		rx.counters.addTo(&stats)
	}
	return stats
}

// localsNow is what this host terminates at the moment.
func (e *Engine) localsNow() []tunnel.Local {
	if locals := e.locals.Load(); locals != nil {
		return *locals
	}
	return nil
}

// localOf returns the Local of one inner family, or nil.
func localOf(locals []tunnel.Local, is4 bool) *tunnel.Local {
	for i := range locals {
		if locals[i].Subnet.Addr().Is4() == is4 {
			return &locals[i]
		}
	}
	return nil
}
