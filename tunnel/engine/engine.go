// Package engine is the userspace forwarder: it carries inner packets between
// a Device and UDP Sockets in VXLAN (RFC 7348) or WireGuard, looking peers up in
// an immutable table. It must never call the operating system, allocate or lock
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
	"github.com/weft-net/weft/tunnel/pathmtu"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// Config is what an Engine is made of.
type Config struct {
	// Workers belong to Run from its start: it closes all that is in them when
	// it returns.
	Workers []Worker
	// PathMTU says how the MTUs of paths are searched, but for Floor and Likely,
	// which the engine knows; nil means pathmtu.Defaults.
	PathMTU *pathmtu.Config
	// WireGuard are the keys of this host, for Workers with Sealed Sockets. Its
	// Send is not looked at.
	WireGuard wireguard.Config
	// KeepAcks: TCP acknowledgements are carried one by one, also where the next in a
	// batch supersedes them.
	KeepAcks bool
	// Answered is told the token of a ProbeWay that was answered; nil: nobody is. It
	// is called by workers, and must neither wait nor allocate.
	Answered func(token uint64)
	Logger   *slog.Logger
}

// Engine forwards packets while Run runs. Its other methods may be called at
// any time, from any goroutine.
type Engine struct {
	logger   *slog.Logger
	started  atomic.Bool
	keepAcks bool
	workers  []*worker

	ladder    *ladder
	prober    *prober
	wireguard *wireguard.Host // nil: no Worker has Sockets for it
	mu        sync.Mutex      // one change of peers or locals at a time
	peers     atomic.Pointer[peerSet]
	locals    atomic.Pointer[[]tunnel.Local]
}

// peerSet is the peers of one moment and the paths to them, by their numbers.
type peerSet struct {
	*peertable.Table
	paths    []*path
	sessions []*wireguard.Peer // nil for those without keys
}

// New makes an Engine without peers. It starts nothing.
func New(config Config) (*Engine, error) {
	switch {
	case len(config.Workers) == 0:
		return nil, errors.New("make engine: Config.Workers is empty: want one or more")
	case config.Logger == nil:
		return nil, errors.New("make engine: Config.Logger is missing")
	}
	search := pathmtu.Defaults()
	if config.PathMTU != nil {
		search = *config.PathMTU
	}
	configs := newSearchConfigs(search)
	for _, config := range configs {
		if err := config.Check(); err != nil {
			return nil, fmt.Errorf("make engine: PathMTU: %w", err)
		}
	}
	e := &Engine{logger: config.Logger, keepAcks: config.KeepAcks, ladder: newLadder(config.Logger)}
	e.peers.Store(&peerSet{})
	if err := e.openWireGuard(config); err != nil {
		return nil, fmt.Errorf("make engine: %w", err)
	}
	var probes, sealed []ProbeSocket
	for i, parts := range config.Workers {
		switch {
		case parts.Device == nil:
			return nil, fmt.Errorf("make engine: Device of worker %d is missing", i)
		case len(parts.Sockets)+len(parts.Sealed) == 0:
			return nil, fmt.Errorf("make engine: Sockets of worker %d is empty: want one or more per outer family", i)
		}
		e.workers = append(e.workers, newWorker(e, parts))
		probes, sealed = append(probes, parts.Probes...), append(sealed, parts.SealedProbes...)
	}
	e.prober = newProber(probes, sealed, configs, e.ladder, config.Logger)
	e.prober.answeredBy = config.Answered
	return e, nil
}

// SetPeers replaces all peers, from the next batch on. Peers that cannot be
// used are left out, and the error says which and why; the others work.
func (e *Engine) SetPeers(peers []tunnel.Peer) error {
	table, err := peertable.Build(peers)
	e.mu.Lock()
	defer e.mu.Unlock()
	sessions, bad := e.sessionsOf(table.Entries())
	err = errors.Join(err, bad)
	paths := e.prober.setPeers(table.Entries(), sessions)
	e.peers.Store(&peerSet{table, paths, sessions})
	e.ladder.keep(paths)
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
	e.mu.Lock()
	defer e.mu.Unlock()
	e.locals.Store(&own)
	e.prober.setLocals(own)
	return nil
}

// Run forwards packets until ctx is done, which gives nil, or a Device, Socket
// or Poller fails, which gives that error. It may be called once. When it
// returns all of them are closed, and nothing of the engine still runs.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return errors.New("run engine: it has run already")
	}
	group, stop := errgroup.WithContext(ctx)
	for _, w := range e.workers {
		w.start(group)
	}
	group.Go(func() error { return e.prober.Run(stop) })
	if e.wireguard != nil {
		group.Go(func() error { return e.wireguard.Run(stop) })
	}
	// Closing is what wakes a worker that waits. The workers never return
	// without an error, so this always comes to pass.
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
	var errs []error
	for _, w := range e.workers {
		errs = append(errs, w.given.Close())
	}
	return errors.Join(errs...)
}

// Fallbacks says what the engine has stopped using while running, because the
// system refused it: what is concerned, what is done instead, and why.
func (e *Engine) Fallbacks() []string { return e.ladder.list() }

// Stats returns all counters. Each is exact as of the last batch.
func (e *Engine) Stats() Stats {
	var stats Stats
	for _, w := range e.workers {
		w.addTo(&stats)
	}
	e.prober.counters.addTo(&stats)
	return stats
}

// PathMTUs is the largest inner packet that gets to each peer now in one piece,
// by the first of its prefixes: the peer's MTU, or less where the path carries less.
func (e *Engine) PathMTUs() map[netip.Prefix]int {
	peers := e.peers.Load()
	mtus := make(map[netip.Prefix]int, len(peers.paths))
	for i, peer := range peers.Entries() {
		mtus[peer.Prefixes[0]] = peers.paths[i].MTU()
	}
	return mtus
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
