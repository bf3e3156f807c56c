package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Service is a Kubernetes Service with cluster addresses.
type Service struct {
	Namespace, Name string
	ClusterIPs      []netip.Addr
	Ports           []ServicePort
}

// ServicePort is one port of a Service and the ready endpoints behind it.
type ServicePort struct {
	Name     string
	Protocol string // TCP or UDP; what is neither is passed over
	Port     uint16
	Backends []netip.AddrPort
}

// frontend is what clients dial.
type frontend struct {
	protocol string
	at       netip.AddrPort
}

// serviceTable is all Services, immutable but for the turns.
type serviceTable struct {
	ports map[frontend]*balanced
	names map[netip.Addr]string
}

// balanced is one frontend and what is behind it.
type balanced struct {
	what     string // "service default/web, tcp port 80"
	backends []netip.AddrPort
	turn     atomic.Uint32
}

// newServiceTable copies what it keeps. If two Services claim one address, the
// first by namespace and name has it.
func newServiceTable(services []Service) *serviceTable {
	sorted := slices.Clone(services)
	slices.SortStableFunc(sorted, func(a, b Service) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	table := &serviceTable{ports: map[frontend]*balanced{}, names: map[netip.Addr]string{}}
	for _, service := range sorted {
		name := service.Namespace + "/" + service.Name
		for _, ip := range service.ClusterIPs {
			ip = ip.Unmap()
			if owner, taken := table.names[ip]; taken && owner != name {
				continue
			}
			table.names[ip] = name
			for _, port := range service.Ports {
				at := frontend{strings.ToLower(port.Protocol), netip.AddrPortFrom(ip, port.Port)}
				table.ports[at] = &balanced{
					what:     fmt.Sprintf("service %s, %s port %d", name, at.protocol, port.Port),
					backends: backendsFor(ip, port.Backends),
				}
			}
		}
	}
	return table
}

// backendsFor are the backends of ip's family, or all if there are none.
func backendsFor(ip netip.Addr, all []netip.AddrPort) []netip.AddrPort {
	var same, other []netip.AddrPort
	for _, backend := range all {
		backend = netip.AddrPortFrom(backend.Addr().Unmap(), backend.Port())
		if backend.Addr().Is4() == ip.Is4() {
			same = append(same, backend)
		} else {
			other = append(other, backend)
		}
	}
	if len(same) > 0 {
		return same
	}
	return other
}

const (
	// avoidFor is how long a backend that could not be reached is asked last.
	avoidFor = 15 * time.Second
	// maxBackendTries bounds the backends that one dial asks.
	maxBackendTries = 5
)

// order gives the backends in turn, those to be avoided last.
func (b *balanced) order(avoid *avoided, protocol string) []netip.AddrPort {
	n := len(b.backends)
	start := int((b.turn.Add(1) - 1) % uint32(n))
	in := make([]netip.AddrPort, 0, n)
	var last []netip.AddrPort
	for i := range n {
		backend := b.backends[(start+i)%n]
		if avoid.has(frontend{protocol, backend}) {
			last = append(last, backend)
			continue
		}
		in = append(in, backend)
	}
	in = append(in, last...)
	return in[:min(n, maxBackendTries)]
}

// avoided are the backends that could not be reached a short time ago.
type avoided struct {
	mu    sync.Mutex
	until map[frontend]time.Time
}

func (a *avoided) has(backend frontend) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.until[backend])
}

func (a *avoided) add(backend frontend) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for old, until := range a.until {
		if !now.Before(until) {
			delete(a.until, old)
		}
	}
	if a.until == nil {
		a.until = map[frontend]time.Time{}
	}
	a.until[backend] = now.Add(avoidFor)
}

func (a *avoided) remove(backend frontend) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.until, backend)
}

// dialBackend connects to one of the backends, each in its turn, and asks the
// next one if one cannot be reached.
func (d *Dialer) dialBackend(ctx context.Context, protocol string, b *balanced) (net.Conn, error) {
	if len(b.backends) == 0 {
		return nil, fmt.Errorf("%s: %w", b.what, ErrNoBackend)
	}
	var failed failures
	tries := b.order(&d.avoid, protocol)
	for i, backend := range tries {
		conn, err := d.tryBackend(ctx, frontend{protocol, backend}, len(tries)-i)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, fmt.Errorf("backend %s: %w", backend, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%s: %w", b.what, failed)
}

// tryBackend dials one backend with its share of ctx's time, one of left.
func (d *Dialer) tryBackend(ctx context.Context, backend frontend, left int) (net.Conn, error) {
	ctx, cancel := shareOf(ctx, left)
	defer cancel()
	conn, err := d.dialDirect(ctx, backend.protocol, backend.at)
	if err != nil {
		d.avoid.add(backend)
		return nil, err
	}
	if backend.protocol == UDP {
		return &watchedConn{Conn: conn, failed: func() { d.avoid.add(backend) }}, nil
	}
	d.avoid.remove(backend)
	return conn, nil
}

// shareOf gives one of the attempts left its part of ctx's time, but no less
// than two seconds of it.
func shareOf(ctx context.Context, left int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || left <= 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, max(time.Until(deadline)/time.Duration(left), 2*time.Second))
}

// watchedConn is a UDP connection, which shows only in use that nobody is there.
type watchedConn struct {
	net.Conn
	failed func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !isTimeout(err) && !errors.Is(err, net.ErrClosed) {
		c.failed()
	}
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && len(p) <= anyPath && !errors.Is(err, net.ErrClosed) {
		c.failed()
	}
	return n, err
}
