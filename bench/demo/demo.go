// Package demo shows weft at work: unlike hosts in a throw-away lab, one
// network, and what it measures like. It starts the real agent and the real
// CNI plugin as programs and looks at them from the outside, as a user would;
// it must never reach into their packages for more than their local API.
package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
)

// Config says what the demo is made of.
type Config struct {
	Weft string   // the weft program
	CNI  []string // directories of CNI plugins, weft-cni among them
	Kube string   // the weft-kube program: lease from a real Kubernetes; empty: from etcd
	// Progress is told what is being done, a line each. It may be called from
	// several goroutines.
	Progress func(line string)
}

// kind is who carries a host's packets, and with which rights.
type kind string

const (
	kernel     kind = "kernel"    // kernel VXLAN
	userspace  kind = "userspace" // the userspace engine on a TUN
	rootless   kind = "rootless"  // the same without rights, in a namespace of its own
	deviceless kind = "netstack"  // without rights, device or pods: a laptop
)

// cast is who takes part: two hosts of either kind that has rights, so that
// every pair of those is there, and one of each kind that has none.
var cast = []struct {
	name string
	kind kind
}{
	{"kernel1", kernel},
	{"user1", userspace},
	{"kernel2", kernel},
	{"user2", userspace},
	{"rootless", rootless},
	{"laptop", deviceless},
}

// podsPerHost are the names of the pods on each host that can have some.
var podsPerHost = []string{"a", "b"}

// The pod networks, and the cluster's configuration in flannel's form.
var networks = []netip.Prefix{
	netip.MustParsePrefix("10.244.0.0/16"),
	netip.MustParsePrefix("fd00:10:244::/56"),
}

const netConf = `{
  "Network": "10.244.0.0/16",
  "EnableIPv6": true,
  "IPv6Network": "fd00:10:244::/56",
  "IPv6SubnetLen": 64,
  "Backend": {"Type": "vxlan"}
}
`

// How long each step may take before the demo gives up on it. They are for
// faults: all steps together take a fraction of the longest.
const (
	storePatience = 30 * time.Second
	readyPatience = 20 * time.Second
	podPatience   = 20 * time.Second
	reachPatience = 5 * time.Second
)

// Demo is a network that is up. Close it.
type Demo struct {
	cfg     Config
	world   *lab.Lab
	store   datastore
	members []*member

	doorFiles []*os.File // what Open has opened
}

// Start makes the network: hosts, datastore, agents and pods. It returns once
// every agent says that it reaches every other and every pod has its
// addresses. lab.Enter must have been called.
func Start(ctx context.Context, cfg Config) (*Demo, error) {
	plugins, err := newPlugins(cfg.CNI)
	if err != nil {
		return nil, err
	}
	world, err := lab.New(lab.Config{})
	if err != nil {
		return nil, err
	}
	d := &Demo{cfg: cfg, world: world}
	if err := d.start(ctx, plugins); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Demo) start(ctx context.Context, plugins plugins) error {
	for _, role := range cast {
		host, err := d.world.Host(lab.HostConfig{Name: role.name})
		if err != nil {
			return err
		}
		d.members = append(d.members, &member{Host: host, kind: role.kind})
	}
	d.cfg.Progress(fmt.Sprintf("%d hosts on one switch", len(d.members)))
	if err := d.startStore(ctx); err != nil {
		return err
	}
	for _, m := range d.members {
		if err := d.startAgent(ctx, m); err != nil {
			return err
		}
	}
	d.cfg.Progress("weft agent runs on every host")
	if err := d.waitReady(ctx); err != nil {
		return err
	}
	return d.startPods(ctx, plugins)
}

func (d *Demo) startPods(ctx context.Context, plugins plugins) error {
	ctx, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range d.members {
		if m.kind == deviceless {
			continue
		}
		attach := plugins.attach
		if m.kind == rootless {
			attach = d.attachInside
		}
		group.Go(func() error {
			for _, name := range podsPerHost {
				pod, err := attach(ctx, m.Host, name)
				if err != nil {
					return err
				}
				m.pods = append(m.pods, pod)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	d.cfg.Progress(fmt.Sprintf("%d pods on each host but the laptop, attached by weft-cni", len(podsPerHost)))
	return nil
}

// Close ends everything at once.
func (d *Demo) Close() error {
	errs := []error{d.world.Close()}
	for _, m := range d.members {
		errs = append(errs, m.close())
	}
	if d.store.close != nil {
		errs = append(errs, d.store.close())
	}
	for _, file := range d.doorFiles {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
