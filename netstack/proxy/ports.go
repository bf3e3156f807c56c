package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
)

// PortsConfig is what Ports are made of.
type PortsConfig struct {
	Network Network
	Dialer  *Dialer // reaches the targets of forwards
	// DialLocal reaches the targets of exposes; nil: net.Dialer.
	DialLocal func(ctx context.Context, network, address string) (net.Conn, error)
	Logger    *slog.Logger
}

// Ports are all forwards and exposes of a host. Nothing listens that was not
// added. It may be used by many goroutines at once.
type Ports struct {
	config PortsConfig

	mu     sync.Mutex
	closed bool
	open   map[string]*port
}

// ErrNoPort means that there is no forward or expose with that ID.
var ErrNoPort = errors.New("no such forward or expose")

// NewPorts returns Ports without any.
func NewPorts(config PortsConfig) (*Ports, error) {
	switch {
	case config.Network == nil:
		return nil, errors.New("make ports: Network is missing: want the overlay's")
	case config.Dialer == nil:
		return nil, errors.New("make ports: Dialer is missing")
	case config.Logger == nil:
		return nil, errors.New("make ports: Logger is missing")
	}
	if config.DialLocal == nil {
		config.DialLocal = new(net.Dialer).DialContext
	}
	return &Ports{config: config, open: map[string]*port{}}, nil
}

// AddForward begins to forward and returns the state, with the port that was
// taken if Local had none. The target need not be reachable yet.
func (ps *Ports) AddForward(ctx context.Context, f Forward) (State, error) {
	if err := f.check(); err != nil {
		return State{}, fmt.Errorf("forward %s: %w", f, err)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	local := netip.AddrPortFrom(f.Local.Addr().Unmap(), f.Local.Port())
	on, err := listenLocal(ctx, f.Protocol, local)
	if err != nil {
		return State{}, fmt.Errorf("forward %s: %w%s", f, err, ps.holder(KindForward, f.Protocol, local.Port()))
	}
	p := &port{
		state: State{Kind: KindForward, Protocol: f.Protocol, Target: f.Remote},
		dial: func(ctx context.Context) (net.Conn, error) {
			return ps.config.Dialer.DialContext(ctx, f.Protocol, f.Remote)
		},
	}
	for _, addr := range on.addresses() {
		p.state.Listen = append(p.state.Listen, addr.String())
	}
	host := "localhost"
	if local.Addr().IsValid() {
		host = local.Addr().String()
	}
	at := net.JoinHostPort(host, strconv.Itoa(int(portOf(on.addresses()[0]))))
	return ps.add(p, at, on)
}

// AddExpose begins to expose and returns the state.
func (ps *Ports) AddExpose(_ context.Context, e Expose) (State, error) {
	e = e.withDefaults()
	if err := e.check(); err != nil {
		return State{}, fmt.Errorf("expose %s: %w", e, err)
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	on, err := ps.listenOverlay(e)
	if err != nil {
		return State{}, fmt.Errorf("expose %s: %w%s", e, err, ps.holder(KindExpose, e.Protocol, e.Port))
	}
	at := strconv.Itoa(int(e.Port))
	p := &port{
		state: State{Kind: KindExpose, Protocol: e.Protocol, Listen: []string{":" + at}, Target: e.Target},
		dial:  func(ctx context.Context) (net.Conn, error) { return ps.config.DialLocal(ctx, e.Protocol, e.Target) },
	}
	return ps.add(p, at, on)
}

func (ps *Ports) listenOverlay(e Expose) (sockets, error) {
	local := netip.AddrPortFrom(netip.Addr{}, e.Port)
	if e.Protocol == TCP {
		listener, err := ps.config.Network.ListenTCP(local)
		if err != nil {
			return sockets{}, err
		}
		return sockets{streams: []net.Listener{listener}}, nil
	}
	conn, err := ps.config.Network.ListenUDP(local)
	if err != nil {
		return sockets{}, err
	}
	return sockets{datagrams: []net.PacketConn{conn}}, nil
}

// add starts a port; called with mu held.
func (ps *Ports) add(p *port, at string, on sockets) (State, error) {
	p.state.ID = string(p.state.Kind) + "/" + p.state.Protocol + "/" + at
	p.log = ps.config.Logger
	if ps.closed {
		on.close()
		return State{}, fmt.Errorf("%s: %w", p.state.ID, net.ErrClosed)
	}
	if _, taken := ps.open[p.state.ID]; taken {
		on.close()
		return State{}, fmt.Errorf("%s is there already", p.state.ID)
	}
	ps.open[p.state.ID] = p
	p.start(on)
	return p.snapshot(), nil
}

// holder names which of our own ports may be why another cannot listen.
func (ps *Ports) holder(kind Kind, protocol string, number uint16) string {
	for _, s := range ps.list() {
		if s.Kind != kind || s.Protocol != protocol {
			continue
		}
		for _, listen := range s.Listen {
			if _, digits, err := net.SplitHostPort(listen); err == nil && digits == strconv.Itoa(int(number)) {
				return fmt.Sprintf(" (%s has it, which leads to %s: remove that first)", s.ID, s.Target)
			}
		}
	}
	return ""
}

// List returns the states of all, ordered by ID.
func (ps *Ports) List() []State {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.list()
}

func (ps *Ports) list() []State {
	states := make([]State, 0, len(ps.open))
	for _, p := range ps.open {
		states = append(states, p.snapshot())
	}
	slices.SortFunc(states, func(a, b State) int { return cmp.Compare(a.ID, b.ID) })
	return states
}

// Remove ends a forward or expose with its connections. It is ErrNoPort if
// there is none of that ID.
func (ps *Ports) Remove(id string) error {
	ps.mu.Lock()
	p, ok := ps.open[id]
	delete(ps.open, id)
	ps.mu.Unlock()
	if !ok {
		return fmt.Errorf("remove %.300q: %w", id, ErrNoPort)
	}
	p.close()
	return nil
}

// Close ends all and waits for it. Nothing can be added afterwards.
func (ps *Ports) Close() error {
	ps.mu.Lock()
	ps.closed = true
	open := ps.open
	ps.open = map[string]*port{}
	ps.mu.Unlock()
	for _, p := range open {
		p.cancel()
	}
	for _, p := range open {
		p.close()
	}
	return nil
}
