package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/etcd"
	"github.com/weft-net/weft/control/agent"
	etcdsource "github.com/weft-net/weft/control/etcd"
	"github.com/weft-net/weft/netstack"
)

// InProcess describes a demo without namespaces: all hosts are in this process.
type InProcess struct {
	Hosts    int           // two or more
	Stream   time.Duration // how long each TCP stream runs; 0: two seconds
	Logger   *slog.Logger  // what the agents say; nil: silent
	Progress func(line string)
}

// soloHost is a host in this process, and its agent.
type soloHost struct {
	name   string
	status *agent.Tracker
	host   *loopbackHost
}

// Run makes hosts, each with a network stack, an agent and real UDP sockets on
// loopback, lets them lease from an etcd in this process, measures what
// Demo.Measure does, and ends it all.
func (p InProcess) Run(ctx context.Context) (report Report, err error) {
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	if p.Stream == 0 {
		p.Stream = streamTime
	}
	if p.Hosts < 2 || p.Hosts > maxSolo {
		return report, fmt.Errorf("run the demo in process: Hosts is %d: want 2 to %d", p.Hosts, maxSolo)
	}
	dir, err := os.MkdirTemp("", "weft-demo-")
	if err != nil {
		return report, fmt.Errorf("run the demo in process: %w", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil { // takes nothing from what was found out
			p.Progress(fmt.Sprintf("%s is left behind: %v", dir, err))
		}
	}()
	server, err := p.startStore(ctx, dir)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	agents, stop := context.WithCancel(ctx)
	defer stop()
	group, agents := errgroup.WithContext(agents)
	hosts, err := p.startAgents(agents, group, server.Endpoints(), dir)
	if err == nil {
		p.Progress(fmt.Sprintf("%d hosts in this process, each with a network stack and UDP sockets on loopback", len(hosts)))
		report, err = p.measure(agents, hosts)
	}
	stop()
	ended := group.Wait()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case ended != nil: // the cause of whatever else went wrong
		err = ended
	}
	for _, h := range hosts {
		err = errors.Join(err, h.host.close())
	}
	return report, err
}

// maxSolo is as many as have an outer address; loopback is no place for more.
const maxSolo = 100

func (p InProcess) startStore(ctx context.Context, dir string) (*etcd.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	server, err := etcd.Start(ctx, etcd.Config{Dir: dir})
	if err != nil {
		return nil, err
	}
	conf := netConf
	if !hasLoopback6(ctx) {
		p.Progress("this machine has no ::1: IPv4 only")
		conf = netConf4
	}
	if _, err := server.Client().Put(ctx, etcdPrefix+"/config", conf); err != nil {
		return nil, errors.Join(fmt.Errorf("write network configuration: %w", err), server.Close())
	}
	p.Progress("etcd holds the network configuration")
	return server, nil
}

// netConf4 is netConf without IPv6.
const netConf4 = `{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}`

func hasLoopback6(ctx context.Context) bool {
	var config net.ListenConfig
	conn, err := config.ListenPacket(ctx, "udp6", "[::1]:0")
	return err == nil && conn.Close() == nil
}

// startAgents runs an agent for each host until ctx is done.
func (p InProcess) startAgents(ctx context.Context, group *errgroup.Group, endpoints []string, dir string) ([]*soloHost, error) {
	var hosts []*soloHost
	wires := newExchange()
	for i := range p.Hosts {
		name := fmt.Sprintf("host%d", i+1)
		logger := p.Logger.With("host", name)
		solo := &soloHost{name: name, status: agent.NewTracker(name, "demo", logger), host: newLoopbackHost(byte(i+1), wires, logger)}
		source, err := etcdsource.New(etcdsource.Config{
			Endpoints: endpoints, Prefix: etcdPrefix, PublicIPs: solo.host.outer[:], Logger: logger, Waiting: solo.status.Waiting,
		})
		if err != nil {
			return hosts, err
		}
		member, err := agent.New(agent.Config{
			Node: name, Version: "demo", Source: source, Host: solo.host, Engine: "userspace", DeviceReason: "the demo runs in one process",
			Socket: filepath.Join(dir, name+".sock"), Resync: time.Second, Status: solo.status, Logger: logger,
		})
		if err != nil {
			return hosts, errors.Join(err, source.Close())
		}
		group.Go(func() error {
			defer source.Close()
			if err := member.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("agent of %s: %w", name, err)
			}
			return nil
		})
		hosts = append(hosts, solo)
	}
	return hosts, nil
}

// measure waits until every host reaches every other, and takes the report.
func (p InProcess) measure(ctx context.Context, hosts []*soloHost) (report Report, err error) {
	var points []point
	for _, h := range hosts {
		stack, addresses, err := p.await(ctx, h, len(hosts)-1)
		if err != nil {
			return report, err
		}
		points = append(points, point{Name: h.name, Addresses: addresses, ping: func(ctx context.Context, probe lab.Probe) (time.Duration, error) {
			return pingBy(ctx, stack, probe)
		}})
		report.Hosts = append(report.Hosts, hostOf(h.name, h.status.Current(ctx)))
	}
	p.Progress("pinging every host from every other")
	report.Reach = reach(ctx, points)
	p.Progress("TCP and UDP from every host to every other")
	if report.Ports, err = soloPorts(ctx, hosts, points); err != nil {
		return report, err
	}
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		from, to := hosts[way[0]], hosts[way[1]]
		if ctx.Err() != nil {
			break
		}
		p.Progress(fmt.Sprintf("TCP from %s to %s for %s", from.name, to.name, p.Stream))
		stream := Stream{From: from.name, To: to.name, Engines: string(deviceless + "-" + deviceless)}
		stream.Gbps, stream.Err = soloThroughput(ctx, from, to, points[way[1]].Addresses[0], p.Stream)
		report.Throughput = append(report.Throughput, stream)
	}
	return report, ctx.Err()
}

// await waits until a host reaches its peers.
func (p InProcess) await(ctx context.Context, h *soloHost, peers int) (*netstack.Stack, []netip.Addr, error) {
	patience, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		status := h.status.Current(ctx)
		why := readiness(status, peers)
		stack := h.host.current()
		if why == nil && stack != nil {
			p.Progress(fmt.Sprintf("%s reaches its peers: %v", h.name, status.Subnets))
			addresses, err := firstAddresses(status.Subnets)
			return stack, addresses, err
		}
		select {
		case <-patience.Done():
			return nil, nil, errors.Join(fmt.Errorf("host %s is not ready: %w", h.name, why), ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func pingBy(ctx context.Context, stack *netstack.Stack, probe lab.Probe) (time.Duration, error) {
	if probe.Timeout == 0 {
		probe.Timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, probe.Timeout)
	defer cancel()
	return stack.Ping(ctx, probe.To, probe.PayloadBytes)
}

// soloPorts sends something from every host to a port of every other.
func soloPorts(ctx context.Context, hosts []*soloHost, points []point) (ports []Port, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, h := range hosts {
		stack := h.host.current()
		listener, err := stack.ListenTCP(netip.AddrPortFrom(netip.Addr{}, echoPort))
		if err != nil {
			return nil, err
		}
		packets, err := stack.ListenUDP(netip.AddrPortFrom(netip.Addr{}, echoPort))
		if err != nil {
			return nil, errors.Join(err, listener.Close())
		}
		lab.ServeEcho(ctx, listener, packets)
	}
	for i, from := range hosts {
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			return from.host.current().DialContext(ctx, network, to)
		}
		for j, to := range points {
			for _, network := range []string{"tcp", "udp"} {
				if i == j {
					continue
				}
				port := Port{From: from.name, To: to.Name, Over: network}
				for _, addr := range to.Addresses {
					port.Answers = append(port.Answers, echo(ctx, dial, network, netip.AddrPortFrom(addr, echoPort)))
				}
				ports = append(ports, port)
			}
		}
	}
	return ports, ctx.Err()
}

func soloThroughput(ctx context.Context, from, to *soloHost, addr netip.Addr, duration time.Duration) (float64, error) {
	at := netip.AddrPortFrom(addr, sinkPort)
	listener, err := to.host.current().ListenTCP(at)
	if err != nil {
		return 0, err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return from.host.current().DialContext(ctx, "tcp", at) }
	gbps, err := lab.ThroughputOver(ctx, listener, dial, duration)
	if err != nil {
		return 0, fmt.Errorf("measure throughput from %s to %s: %w", from.name, to.name, err)
	}
	return gbps, nil
}
