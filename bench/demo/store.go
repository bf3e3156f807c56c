package demo

import (
	"context"
	"fmt"
	"net/netip"
	"os"

	"github.com/weft-net/weft/bench/cluster"
	"github.com/weft-net/weft/bench/lab/etcd"
)

// storeDir holds the datastore's files. This process's /run belongs to the
// lab, so they go away with it however it ends; by this path it is also there
// for threads and processes that are in other mount namespaces.
func storeDir() string { return fmt.Sprintf("/proc/%d/root/run/weft-demo", os.Getpid()) }

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
	if err := os.MkdirAll(storeDir(), 0o700); err != nil {
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
		Namespace: d.world.Outside(), Addrs: []netip.Addr{d.router()}, Dir: storeDir(),
	})
	if err != nil {
		return err
	}
	d.store.close = server.Close
	client := server.Client()
	defer client.Close()
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
		Dir: storeDir(), Binary: d.cfg.Kube, ClusterCIDRs: networks, Progress: d.cfg.Progress,
		Network: d.world.Outside(), Bind: d.router(),
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
	kubeconfig, err := os.ReadFile(control.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	d.store.args = []string{"--kube-subnet-mgr", "--kubeconfig-file=" + kubeconfigPath, "--net-config-path=" + netConfPath}
	d.store.files = map[string][]byte{kubeconfigPath: kubeconfig, netConfPath: []byte(netConf)}
	d.cfg.Progress("kube-apiserver has a Node for every host")
	return nil
}
