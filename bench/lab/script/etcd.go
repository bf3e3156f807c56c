package script

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/bench/lab/etcd"
)

var etcdCommands = map[string]Command{
	"etcd":    switchEtcd,
	"etcdput": putKey,
	"etcdget": getKeys,
	"etcddel": deleteKey,
}

// Variables with the endpoints of the script's etcd.
const (
	etcdVar  = "ETCD"
	etcdVar6 = "ETCD6"
)

func switchEtcd(run *Run, args []string) error {
	if len(args) == 1 && args[0] == "stop" {
		if run.server == nil {
			return errors.New("no etcd runs")
		}
		err := run.server.Close()
		run.server = nil
		return err
	}
	if len(args) != 0 {
		return usage("etcd [stop]")
	}
	if run.server != nil {
		return errors.New("etcd runs already")
	}
	return run.startEtcd()
}

func (r *Run) startEtcd() error {
	config := etcd.Config{Namespace: r.Lab.Outside(), Dir: filepath.Join(r.work, ".etcd")}
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return err
	}
	families := map[int]string{4: etcdVar, 6: etcdVar6}
	for _, s := range r.Lab.Switches() {
		for family := range families {
			if addr := s.Router(family); addr.IsValid() {
				config.Addrs = append(config.Addrs, addr)
			}
		}
	}
	if len(config.Addrs) == 0 {
		return errors.New("nobody could reach it: make a host or switch first")
	}
	server, err := etcd.Start(r.ctx, config)
	if err != nil {
		return err
	}
	r.server = server
	first := r.Lab.Switches()[0]
	for i, endpoint := range server.Endpoints() {
		for family, variable := range families {
			if config.Addrs[i] == first.Router(family) {
				r.setenv(variable, endpoint)
			}
		}
	}
	return nil
}

// withClient calls f with a client of the script's etcd.
func (r *Run) withClient(f func(*clientv3.Client) error) error {
	if r.server == nil {
		return errors.New("no etcd runs: start it with the etcd command")
	}
	return f(r.server.Client())
}

func putKey(run *Run, args []string) error {
	if len(args) != 2 {
		return usage("etcdput KEY VALUE")
	}
	return run.withClient(func(client *clientv3.Client) error {
		_, err := client.Put(run.ctx, args[0], args[1])
		return err
	})
}

func getKeys(run *Run, args []string) error {
	if len(args) != 1 {
		return usage("etcdget PREFIX")
	}
	return run.withClient(func(client *clientv3.Client) error {
		response, err := client.Get(run.ctx, args[0], clientv3.WithPrefix())
		if err != nil {
			return err
		}
		if len(response.Kvs) == 0 {
			return fmt.Errorf("no key begins with %q", args[0])
		}
		for _, kv := range response.Kvs {
			fmt.Fprintf(run.Stdout, "%s %s\n", kv.Key, kv.Value)
		}
		return nil
	})
}

func deleteKey(run *Run, args []string) error {
	if len(args) != 1 {
		return usage("etcddel KEY")
	}
	return run.withClient(func(client *clientv3.Client) error {
		response, err := client.Delete(run.ctx, args[0])
		if err == nil && response.Deleted == 0 {
			err = fmt.Errorf("no key %q", args[0])
		}
		return err
	})
}
