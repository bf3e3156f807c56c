package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/control/etcd"
	"github.com/weft-net/weft/control/kube"
	"github.com/weft-net/weft/control/state"
)

// source is where leases come from. published are the addresses the flags name.
func (o options) source(published []netip.Addr, status *agent.Tracker, logger *slog.Logger) (agent.Source, error) {
	if o.kube {
		source, err := kube.New(kube.Config{
			Kubeconfig: o.kubeconfig, APIURL: o.kubeAPI, NodeName: o.node, Invite: o.guest, Machine: o.machine(),
			PodName: os.Getenv("POD_NAME"), PodNamespace: os.Getenv("POD_NAMESPACE"),
			Prefix: o.kubePrefix, NetConfPath: o.netConfPath, SetNetworkUnavailable: o.setUnavailable,
			Logger: logger, Waiting: status.Waiting,
		})
		if err != nil {
			return nil, fmt.Errorf("lease from Kubernetes: %w", err)
		}
		return source, nil
	}
	addresses, err := ownAddresses(published)
	if err != nil {
		return nil, err
	}
	cfg := etcd.Config{
		PublicIPs: addresses,
		Endpoints: strings.Split(o.etcdEndpoints, ","), Prefix: o.etcdPrefix,
		KeyFile: o.etcdKeyFile, CertFile: o.etcdCertFile, CAFile: o.etcdCAFile,
		Username: o.etcdUsername, Password: o.etcdPassword, RenewMargin: time.Duration(o.renewMargin) * time.Minute,
		Logger: logger, Waiting: status.Waiting,
	}
	// The subnet of the last run is asked for again, so that its pods keep their addresses.
	if env, err := state.ReadSubnetEnv(o.subnetFile); err == nil {
		cfg.Previous = env.Subnets
	} else if !errors.Is(err, fs.ErrNotExist) {
		logger.Debug("no previous subnet", "err", err)
	}
	source, err := etcd.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("lease from etcd: %w", err)
	}
	return source, nil
}

// ownAddresses are those by which this host may know its own lease in etcd
// again: the published ones, or else all that it has.
func ownAddresses(published []netip.Addr) ([]netip.Addr, error) {
	if len(published) > 0 {
		return published, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var own []netip.Addr
	for _, address := range all {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
			own = append(own, prefix.Addr())
		}
	}
	return own, nil
}
