// Package etcd runs an etcd inside a lab, for tests and the demo. It must
// never be used for data that is to last: nothing is synced to disk.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"github.com/weft-net/weft/bench/lab"
)

// Config describes a Server.
type Config struct {
	// Namespace is where it listens, usually Lab.Outside; nil: where the process
	// is, which needs no lab, and on free ports where Port is 0.
	Namespace *lab.Namespace
	Addrs     []netip.Addr // addresses to listen on, besides loopback
	Port      uint16       // 0: 2379; the next one is for peers
	// Dir holds data and the log (etcd.log); a server started on the Dir of
	// another that was closed goes on with its data.
	Dir string
}

// Server is a running etcd with one member.
type Server struct {
	config Config
	peer   uint16 // port for peers, of which there are none
	etcd   *embed.Etcd
	client *clientv3.Client
}

// Start starts an etcd and waits until it serves, or ctx ends.
func Start(ctx context.Context, config Config) (*Server, error) {
	run := func(f func() error) error { return f() }
	s := &Server{config: config}
	switch {
	case config.Namespace == nil && config.Port == 0:
		if err := s.findPorts(ctx); err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
	case config.Port == 0:
		s.config.Port = 2379
	}
	if config.Namespace != nil {
		run = config.Namespace.Do
	}
	if s.peer == 0 {
		s.peer = s.config.Port + 1
	}
	// Sockets belong to the namespace of the thread that opens them, which is
	// this one: etcd opens all of them before StartEtcd returns.
	err := run(func() (err error) {
		s.etcd, err = embed.StartEtcd(s.settings())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
		s.client = v3client.New(s.etcd.Server)
		return s, nil
	case err = <-s.etcd.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("start etcd: %w", err), s.Close())
}

// findPorts picks two ports that were free a moment ago.
func (s *Server) findPorts(ctx context.Context) error {
	var config net.ListenConfig
	for _, port := range []*uint16{&s.config.Port, &s.peer} {
		listener, err := config.Listen(ctx, "tcp", netip.AddrPortFrom(loopback, 0).String())
		if err != nil {
			return err
		}
		defer listener.Close() // held until both are known
		*port = listener.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	return nil
}

func (s *Server) settings() *embed.Config {
	settings := embed.NewConfig()
	settings.Name = "lab"
	settings.Dir = filepath.Join(s.config.Dir, "data")
	settings.LogLevel = "warn"
	settings.LogOutputs = []string{filepath.Join(s.config.Dir, "etcd.log")}
	settings.UnsafeNoFsync = true
	// The gateway would connect to the server from whatever thread it runs on.
	settings.EnableGRPCGateway = false
	// Alone, it elects itself: the sooner the better.
	settings.TickMs, settings.ElectionMs = 10, 100
	peer := url.URL{Scheme: "http", Host: netip.AddrPortFrom(loopback, s.peer).String()}
	settings.ListenPeerUrls = []url.URL{peer}
	settings.AdvertisePeerUrls = []url.URL{peer}
	settings.InitialCluster = settings.Name + "=" + peer.String()
	settings.ListenClientUrls = nil
	for _, addr := range append([]netip.Addr{loopback}, s.config.Addrs...) {
		settings.ListenClientUrls = append(settings.ListenClientUrls, url.URL{Scheme: "http", Host: netip.AddrPortFrom(addr, s.config.Port).String()})
	}
	settings.AdvertiseClientUrls = settings.ListenClientUrls
	return settings
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// Endpoints are the URLs that hosts reach it at, in the order of Addrs; without
// any, loopback's.
func (s *Server) Endpoints() (endpoints []string) {
	if len(s.config.Addrs) == 0 {
		return []string{"http://" + netip.AddrPortFrom(loopback, s.config.Port).String()}
	}
	for _, addr := range s.config.Addrs {
		endpoints = append(endpoints, "http://"+netip.AddrPortFrom(addr, s.config.Port).String())
	}
	return endpoints
}

// Client is a client for the calling process, which needs no network. It ends
// with the server.
func (s *Server) Client() *clientv3.Client { return s.client }

// Close stops the server; its data stays in Dir.
func (s *Server) Close() error {
	if s.client != nil {
		s.client.Close() // says that it is closed
	}
	s.etcd.Close()
	select {
	case <-s.etcd.Server.StopNotify():
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("stop etcd: it does not end")
	}
}
