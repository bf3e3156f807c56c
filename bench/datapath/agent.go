package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/etcd"
	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/tunnel"
)

// What a whole agent is measured with.
const (
	agentPath     = "weft-agent" // in rows, in place of a path
	agentPeers    = 5000
	agentRest     = 3 * time.Second // until what starting took is given back
	restLooks     = 5
	agentPatience = 60 * time.Second
	agentAPI      = "127.0.0.1:10249"
	etcdPrefix    = "/coreos.com/network/"
)

// Rows about the agent.
const (
	rowIdleMemory     = "idle-memory"
	rowPeersMemory    = "memory-5000-peers"
	rowPeerGoroutines = "goroutines-5000-peers"
)

// measureAgent runs weft as a user would, with the userspace engine, and looks
// at what it takes: at rest with nobody else there, then with many peers. In
// between it is the peer of an agent without a device.
func (b *bench) measureAgent(ctx context.Context) (rows []Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, agentPatience)
	defer cancel()
	b.Progress(fmt.Sprintf("agent: at rest, beside one without a device, then with %d peers", agentPeers))
	a, err := b.startAgent(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	alone, err := a.atRest(ctx, 0)
	if err != nil {
		return nil, err
	}
	guest, err := a.measureGuest(ctx, b)
	if err != nil {
		return nil, err
	}
	for number := range agentPeers {
		if err := a.addPeer(ctx, number); err != nil {
			return nil, fmt.Errorf("write lease of a peer: %w", err)
		}
	}
	crowded, err := a.atRest(ctx, agentPeers)
	if err != nil {
		return nil, err
	}
	row := func(path, test, unit string, value float64) {
		v := number(value)
		rows = append(rows, Row{Path: path, Test: test, Unit: unit, Median: v, Min: v, Max: v, Runs: 1})
		b.Progress(fmt.Sprintf("  %-14s  %-21s  %8s %s", path, test, short(value), unit))
	}
	row(agentPath, rowIdleMemory, "MB", alone[metricMemory]/1e6)
	row(agentPath, rowPeersMemory, "MB", crowded[metricMemory]/1e6)
	row(agentPath, rowPeerGoroutines, "more", crowded[metricGoroutines]-alone[metricGoroutines])
	row(guestPath, rowIdleMemory, "MB", guest.memory/1e6)
	row(guestPath, rowReachable, "s", guest.start.Seconds())
	return rows, nil
}

// runningAgent is a weft agent on a host of its own that leases from an etcd.
type runningAgent struct {
	host   *lab.Host
	store  *etcd.Server
	cmd    *exec.Cmd
	client http.Client
	stderr lines
}

// startAgent starts an etcd and an agent that leases from it.
func (b *bench) startAgent(ctx context.Context) (a *runningAgent, err error) {
	a = newAgent()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start agent: %w", err), a.close())
		}
	}()
	if a.host, err = b.newHost(); err != nil {
		return a, err
	}
	// By this path it is there for threads in other mount namespaces too; it
	// ends with the lab.
	dir := fmt.Sprintf("/proc/%d/root/run/weft-bench", os.Getpid())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return a, err
	}
	router := b.world.Switches()[0].Router(4)
	a.store, err = etcd.Start(ctx, etcd.Config{Namespace: b.world.Outside(), Addrs: []netip.Addr{router}, Dir: dir})
	if err != nil {
		return a, err
	}
	if err := a.put(ctx, lease.ConfigKey, []byte(`{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}`)); err != nil {
		return a, err
	}
	return a, a.launch(ctx, b.Agent, a.store)
}

// newAgent is one that has no host yet.
func newAgent() *runningAgent {
	a := &runningAgent{stderr: lines{say: func(string) {}}} // it says something of each peer
	a.client = http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return a.host.Dial(ctx, network, address)
		},
	}}
	return a
}

// launch starts the program on the agent's host, to lease from store.
func (a *runningAgent) launch(ctx context.Context, program string, store *etcd.Server, flags ...string) error {
	ip, port, _ := strings.Cut(agentAPI, ":")
	a.cmd = a.host.Command(ctx, program, append([]string{
		"agent", "--engine=userspace", "--healthz-ip=" + ip, "--healthz-port=" + port,
		"--etcd-endpoints=" + store.Endpoints()[0], "--etcd-prefix=" + strings.TrimSuffix(etcdPrefix, "/"),
	}, flags...)...)
	a.cmd.Stderr = &a.stderr
	return a.cmd.Start()
}

func (a *runningAgent) close() (err error) {
	if a.host != nil {
		err = a.host.Close() // kills the agent
	}
	if a.cmd != nil && a.cmd.Process != nil {
		a.cmd.Wait()
	}
	if a.store != nil {
		err = errors.Join(err, a.store.Close())
	}
	return err
}

func (a *runningAgent) put(ctx context.Context, key string, value []byte) error {
	_, err := a.store.Client().Put(ctx, etcdPrefix+key, string(value))
	return err
}

// addPeer writes the lease of a host that is not there.
func (a *runningAgent) addPeer(ctx context.Context, number int) error {
	high, low := byte(number>>8), byte(number)
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200 + high, low, 0}), 24)
	value, err := lease.FormatValue(control.Claim{Backend: lease.VXLAN, Legs: []control.Leg{{
		Subnet: subnet, PublicIP: netip.AddrFrom4([4]byte{172, 20, high, low}),
		MAC: tunnel.MAC{0x02, 0, 0, 2, high, low}, VNI: vxlanVNI,
	}}})
	if err != nil {
		return err
	}
	key, err := lease.FormatKey([]netip.Prefix{subnet})
	if err != nil {
		return err
	}
	return a.put(ctx, key, value)
}

// Names of metrics of the agent.
const (
	metricMemory     = "process_resident_memory_bytes"
	metricGoroutines = "go_goroutines"
	metricReady      = "weft_ready"
	metricPeersUp    = `weft_peers{state="up"}`
)

// atRest waits until the agent has put a number of peers in place and some
// time has passed, and returns its metrics.
func (a *runningAgent) atRest(ctx context.Context, peers int) (map[string]float64, error) {
	for {
		metrics, err := a.metrics(ctx)
		if err == nil && metrics[metricReady] == 1 && metrics[metricPeersUp] == float64(peers) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for agent: %v of %d peers are up: %w%s", metrics[metricPeersUp], peers, errors.Join(ctx.Err(), err), a.stderr.last())
		case <-time.After(100 * time.Millisecond):
		}
	}
	return a.rested(ctx)
}

// rested lets time pass and returns the metrics after it, but of goroutines the
// fewest there have been: one that comes and goes, as the runtime's do, is nobody's.
func (a *runningAgent) rested(ctx context.Context) (metrics map[string]float64, err error) {
	fewest := math.Inf(1)
	for range restLooks {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(agentRest / restLooks):
		}
		if metrics, err = a.metrics(ctx); err != nil {
			return nil, err
		}
		fewest = min(fewest, metrics[metricGoroutines])
	}
	metrics[metricGoroutines] = fewest
	return metrics, nil
}

func (a *runningAgent) metrics(ctx context.Context) (map[string]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentAPI+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := a.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	return parseMetrics(string(text)), nil
}

// parseMetrics reads the Prometheus text format as far as names, with their
// labels, and values go.
func parseMetrics(text string) map[string]float64 {
	metrics := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			metrics[name] = v
		}
	}
	return metrics
}
