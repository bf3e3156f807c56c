package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/control/kube"
	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/netstack/member"
	"github.com/weft-net/weft/netstack/proxy"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

// netstackOptions are what the flags say of a host without a device.
type netstackOptions struct {
	proxy             string
	forwards, exposes []string
	dns               []string
	domain            string
	services          []string
	outside           bool
	reason            string // why there is no device; empty: there is one
}

func (n *netstackOptions) register(f *pflag.FlagSet) {
	f.StringVar(&n.proxy, "proxy", "127.0.0.1:1080", "with --device=netstack: where programs of this host reach the overlay by SOCKS5 or HTTP,\n"+
		"and find a PAC file at /proxy.pac; none: nowhere")
	f.StringArrayVar(&n.forwards, "forward", nil, "with --device=netstack: a port of this host that leads into the overlay, as [udp:]LOCAL=HOST:PORT; repeatable")
	f.StringArrayVar(&n.exposes, "expose", nil, "with --device=netstack: a port that pods reach at this host's address, as [udp:]PORT[=LOCAL:PORT]; repeatable")
	f.StringSliceVar(&n.dns, "dns", nil, "with --device=netstack: cluster DNS servers, as ADDRESS or ADDRESS:PORT (default: the Service kube-dns)")
	f.StringVar(&n.domain, "cluster-domain", "", "with --device=netstack: the cluster's domain (default: the invite's, else cluster.local)")
	f.StringSliceVar(&n.services, "service-cidr", nil, "with --device=netstack: networks of ClusterIPs (default: the invite's; known ClusterIPs are reached anyway)")
	f.BoolVar(&n.outside, "allow-outside", false, "with --device=netstack: let the proxy and 'weft exec' reach what is outside the overlay, too")
}

// insteadOfTUN decides whether this host goes without a device. What kept it
// from having one is no error then, but the reason.
func (n *netstackOptions) insteadOfTUN(noTUN error, o options) error {
	switch {
	case o.device == "netstack":
		n.reason = "asked for by --device=netstack"
	case noTUN == nil:
	case o.device == "auto" && o.engine != "kernel" && o.rootless.netns == "" && errors.Is(noTUN, errNoTUN):
		n.reason = noTUN.Error()
	default:
		return noTUN
	}
	return nil
}

// around changes an agent's configuration into that of a host without a device,
// if it is one, and returns what runs the agent.
func (n *netstackOptions) around(cfg *agent.Config, host hostConfig, o options) (run func(context.Context, func(context.Context) error) error, err error) {
	if o.device == "auto" {
		if err := n.askHost(cfg.Host); err != nil {
			return nil, err
		}
	}
	if n.reason == "" {
		return func(ctx context.Context, agent func(context.Context) error) error { return agent(ctx) }, nil
	}
	config, err := n.config(o.guest)
	if err != nil {
		return nil, err
	}
	config.Logger = host.Logger
	m, err := member.New(config)
	if err != nil {
		return nil, err
	}
	cfg.Host = netstackHost{Host: cfg.Host, config: host, member: m}
	cfg.Device, cfg.DeviceReason, cfg.API = "", n.reason, m.Handlers()
	source := cfg.Source
	return func(ctx context.Context, agent func(context.Context) error) error {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error {
			if err := agent(ctx); err != nil || ctx.Err() != nil {
				return err
			}
			return errEnded
		})
		group.Go(func() error { return m.Run(ctx) })
		group.Go(func() error { return followServices(ctx, source, m) })
		err := group.Wait()
		if errors.Is(err, errEnded) || errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}, nil
}

// errEnded ends what runs beside an agent that has ended by itself.
var errEnded = errors.New("the agent has ended")

// askHost asks a system on which nothing but an attempt tells, where --device
// leaves the choice.
func (n *netstackOptions) askHost(host agent.Host) error {
	prober, ok := host.(interface{ ProbeDevice() error })
	if !ok || n.reason != "" {
		return nil
	}
	err := prober.ProbeDevice()
	if errors.Is(err, tunnel.ErrNoDevice) {
		n.reason = err.Error()
		return nil
	}
	return err
}

// config checks the flags, and fills in what an invite knows.
func (n *netstackOptions) config(guest *kube.Invite) (config member.Config, err error) {
	config = member.Config{Proxy: n.proxy, Domain: n.domain, Outside: n.outside}
	if n.proxy == "none" {
		config.Proxy = ""
	}
	if config.Proxy != "" {
		if _, _, err := net.SplitHostPort(config.Proxy); err != nil {
			return config, usageError{fmt.Errorf("--proxy %q: want HOST:PORT or none", n.proxy)}
		}
	}
	for _, text := range n.forwards {
		forward, err := proxy.ParseForward(text)
		if err != nil {
			return config, usageError{fmt.Errorf("--forward: %w", err)}
		}
		config.Forwards = append(config.Forwards, forward)
	}
	for _, text := range n.exposes {
		expose, err := proxy.ParseExpose(text)
		if err != nil {
			return config, usageError{fmt.Errorf("--expose: %w", err)}
		}
		config.Exposes = append(config.Exposes, expose)
	}
	for _, text := range n.dns {
		server, err := parseServer(text)
		if err != nil {
			return config, usageError{fmt.Errorf("--dns %q: want ADDRESS or ADDRESS:PORT, as in 10.96.0.10", text)}
		}
		config.DNS = append(config.DNS, server)
	}
	for _, text := range n.services {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return config, usageError{fmt.Errorf("--service-cidr %q: want a prefix, as in 10.96.0.0/12", text)}
		}
		config.Services = append(config.Services, prefix.Masked())
	}
	n.complete(&config, guest)
	return config, nil
}

// complete fills in what the flags leave open.
func (n *netstackOptions) complete(config *member.Config, guest *kube.Invite) {
	if guest != nil {
		if len(config.DNS) == 0 {
			config.DNS = onDNSPort(guest.DNS)
		}
		if len(config.Services) == 0 {
			config.Services = guest.ServiceCIDRs
		}
		if config.Domain == "" {
			config.Domain = guest.ClusterDomain
		}
	}
	if config.Domain == "" {
		config.Domain = "cluster.local"
	}
}

const dnsPort = 53

func parseServer(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, dnsPort), nil
	}
	return netip.ParseAddrPort(text)
}

func onDNSPort(addrs []netip.Addr) (servers []netip.AddrPort) {
	for _, addr := range addrs {
		servers = append(servers, netip.AddrPortFrom(addr, dnsPort))
	}
	return servers
}

// followServices tells a host without kube-proxy where ClusterIPs lead, and
// where cluster DNS is. Other lease sources than Kubernetes know neither.
func followServices(ctx context.Context, source agent.Source, m *member.Member) error {
	cluster, ok := source.(interface {
		WatchServices(ctx context.Context, deliver func([]control.Service)) error
		FindDNS(ctx context.Context) ([]netip.Addr, error)
	})
	if !ok {
		return nil
	}
	servers, err := cluster.FindDNS(ctx)
	if err != nil {
		return err
	}
	if err := m.SetDNS(onDNSPort(servers)); err != nil {
		return err
	}
	return cluster.WatchServices(ctx, func(services []control.Service) { m.SetServices(servicesOf(services)) })
}

// servicesOf puts one room's words into the other's.
func servicesOf(services []control.Service) []proxy.Service {
	out := make([]proxy.Service, 0, len(services))
	for _, s := range services {
		service := proxy.Service{Namespace: s.Namespace, Name: s.Name, ClusterIPs: s.ClusterIPs}
		for _, port := range s.Ports {
			service.Ports = append(service.Ports, proxy.ServicePort(port))
		}
		out = append(out, service)
	}
	return out
}

// netstackHost is a host whose inner packets enter and leave a network stack in
// this process. The system underneath is asked for the underlay alone.
type netstackHost struct {
	agent.Host
	config hostConfig
	member *member.Member
}

// netstackName is the device in status and logs.
const netstackName = "netstack"

// OpenDatapath implements agent.Host.
func (h netstackHost) OpenDatapath(want agent.Datapath) ([]engine.Worker, error) {
	stack, err := netstack.New(netstack.Config{Name: netstackName, MTU: want.MTU, Addresses: want.Addresses, Logger: h.config.Logger})
	if err != nil {
		return nil, err
	}
	workers, err := datapath.OpenAround(stack, datapath.Config{Listen: want.Listen, WireGuard: want.WireGuard, Offloads: h.config.Offloads, Logger: h.config.Logger})
	if err != nil {
		return nil, errors.Join(err, stack.Close())
	}
	h.member.Use(stack, want.Networks)
	return workers, nil
}

// Pinger implements agent.Host: all ways are the engine's.
func (h netstackHost) Pinger([]netip.Addr, func(token uint64)) (agent.Pinger, error) {
	return nil, health.ErrUnknown
}
