package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// DialerConfig is what a Dialer is made of. Everything that may change later
// has a Set method.
type DialerConfig struct {
	Network  Network
	Overlay  []netip.Prefix   // the pod networks
	Services []netip.Prefix   // Service CIDRs; may be empty, known ClusterIPs are reached anyway
	DNS      []netip.AddrPort // cluster DNS, asked over the overlay in this order; may be ClusterIPs
	Search   []string         // domains that names are looked up below, as in "svc.cluster.local"
	// Outside allows destinations that are not in the overlay, which the
	// operating system then dials with DialOutside and looks up with
	// LookupOutside. Loopback and link-local addresses of this host are refused
	// all the same: who may use the proxy need not be who may use those.
	Outside       bool
	DialOutside   func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	LookupOutside func(ctx context.Context, name string) ([]netip.Addr, error)         // nil: net.DefaultResolver
	Logger        *slog.Logger
}

// Dialer connects to destinations by name, ClusterIP or address, and decides
// what may be reached at all. It may be used by many goroutines at once.
// Connections stay as they are when its settings change.
type Dialer struct {
	config   DialerConfig
	mu       sync.Mutex // orders changes of settings
	settings atomic.Pointer[settings]
	avoid    avoided
	resolver resolver
}

// settings are what may change while a Dialer is used; never written to.
type settings struct {
	overlay, serviceCIDRs []netip.Prefix
	services              *serviceTable
	dns                   []netip.AddrPort
	search                []string
}

// NewDialer checks config and returns a Dialer, which needs no closing.
func NewDialer(config DialerConfig) (*Dialer, error) {
	switch {
	case config.Network == nil:
		return nil, errors.New("make dialer: Network is missing: want the overlay's")
	case config.Logger == nil:
		return nil, errors.New("make dialer: Logger is missing")
	}
	if config.DialOutside == nil {
		config.DialOutside = new(net.Dialer).DialContext
	}
	if config.LookupOutside == nil {
		config.LookupOutside = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	d := &Dialer{config: config}
	d.resolver.dial = d.dialIP
	d.settings.Store(&settings{services: newServiceTable(nil)})
	d.SetOverlay(config.Overlay, config.Services)
	if err := d.SetDNS(config.DNS, config.Search); err != nil {
		return nil, fmt.Errorf("make dialer: %w", err)
	}
	return d, nil
}

func (d *Dialer) change(edit func(*settings)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := *d.settings.Load()
	edit(&next)
	d.settings.Store(&next)
}

// SetOverlay replaces what is inside: pod networks and Service CIDRs.
func (d *Dialer) SetOverlay(overlay, services []netip.Prefix) {
	d.change(func(s *settings) {
		s.overlay, s.serviceCIDRs = validPrefixes(overlay), validPrefixes(services)
	})
}

// SetServices replaces all Services. The argument may be used again.
func (d *Dialer) SetServices(services []Service) {
	table := newServiceTable(services)
	d.change(func(s *settings) { s.services = table })
}

// SetDNS replaces the DNS servers and the domains that names are looked up
// below, and forgets all answers. A domain that is none is an error and
// changes nothing.
func (d *Dialer) SetDNS(servers []netip.AddrPort, search []string) error {
	domains := make([]string, 0, len(search))
	for _, domain := range search {
		domain = strings.ToLower(strings.Trim(domain, "."))
		if err := checkName(domain); err != nil {
			return fmt.Errorf("search domain %q: %w", domain, err)
		}
		domains = append(domains, domain)
	}
	for _, server := range servers {
		if !server.IsValid() || server.Port() == 0 {
			return fmt.Errorf("DNS server %s: want ADDRESS:PORT, as in 10.96.0.10:53", server)
		}
	}
	d.change(func(s *settings) { s.dns, s.search = slices.Clone(servers), domains })
	d.resolver.forget()
	return nil
}

// DialContext connects to "host:port", where host is an address or a name.
// Network is "tcp" or "udp", which may be narrowed to a family as in "tcp6".
// Errors can be tested for ErrOutside, ErrNoBackend, ErrNoName and ErrNoAnswer.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	protocol, family, err := splitNetwork(network)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	host, port, err := splitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	addrs, err := d.LookupNetIP(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return family == 4 && !a.Is4() || family == 6 && a.Is4() })
	if len(addrs) == 0 {
		return nil, fmt.Errorf("dial %s: it has no IPv%d address", address, family)
	}
	var failed failures
	for i, addr := range addrs {
		share, cancel := shareOf(ctx, len(addrs)-i)
		conn, err := d.dialIP(share, protocol, netip.AddrPortFrom(addr, port))
		cancel()
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("dial %s: %w", address, failed)
}

// dialIP connects to an address, which may be a ClusterIP.
func (d *Dialer) dialIP(ctx context.Context, protocol string, to netip.AddrPort) (net.Conn, error) {
	s := d.settings.Load()
	if b, ok := s.services.ports[frontend{protocol, to}]; ok {
		return d.dialBackend(ctx, protocol, b)
	}
	if name, ok := s.services.names[to.Addr()]; ok {
		return nil, fmt.Errorf("service %s (%s) has no %s port %d", name, to.Addr(), protocol, to.Port())
	}
	if contains(s.serviceCIDRs, to.Addr()) && !contains(s.overlay, to.Addr()) {
		return nil, fmt.Errorf("no service has the address %s: %w", to.Addr(), ErrNoBackend)
	}
	return d.dialDirect(ctx, protocol, to)
}

// dialDirect connects to an address that is no ClusterIP.
func (d *Dialer) dialDirect(ctx context.Context, protocol string, to netip.AddrPort) (net.Conn, error) {
	addr := to.Addr()
	switch {
	case contains(d.settings.Load().overlay, addr):
		return d.config.Network.DialContext(ctx, protocol, to)
	case !addr.IsGlobalUnicast():
		return nil, fmt.Errorf("%s is %w and never reached from here", addr, ErrOutside)
	case !d.config.Outside:
		return nil, fmt.Errorf("%s is %w: start with --allow-outside to reach it", addr, ErrOutside)
	}
	return d.config.DialOutside(ctx, protocol, to.String())
}

// inside reports whether addr is reached through the overlay.
func (d *Dialer) inside(addr netip.Addr) bool {
	s := d.settings.Load()
	_, service := s.services.names[addr]
	return service || contains(s.overlay, addr) || contains(s.serviceCIDRs, addr)
}

func validPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return !p.IsValid() })
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// splitNetwork parses "tcp", "udp6" and the like; family is 4, 6 or 0 for any.
func splitNetwork(network string) (protocol string, family int, err error) {
	protocol = network
	if base, four := strings.CutSuffix(network, "4"); four {
		protocol, family = base, 4
	} else if base, six := strings.CutSuffix(network, "6"); six {
		protocol, family = base, 6
	}
	if protocol != TCP && protocol != UDP {
		return "", 0, fmt.Errorf("network %q: want tcp or udp", network)
	}
	return protocol, family, nil
}

// splitHostPort takes "host:port" apart. The port is a number other than 0.
func splitHostPort(address string) (host string, port uint16, err error) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", 0, fmt.Errorf("destination %q: want HOST:PORT, as in web.default:80 or [fd00::1]:80", address)
	}
	port, err = parsePort(digits)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("destination %q: port %q: want a number from 1 to 65535", address, digits)
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return "", 0, fmt.Errorf("destination %q: %q is not an IPv6 address", address, host)
		}
		return host, port, nil
	}
	if err := checkName(strings.TrimSuffix(host, ".")); err != nil {
		return "", 0, fmt.Errorf("destination %q: %w", address, err)
	}
	return host, port, nil
}

// parsePort parses decimal digits alone.
func parsePort(digits string) (uint16, error) {
	port, err := strconv.ParseUint(digits, 10, 16)
	return uint16(port), err
}
