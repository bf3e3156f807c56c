// Package cluster starts a real Kubernetes control plane for tests and the
// demo: etcd, kube-apiserver and kube-controller-manager as child processes of
// one weft-kube binary, gone when this process dies. Nodes get their podCIDRs
// from the real allocator; there are no kubelets. It speaks plain HTTP and
// JSON, so it needs nothing of k8s.io. It must never be linked into weft.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config says what to start. Dir, Binary and ClusterCIDRs are needed.
type Config struct {
	// Dir takes state, credentials and one log file per process. It is made if
	// absent and never removed.
	Dir string
	// Binary is weft-kube (bench/kube/build.sh makes it).
	Binary string
	// Bind is the address of the API server; 127.0.0.1 if zero.
	Bind netip.Addr
	// Network is where everything listens; nil is this process's own network
	// namespace. A lab's namespace is one.
	Network Network
	// ClusterCIDRs are the pod networks, at most one per family.
	ClusterCIDRs []netip.Prefix
	// NodeCIDRMaskSizes are the lengths of podCIDRs, one per ClusterCIDR; 24 and
	// 64 where absent.
	NodeCIDRMaskSizes []int
	// Lifecycle has Nodes without a fresh Lease tainted, and what belongs to
	// deleted objects collected, as any real cluster does but sooner. Nodes of
	// AddNode have no kubelet, and are given up after twenty seconds.
	Lifecycle bool
	// Progress is told what is being waited for. May be nil.
	Progress func(string)
	// Logger may be nil.
	Logger *slog.Logger
}

// Network is a network namespace that is not this process's own.
type Network interface {
	// Command prepares a program that is to run there, Do calls a function
	// there, Dial connects from there.
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
	Do(f func() error) error
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Cluster is a running control plane. What starts and stops processes must not
// be called concurrently; the rest may.
type Cluster struct {
	cfg    Config
	url    string
	client *http.Client
	admin  string // bearer token
	caPEM  []byte
	etcd   string // client URL
	spawn  *spawner

	processes []*process // in order of start
}

// apiServer is a component of weft-kube, as the other two are.
const apiServer = "kube-apiserver"

// Start starts a control plane and waits until it serves. On error nothing is
// left running. Whoever gets a Cluster must Stop it.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, spawn: newSpawner()}
	begin := time.Now()
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start control plane: %w", err), c.Stop())
	}
	cfg.Progress(fmt.Sprintf("control plane is up after %.1f s", time.Since(begin).Seconds()))
	return c, nil
}

// complete checks cfg and fills in defaults.
func (cfg *Config) complete() error {
	if _, err := os.Stat(cfg.Binary); err != nil {
		return fmt.Errorf("look for weft-kube: %w (bench/kube/build.sh PATH builds it)", err)
	}
	if cfg.Dir == "" {
		return errors.New("start control plane: Config.Dir is empty")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	if len(cfg.ClusterCIDRs) == 0 {
		return errors.New("start control plane: Config.ClusterCIDRs is empty: give one pod network per family")
	}
	sizes := slices.Clone(cfg.NodeCIDRMaskSizes)
	for i := len(sizes); i < len(cfg.ClusterCIDRs); i++ {
		size := 24
		if cfg.ClusterCIDRs[i].Addr().Is6() {
			size = 64
		}
		sizes = append(sizes, size)
	}
	cfg.NodeCIDRMaskSizes = sizes
	if !cfg.Bind.IsValid() {
		cfg.Bind = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	var etcdPort, peerPort, apiPort uint16
	for _, port := range []*uint16{&etcdPort, &peerPort, &apiPort} {
		err := c.within(func() (err error) {
			*port, err = freePort(c.cfg.Bind)
			return err
		})
		if err != nil {
			return err
		}
	}
	c.etcd = "http://" + netip.AddrPortFrom(c.cfg.Bind, etcdPort).String()
	c.url = "https://" + netip.AddrPortFrom(c.cfg.Bind, apiPort).String()
	if err := c.makeCredentials(); err != nil {
		return err
	}
	c.cfg.Progress("starting etcd and kube-apiserver")
	if err := c.startEtcd("http://" + netip.AddrPortFrom(c.cfg.Bind, peerPort).String()); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	c.cfg.Progress("starting kube-controller-manager")
	return c.startControllerManager()
}

// startEtcd starts a store that forgets on power loss: fsync is all that its
// start-up waits for.
func (c *Cluster) startEtcd(peerURL string) error {
	return c.run("etcd",
		"--name=weft", "--data-dir="+filepath.Join(c.cfg.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+c.etcd, "--advertise-client-urls="+c.etcd,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=weft="+peerURL)
}

// StartAPIServer starts the API server, on the same address as before, and
// waits until it is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	services := "10.96.0.0/16"
	if c.cfg.Bind.Is6() {
		services = "fd00:10:96::/112"
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(c.url, "https://"))
	if err != nil {
		return fmt.Errorf("split %s: %w", c.url, err)
	}
	err = c.run(apiServer,
		"--etcd-servers="+c.etcd, "--bind-address="+c.cfg.Bind.String(), "--secure-port="+port,
		"--tls-cert-file="+c.path(serverCert), "--tls-private-key-file="+c.path(serverKey),
		"--token-auth-file="+c.path(tokenFile), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.path(accountKey), "--service-account-signing-key-file="+c.path(accountKey),
		"--service-cluster-ip-range="+services, "--allow-privileged",
		// There is no Service network, and in a fresh network namespace no
		// default route to guess an address by.
		"--endpoint-reconciler-type=none", "--advertise-address="+advertise(c.cfg.Bind).String())
	if err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// advertise is bind, or a documentation address (RFC 5737, RFC 3849) in place
// of a loopback one, which the API server refuses; nothing ever dials it.
func advertise(bind netip.Addr) netip.Addr {
	switch {
	case !bind.IsLoopback():
		return bind
	case bind.Is4():
		return netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return netip.MustParseAddr("2001:db8::1")
}

// StopAPIServer kills the API server: an outage.
func (c *Cluster) StopAPIServer() error {
	for i, p := range c.processes {
		if p.name == apiServer {
			c.processes = append(c.processes[:i:i], c.processes[i+1:]...)
			return p.kill()
		}
	}
	return errors.New("stop kube-apiserver: it is not running")
}

// controllers are those that every cluster of ours has, and what was asked for.
func (c *Cluster) controllers() string {
	names := "node-ipam-controller,daemonset-controller,serviceaccount-controller"
	if c.cfg.Lifecycle {
		names += ",node-lifecycle-controller,garbage-collector-controller"
	}
	return names
}

// startControllerManager starts what hands out podCIDRs, and what makes
// DaemonSets into Pods.
func (c *Cluster) startControllerManager() error {
	cidrs := make([]string, 0, len(c.cfg.ClusterCIDRs))
	args := []string{
		"--kubeconfig=" + c.Kubeconfig(), "--leader-elect=false", "--secure-port=0",
		"--controllers=" + c.controllers(),
		"--allocate-node-cidrs", "--kube-api-qps=1000", "--kube-api-burst=1000",
	}
	if c.cfg.Lifecycle {
		args = append(args, "--node-monitor-period=1s", "--node-monitor-grace-period=20s", "--node-startup-grace-period=20s")
	}
	for i, prefix := range c.cfg.ClusterCIDRs {
		cidrs = append(cidrs, prefix.String())
		flag := "--node-cidr-mask-size"
		if len(c.cfg.ClusterCIDRs) > 1 && prefix.Addr().Is4() {
			flag += "-ipv4"
		} else if len(c.cfg.ClusterCIDRs) > 1 {
			flag += "-ipv6"
		}
		args = append(args, flag+"="+strconv.Itoa(c.cfg.NodeCIDRMaskSizes[i]))
	}
	return c.run("kube-controller-manager", append(args, "--cluster-cidr="+strings.Join(cidrs, ","))...)
}

// run starts one component of the binary.
func (c *Cluster) run(name string, args ...string) error {
	command := exec.CommandContext
	if c.cfg.Network != nil {
		command = c.cfg.Network.Command
	}
	// Ended by Stop, not by the context of a start.
	cmd := command(context.Background(), c.cfg.Binary, append([]string{name}, args...)...)
	p, err := c.spawn.start(name, c.path(name+".log"), cmd)
	if err != nil {
		return err
	}
	c.processes = append(c.processes, p)
	c.cfg.Logger.Debug("started", "component", name, "pid", p.cmd.Process.Pid)
	return nil
}

// within calls f where everything listens.
func (c *Cluster) within(f func() error) error {
	if c.cfg.Network == nil {
		return f()
	}
	return c.cfg.Network.Do(f)
}

// waitReady polls /readyz, and gives up early if a process has died.
func (c *Cluster) waitReady(ctx context.Context) error {
	for {
		err := c.Request(ctx, http.MethodGet, "/readyz", nil, nil)
		if err == nil {
			return nil
		}
		for _, p := range c.processes {
			if p.exited() {
				return p.failure()
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for kube-apiserver (log: %s): %w", c.path(apiServer+".log"), err)
		}
	}
}

// Stop kills every process. It may be called more than once.
func (c *Cluster) Stop() error {
	var errs []error
	for i := len(c.processes) - 1; i >= 0; i-- {
		errs = append(errs, c.processes[i].kill())
	}
	c.processes = nil
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	c.spawn.close()
	return errors.Join(errs...)
}

// URL is where the API server listens.
func (c *Cluster) URL() string { return c.url }

func (c *Cluster) path(name string) string { return filepath.Join(c.cfg.Dir, name) }

// freePort asks the kernel for a TCP port nobody listens on.
func freePort(addr netip.Addr) (uint16, error) {
	listener, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		return 0, fmt.Errorf("find a free port on %s: %w", addr, err)
	}
	port := listener.Addr().(*net.TCPAddr).AddrPort().Port()
	if err := listener.Close(); err != nil {
		return 0, fmt.Errorf("free port %d: %w", port, err)
	}
	return port, nil
}

// pause waits for d or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
