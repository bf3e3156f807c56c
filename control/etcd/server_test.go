package etcd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// shared is the server of all tests that do not stop theirs; each has a prefix
// of its own.
var shared *server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "etcd")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if shared, err = startServer(serverConfig(dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		shared.stop()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// server is a real etcd of one member on a loopback port.
type server struct {
	etcd     *embed.Etcd
	endpoint string
}

func serverConfig(dir string) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4 // the least: passwords are not what is tested
	// A short election keeps the least time to live of a lease at a second.
	cfg.TickMs, cfg.ElectionMs = 10, 100
	local := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = local, local
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = local, local
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	return cfg
}

func startServer(cfg *embed.Config) (*server, error) {
	running, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-running.Server.ReadyNotify():
	case err := <-running.Err():
		running.Close()
		return nil, err
	}
	endpoint := running.Clients[0].Addr()
	return &server{running, cfg.ListenClientUrls[0].Scheme + "://" + endpoint.String()}, nil
}

func (s *server) stop() { s.etcd.Close() }

// line is the way to a server, which can be cut and healed.
type line struct {
	t        *testing.T
	server   string // host:port
	endpoint string

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	forwards sync.WaitGroup
}

func newLine(t *testing.T, endpoint string) *line {
	t.Helper()
	l := &line{t: t, server: strings.TrimPrefix(endpoint, "http://"), endpoint: "http://127.0.0.1:0"}
	l.heal()
	l.endpoint = "http://" + l.listener.Addr().String()
	t.Cleanup(l.cut)
	return l
}

// cut refuses connections and ends those there are.
func (l *line) cut() {
	l.mu.Lock()
	l.listener.Close()
	for _, conn := range l.conns {
		conn.Close()
	}
	l.conns = nil
	l.mu.Unlock()
	l.forwards.Wait()
}

func (l *line) heal() {
	l.t.Helper()
	listener, err := net.Listen("tcp", strings.TrimPrefix(l.endpoint, "http://"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	l.listener = listener
	l.mu.Unlock()
	l.forwards.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", l.server)
			if err != nil {
				near.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, near, far)
			l.mu.Unlock()
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				l.forwards.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
				})
			}
		}
	})
}

// ownServer is a server that the test may stop.
func ownServer(t *testing.T) *server {
	t.Helper()
	started, err := startServer(serverConfig(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { started.stop() })
	return started
}

// patience ends a test that hangs; nothing is measured by it.
const patience = 2 * time.Minute

// networks counts those made, so that none finds the keys of another.
var networks atomic.Int64

// store is a test's view of a server, past all of our code.
type store struct {
	*clientv3.Client
	t        *testing.T
	endpoint string
	prefix   string
}

func newStore(t *testing.T, endpoint string) *store {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialOptions: dialOptions(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return &store{client, t, endpoint, fmt.Sprintf("/test/%s/%d", t.Name(), networks.Add(1))}
}

const (
	net4    = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	netDual = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}`
	net6    = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}`
)

// network is a store on the shared server that holds a configuration.
func network(t *testing.T, config string) *store {
	t.Helper()
	st := newStore(t, shared.endpoint)
	st.put("config", config)
	return st
}

func (st *store) put(key, value string, options ...clientv3.OpOption) int64 {
	st.t.Helper()
	done, err := st.Put(st.t.Context(), st.prefix+"/"+key, value, options...)
	if err != nil {
		st.t.Fatal(err)
	}
	return done.Header.Revision
}

func (st *store) delete(key string) {
	st.t.Helper()
	if _, err := st.Delete(st.t.Context(), st.prefix+"/"+key); err != nil {
		st.t.Fatal(err)
	}
}

type pair struct {
	value   string
	etcd    clientv3.LeaseID
	changed int64
}

// all returns every key below the prefix but the configuration.
func (st *store) all() map[string]pair {
	st.t.Helper()
	got, err := st.Get(st.t.Context(), st.prefix+"/", clientv3.WithPrefix())
	if err != nil {
		st.t.Fatal(err)
	}
	pairs := map[string]pair{}
	for _, kv := range got.Kvs {
		if key := string(kv.Key[len(st.prefix)+1:]); key != "config" {
			pairs[key] = pair{string(kv.Value), clientv3.LeaseID(kv.Lease), kv.ModRevision}
		}
	}
	return pairs
}

// grant makes an etcd lease of flannel's length.
func (st *store) grant() clientv3.LeaseID {
	st.t.Helper()
	granted, err := st.Grant(st.t.Context(), 86400)
	if err != nil {
		st.t.Fatal(err)
	}
	return granted.ID
}

// expire ends an etcd lease as its time to live would.
func (st *store) expire(id clientv3.LeaseID) {
	st.t.Helper()
	if _, err := st.Revoke(st.t.Context(), id); err != nil {
		st.t.Fatal(err)
	}
}

func (st *store) config() Config {
	return Config{Endpoints: []string{st.endpoint}, Prefix: st.prefix}
}

// source makes a Source that has read the configuration.
func (st *store) source(cfg Config) *Source {
	st.t.Helper()
	s, err := New(cfg)
	if err != nil {
		st.t.Fatal(err)
	}
	st.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			st.t.Error(err)
		}
	})
	if _, err := s.NetConf(st.t.Context()); err != nil {
		st.t.Fatal(err)
	}
	return s
}

func (st *store) acquire(s *Source, claim control.Claim) control.Lease {
	st.t.Helper()
	got, err := s.Acquire(st.t.Context(), claim)
	if err != nil {
		st.t.Fatal(err)
	}
	return got
}

// claim is what host number n of a network publishes.
func claim(n byte, families ...string) control.Claim {
	c := control.Claim{Host: fmt.Sprintf("host-%d", n), Backend: "vxlan"}
	if len(families) == 0 {
		families = []string{"4"}
	}
	for _, family := range families {
		leg := control.Leg{MAC: tunnel.MAC{2, family[0], 0, 0, 0, n}, VNI: 1, PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, n})}
		if family == "6" {
			leg.PublicIP = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: n})
		}
		c.Legs = append(c.Legs, leg)
	}
	return c
}

// value4 is what flannel writes for an IPv4 host.
func value4(n byte) string {
	return fmt.Sprintf(`{"PublicIP":"192.0.2.%d","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:34:00:00:00:%02x"}}`, n, n)
}

// running is a Source's Run in the background.
type running struct {
	t         *testing.T
	source    *Source
	snapshots chan control.Snapshot
	cancel    context.CancelFunc
	done      chan error
}

// run starts Run and stops it with the test.
func (st *store) run(s *Source) *running {
	ctx, cancel := context.WithCancel(st.t.Context())
	r := &running{st.t, s, make(chan control.Snapshot, 1000), cancel, make(chan error, 1)}
	go func() {
		r.done <- s.Run(ctx, func(snapshot control.Snapshot) { r.snapshots <- snapshot })
		close(r.snapshots)
	}()
	st.t.Cleanup(cancel)
	return r
}

// until returns the first snapshot that is as wished.
func (r *running) until(what string, wished func(control.Snapshot) bool) control.Snapshot {
	r.t.Helper()
	var last control.Snapshot
	for {
		select {
		case snapshot, ok := <-r.snapshots:
			if !ok {
				r.t.Fatalf("Run has ended with %v before %s; last: %+v", <-r.done, what, last)
			}
			if last = snapshot; !snapshot.Complete {
				r.t.Fatal("a snapshot that is not complete")
			}
			if wished(snapshot) {
				return snapshot
			}
		case <-time.After(patience):
			r.t.Fatalf("no %s; last: %+v", what, last)
		}
	}
}

// ended waits for Run to return.
func (r *running) ended() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		r.t.Fatal("Run does not end")
		return nil
	}
}

// hosts lists a snapshot's leases.
func hosts(snapshot control.Snapshot) (names []string) {
	for _, l := range snapshot.Leases {
		names = append(names, l.Host)
	}
	return names
}

// reasons collects what Waiting is told.
type reasons struct {
	mu  sync.Mutex
	all []string
	new chan struct{}
}

func newReasons() *reasons { return &reasons{new: make(chan struct{}, 1000)} }

func (r *reasons) add(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, reason)
	r.new <- struct{}{}
}

// next waits for a reason that matches.
func (r *reasons) next(t *testing.T, matches func(reason string) bool) string {
	t.Helper()
	for {
		select {
		case <-r.new:
			r.mu.Lock()
			reason := r.all[0]
			r.all = r.all[1:]
			r.mu.Unlock()
			if matches(reason) {
				return reason
			}
		case <-time.After(patience):
			t.Fatal("no such reason")
		}
	}
}

func textLogger(out io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(out, nil)) }
