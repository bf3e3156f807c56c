package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"sync"

	"github.com/weft-net/weft/bench/cluster"
	"github.com/weft-net/weft/bench/lab/etcd"
)

// storeDir holds the datastore's files. This process's /run belongs to the
// lab, so they go away with it however it ends; by this path it is also there
// for threads that are in other mount namespaces.
const storeDir = "/proc/self/root/run/weft-demo"

// datastore is where the agents lease from, on the router of all hosts.
type datastore struct {
	args  []string          // of every agent
	files map[string][]byte // on every host
	close func() error
}

// startStore starts the datastore and makes every host known to it.
func (d *Demo) startStore(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	if err := os.MkdirAll(storeDir, 0o700); err != nil {
		return fmt.Errorf("make directory of datastore: %w", err)
	}
	if d.cfg.Kube != "" {
		return d.startKube(waiting)
	}
	return d.startEtcd(waiting)
}

const etcdPrefix = "/coreos.com/network"

func (d *Demo) startEtcd(ctx context.Context) error {
	server, err := etcd.Start(ctx, etcd.Config{
		Namespace: d.world.Outside(), Addrs: []netip.Addr{d.router()}, Dir: storeDir,
	})
	if err != nil {
		return err
	}
	d.store.close = server.Close
	client := server.Client()
	defer closeAll(client)
	if _, err := client.Put(ctx, etcdPrefix+"/config", netConf); err != nil {
		return fmt.Errorf("write network configuration: %w", err)
	}
	d.store.args = []string{"--etcd-endpoints=" + server.Endpoints()[0], "--etcd-prefix=" + etcdPrefix}
	d.cfg.Progress("etcd holds the network configuration")
	return nil
}

// router is the address that all hosts know for what is outside.
func (d *Demo) router() netip.Addr { return d.world.Switches()[0].Router(4) }

const (
	kubeconfigPath = "/etc/weft/kubeconfig"
	netConfPath    = "/etc/kube-flannel/net-conf.json"
)

func (d *Demo) startKube(ctx context.Context) error {
	control, err := cluster.Start(ctx, cluster.Config{
		Dir: storeDir, Binary: d.cfg.Kube, ClusterCIDRs: networks, Progress: d.cfg.Progress,
	})
	if err != nil {
		return err
	}
	d.store.close = control.Stop
	for _, m := range d.members {
		if err := control.AddNode(ctx, m.Name(), m.Addr(4), m.Addr(6)); err != nil {
			return fmt.Errorf("add Node %s: %w", m.Name(), err)
		}
	}
	address, err := url.Parse(control.URL())
	if err != nil {
		return fmt.Errorf("read address of kube-apiserver: %w", err)
	}
	here, err := netip.ParseAddrPort(address.Host)
	if err != nil {
		return fmt.Errorf("read address of kube-apiserver: %w", err)
	}
	at, err := d.relay(ctx, here)
	if err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(control.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	if kubeconfig, err = redirect(kubeconfig, control.URL(), at); err != nil {
		return err
	}
	d.store.args = []string{"--kube-subnet-mgr", "--kubeconfig-file=" + kubeconfigPath, "--net-config-path=" + netConfPath}
	d.store.files = map[string][]byte{kubeconfigPath: kubeconfig, netConfPath: []byte(netConf)}
	d.cfg.Progress("kube-apiserver has a Node for every host")
	return nil
}

// redirect makes a kubeconfig reach the server at another address while it
// goes on to expect the server's own certificate.
func redirect(kubeconfig []byte, server string, at netip.AddrPort) ([]byte, error) {
	address, err := url.Parse(server)
	if err != nil {
		return nil, fmt.Errorf("redirect kubeconfig: %w", err)
	}
	var config struct {
		Clusters []struct {
			Name    string         `json:"name"`
			Cluster map[string]any `json:"cluster"`
		} `json:"clusters"`
	}
	whole := map[string]any{}
	if err := errors.Join(json.Unmarshal(kubeconfig, &config), json.Unmarshal(kubeconfig, &whole)); err != nil {
		return nil, fmt.Errorf("redirect kubeconfig: %w", err)
	}
	for _, entry := range config.Clusters {
		entry.Cluster["server"] = "https://" + at.String()
		entry.Cluster["tls-server-name"] = address.Hostname()
	}
	whole["clusters"] = config.Clusters
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(whole); err != nil {
		return nil, fmt.Errorf("redirect kubeconfig: %w", err)
	}
	return out.Bytes(), nil
}

// relay offers a server of this process's own namespace to all hosts, at the
// same port of their router, and returns where.
func (d *Demo) relay(ctx context.Context, server netip.AddrPort) (netip.AddrPort, error) {
	at := netip.AddrPortFrom(d.router(), server.Port())
	listener, err := d.world.Outside().Listen(ctx, "tcp", at.String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	stop := relay(listener, server.String())
	closeServer := d.store.close
	d.store.close = func() error {
		stop()
		return closeServer()
	}
	return at, nil
}

// relay passes connections on until it is stopped.
func relay(listener net.Listener, to string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { pass(ctx, conn, to) })
		}
	})
	return func() {
		cancel()
		closeAll(listener)
		running.Wait()
	}
}

// pass joins one connection to a new one until either side ends.
func pass(ctx context.Context, near net.Conn, to string) {
	defer closeAll(near)
	var dialer net.Dialer
	far, err := dialer.DialContext(ctx, "tcp", to)
	if err != nil {
		return // the agent sees its connection close and says so
	}
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	carry := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // whatever the end, it is the end for both
		cancel()
	}
	both.Go(func() { carry(far, near) })
	both.Go(func() { carry(near, far) })
	<-ctx.Done()
	closeAll(near, far)
	both.Wait()
}

// closeAll ends connections of which nothing more is expected; that they have
// ended already is all they could say.
func closeAll(closers ...io.Closer) {
	for _, closer := range closers {
		closer.Close()
	}
}
