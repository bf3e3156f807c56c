// Package member is a host without a device put together: the network stack of
// the moment, who may dial what, the proxy, the ports that lead in and out, and
// what commands ask of all that. It is told what it needs to know of the
// cluster, and must never ask for it, nor carry a packet itself.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/netstack/local"
	"github.com/weft-net/weft/netstack/proxy"
)

// Config is what the user wants of a host without a device.
type Config struct {
	// Proxy is the "host:port" of the SOCKS5 and HTTP proxy; empty: there is none.
	Proxy    string
	Forwards []proxy.Forward
	Exposes  []proxy.Expose
	// DNS are the servers of cluster DNS; empty: SetDNS tells.
	DNS      []netip.AddrPort
	Domain   string         // of the cluster, as in cluster.local
	Services []netip.Prefix // Service CIDRs; known ClusterIPs are reached anyway
	Outside  bool           // let what is outside the overlay be reached, too
	Logger   *slog.Logger
}

// Member is a host without a device. Its methods may be called at any time,
// from any goroutine.
type Member struct {
	config Config
	dialer *proxy.Dialer
	ports  *proxy.Ports
	server *proxy.Server

	mu      sync.Mutex
	stack   *netstack.Stack // nil until the host has its lease
	failing map[string]bool // exposes that could not be opened, by their text
	changed chan struct{}   // has a token when there is another stack
	dns     []netip.AddrPort
}

// New makes a Member that listens nowhere yet.
func New(config Config) (*Member, error) {
	if config.Logger == nil {
		return nil, errors.New("make member: Logger is missing")
	}
	m := &Member{config: config, changed: make(chan struct{}, 1), failing: map[string]bool{}, dns: config.DNS}
	var err error
	m.dialer, err = proxy.NewDialer(proxy.DialerConfig{
		Network: m, Services: config.Services, DNS: config.DNS, Search: searchOf(config.Domain), Outside: config.Outside, Logger: config.Logger,
	})
	if err != nil {
		return nil, err
	}
	if m.ports, err = proxy.NewPorts(proxy.PortsConfig{Network: m, Dialer: m.dialer, Logger: config.Logger}); err != nil {
		return nil, err
	}
	m.server, err = proxy.NewServer(proxy.ServerConfig{Dialer: m.dialer, Logger: config.Logger})
	return m, err
}

// searchOf is what a pod's resolv.conf has, but for its own namespace: names are
// looked up as web.default and web.default.svc.
func searchOf(domain string) []string {
	if domain == "" {
		return nil
	}
	return []string{"svc." + domain, domain}
}

// Use makes stack the one of the moment, in place of the last. It stays the
// caller's to close. Overlay are the pod networks.
func (m *Member) Use(stack *netstack.Stack, overlay []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stack = stack
	m.dialer.SetOverlay(overlay, m.config.Services)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// SetServices replaces the Services that ClusterIPs are balanced over.
func (m *Member) SetServices(services []proxy.Service) { m.dialer.SetServices(services) }

// SetDNS says where cluster DNS is, unless the user has said so.
func (m *Member) SetDNS(servers []netip.AddrPort) error {
	if len(m.config.DNS) > 0 {
		return nil
	}
	m.mu.Lock()
	m.dns = servers
	m.mu.Unlock()
	return m.dialer.SetDNS(servers, searchOf(m.config.Domain))
}

// Handlers are what the local API answers, by path below /v1/.
func (m *Member) Handlers() map[string]http.Handler {
	return local.Handlers(m.reach(), m.ports, m.config.Logger)
}

// Run serves the proxy and the ports until ctx is done. A port that is taken is
// an error of the first moment; later ones are the state of their port.
func (m *Member) Run(ctx context.Context) error {
	defer m.server.Close()
	defer m.ports.Close()
	group, ctx := errgroup.WithContext(ctx)
	if m.config.Proxy != "" {
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", m.config.Proxy)
		if err != nil {
			return fmt.Errorf("listen for the proxy: %w (--proxy names another address, or none)", err)
		}
		m.config.Logger.Info("proxy listens: SOCKS5 and HTTP, and a PAC file at /proxy.pac", "addr", listener.Addr())
		group.Go(func() error { return m.server.Serve(listener) })
	}
	for _, forward := range m.config.Forwards {
		state, err := m.ports.AddForward(ctx, forward)
		if err != nil {
			return errors.Join(err, m.server.Close(), group.Wait())
		}
		m.config.Logger.Info("forwarding", "listen", state.Listen, "target", state.Target)
	}
	group.Go(func() error { return m.expose(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		return m.server.Close()
	})
	return group.Wait()
}

// exposeRetry is the time between two tries to open a port in the overlay.
const exposeRetry = time.Second

// expose opens what the user wants exposed whenever there is another stack, and
// all that commands have added since: the last stack took their listeners along.
func (m *Member) expose(ctx context.Context) error {
	wanted := m.config.Exposes
	retry := time.NewTicker(exposeRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
			wanted = m.reopen(wanted)
		case <-retry.C:
			if len(wanted) == 0 || m.current() == nil {
				continue
			}
		}
		wanted = m.open(ctx, wanted)
	}
}

// reopen takes away the exposes of the stack before, and returns all that are wanted.
func (m *Member) reopen(wanted []proxy.Expose) []proxy.Expose {
	for _, state := range m.ports.List() {
		if state.Kind != proxy.KindExpose {
			continue
		}
		expose, err := exposeOf(state)
		if err == nil {
			err = m.ports.Remove(state.ID)
		}
		if err != nil {
			m.config.Logger.Error("open an exposed port again", "port", state.ID, "err", err)
			continue
		}
		wanted = append(wanted, expose)
	}
	return wanted
}

// exposeOf is what state is the state of.
func exposeOf(state proxy.State) (proxy.Expose, error) {
	if len(state.Listen) == 0 {
		return proxy.Expose{}, errors.New("it listens nowhere")
	}
	_, text, err := net.SplitHostPort(state.Listen[0])
	if err != nil {
		return proxy.Expose{}, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return proxy.Expose{Protocol: state.Protocol, Port: uint16(port), Target: state.Target}, err
}

// open opens exposes, and returns those that could not be.
func (m *Member) open(ctx context.Context, wanted []proxy.Expose) (left []proxy.Expose) {
	for _, expose := range wanted {
		_, err := m.ports.AddExpose(ctx, expose)
		switch {
		case err == nil:
			delete(m.failing, expose.String())
			m.config.Logger.Info("exposing", "port", expose.String())
		default:
			if !m.failing[expose.String()] {
				m.config.Logger.Error("expose a port", "err", err)
			}
			m.failing[expose.String()] = true
			left = append(left, expose)
		}
	}
	return left
}
