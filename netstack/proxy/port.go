package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Kind says in which direction a port leads.
type Kind string

// The kinds of ports.
const (
	KindForward Kind = "forward" // from this host into the overlay
	KindExpose  Kind = "expose"  // from the overlay to this host
)

// State is a forward or expose as status shows it.
type State struct {
	ID       string   `json:"id"` // the same for the same port, also after a restart
	Kind     Kind     `json:"kind"`
	Protocol string   `json:"protocol"`
	Listen   []string `json:"listen"` // "address:port"; without address: all of this host in the overlay
	Target   string   `json:"target"`
	// State is "listening" or "error"; Error says why the latter.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// TargetError is why the latest attempt to reach the target failed, if it did.
	TargetError string `json:"target_error,omitempty"`
	Traffic
}

// The states of a port.
const (
	StateListening = "listening"
	StateError     = "error"
)

// port is a forward or expose at work: it listens on one side and dials on
// the other.
type port struct {
	state State // what of it does not change
	log   *slog.Logger
	dial  func(ctx context.Context) (net.Conn, error)

	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	count  traffic
	// broken and unreachable are what State calls Error and TargetError.
	broken, unreachable condition
	logged              atomic.Bool // that datagrams were dropped
}

// condition is an error that is there or not.
type condition struct {
	mu  sync.Mutex
	err error
}

// set returns whether the condition has begun or ended.
func (c *condition) set(err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed = (err != nil) != (c.err != nil)
	c.err = err
	return changed
}

func (c *condition) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return ""
	}
	return c.err.Error()
}

// sockets are what a port listens on; of one protocol.
type sockets struct {
	streams   []net.Listener
	datagrams []net.PacketConn
}

func (s sockets) addresses() []net.Addr {
	var all []net.Addr
	for _, l := range s.streams {
		all = append(all, l.Addr())
	}
	for _, c := range s.datagrams {
		all = append(all, c.LocalAddr())
	}
	return all
}

func (s sockets) close() {
	for _, l := range s.streams {
		l.Close()
	}
	for _, c := range s.datagrams {
		c.Close()
	}
}

// start serves the sockets, which the port owns from here on.
func (p *port) start(on sockets) {
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, listener := range on.streams {
		p.group.Go(func() { accept(p.ctx, &p.group, listener, &p.count, p.failing, p.carry) })
	}
	for _, conn := range on.datagrams {
		fs := &flows[netip.AddrPort]{
			ctx: p.ctx, group: &p.group, count: &p.count, max: maxFlows,
			dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return p.reach(ctx) },
			reply: func(client netip.AddrPort, payload []byte) error {
				_, err := conn.WriteTo(payload, net.UDPAddrFromAddrPort(client))
				return err
			},
			failed: p.dropped,
		}
		p.group.Go(func() { serveDatagrams(p.ctx, conn, fs, p.failing) })
	}
}

// close ends everything and waits for it.
func (p *port) close() {
	p.cancel()
	p.group.Wait()
}

// failing notes whether the listener works.
func (p *port) failing(err error) {
	if !p.broken.set(err) {
		return
	}
	if err != nil {
		p.log.Warn("port does not listen", "id", p.state.ID, "err", err)
	} else {
		p.log.Info("port listens again", "id", p.state.ID)
	}
}

// reach dials the target and notes whether it can be reached.
func (p *port) reach(ctx context.Context) (net.Conn, error) {
	conn, err := p.dial(ctx)
	if p.ctx.Err() == nil && p.unreachable.set(err) {
		if err != nil {
			p.log.Warn("target of port is not reached", "id", p.state.ID, "err", err)
		} else {
			p.log.Info("target of port is reached again", "id", p.state.ID)
		}
	}
	return conn, err
}

// carry serves one client's stream.
func (p *port) carry(near *counted) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	far, err := p.reach(ctx)
	cancel()
	if err != nil {
		p.count.dropped.Add(1)
		reset(near)
		return
	}
	relay(p.ctx, near, far)
}

// dropped tells once of datagrams that were not carried.
func (p *port) dropped(err error) {
	if !p.logged.Swap(true) {
		p.log.Info("datagram dropped; further ones of this port are only counted", "id", p.state.ID, "err", err)
	}
}

func (p *port) snapshot() State {
	s := p.state
	s.State, s.Error, s.TargetError = StateListening, p.broken.text(), p.unreachable.text()
	if s.Error != "" {
		s.State = StateError
	}
	s.Traffic = p.count.snapshot()
	return s
}

// listenLocal opens a forward's sockets on this host.
func listenLocal(ctx context.Context, protocol string, local netip.AddrPort) (sockets, error) {
	if local.Addr().IsValid() {
		return listenOn(ctx, protocol, local)
	}
	// A free port of one family may be taken in the other.
	const tries = 8
	for range tries - 1 {
		on, err := listenLoopback(ctx, protocol, local.Port())
		if err == nil || local.Port() != 0 {
			return on, err
		}
	}
	return listenLoopback(ctx, protocol, local.Port())
}

// listenLoopback listens on loopback of both families, or of the only one
// that this host has.
func listenLoopback(ctx context.Context, protocol string, port uint16) (sockets, error) {
	var on sockets
	var missing failures
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if !hasAddress(ctx, addr) {
			missing = append(missing, fmt.Errorf("this host has no address %s", addr))
			continue
		}
		more, err := listenOn(ctx, protocol, netip.AddrPortFrom(addr, port))
		if err != nil {
			on.close()
			return sockets{}, err
		}
		on.streams, on.datagrams = append(on.streams, more.streams...), append(on.datagrams, more.datagrams...)
		port = portOf(on.addresses()[0])
	}
	if len(missing) == 2 {
		return sockets{}, missing
	}
	return on, nil
}

// hasAddress reports whether this host can listen on addr at all. TCP tells for
// UDP, too, and is what no system's package net lacks.
func hasAddress(ctx context.Context, addr netip.Addr) bool {
	on, err := listenOn(ctx, TCP, netip.AddrPortFrom(addr, 0))
	on.close()
	return err == nil
}

func listenOn(ctx context.Context, protocol string, local netip.AddrPort) (on sockets, err error) {
	var config net.ListenConfig // with keepalive, as is Go's default
	network := protocol + "6"
	if local.Addr().Is4() {
		network = protocol + "4"
	}
	if protocol == TCP {
		listener, err := config.Listen(ctx, network, local.String())
		if err != nil {
			return sockets{}, err
		}
		return sockets{streams: []net.Listener{listener}}, nil
	}
	conn, err := config.ListenPacket(ctx, network, local.String())
	if err != nil {
		return sockets{}, err
	}
	return sockets{datagrams: []net.PacketConn{conn}}, nil
}

// portOf is the port of a TCP or UDP address.
func portOf(addr net.Addr) uint16 {
	switch addr := addr.(type) {
	case *net.TCPAddr:
		return addr.AddrPort().Port()
	case *net.UDPAddr:
		return addr.AddrPort().Port()
	}
	return 0
}
