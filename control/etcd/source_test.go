package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/netconf"
)

// A configuration that is missing or wrong is waited on and named, and read
// again when it changes.
func TestNetConfWaits(t *testing.T) {
	st := newStore(t, shared.endpoint)
	waiting := newReasons()
	cfg := st.config()
	cfg.Waiting = waiting.add
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	type answer struct {
		config netconf.Config
		err    error
	}
	got := make(chan answer, 1)
	go func() {
		config, err := s.NetConf(t.Context())
		got <- answer{config, err}
	}()
	says := func(part string) {
		t.Helper()
		waiting.next(t, func(reason string) bool { return strings.Contains(reason, part) })
	}
	says("write net-conf.json to " + st.prefix + "/config with the v3 API")
	st.put("config", `{"Network":"10.244.0.0/16"}`)
	says(st.prefix + "/config: parse net-conf: Backend.Type is missing; allowed: vxlan, host-gw")
	st.delete("config")
	says("no network configuration")
	st.put("config", netDual)
	have := <-got
	if have.err != nil || len(have.config.Families) != 2 {
		t.Errorf("have %+v", have)
	}
	waiting.next(t, func(reason string) bool { return reason == "" })
}

func TestNetConfCancelled(t *testing.T) {
	st := newStore(t, shared.endpoint)
	waiting := newReasons()
	cfg := st.config()
	cfg.Waiting = waiting.add
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.NetConf(ctx); done <- err }()
	waiting.next(t, func(reason string) bool { return reason != "" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
}

// A store that is out of reach is waited on, with its reason; it may come up later.
func TestStoreComesUp(t *testing.T) {
	st := network(t, net4)
	line := newLine(t, st.endpoint)
	line.cut()
	waiting := newReasons()
	cfg := st.config()
	cfg.Endpoints = []string{line.endpoint}
	cfg.Waiting = waiting.add
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := make(chan error, 1)
	go func() { _, err := s.NetConf(t.Context()); got <- err }()
	reason := waiting.next(t, func(reason string) bool { return reason != "" })
	if !strings.Contains(reason, line.endpoint) || !strings.Contains(reason, "connection refused") {
		t.Errorf("have %q", reason)
	}
	line.heal()
	if err := <-got; err != nil {
		t.Error(err)
	}
	waiting.next(t, func(reason string) bool { return reason == "" })
}

// Close ends what is under way, as often as it is called.
func TestClose(t *testing.T) {
	st := network(t, net4)
	s := st.source(st.config())
	st.acquire(s, claim(1))
	r := st.run(s)
	r.until("a snapshot", func(control.Snapshot) bool { return true })
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := r.ended(); !errors.Is(err, errClosed) {
		t.Errorf("have %v", err)
	}
	if _, err := s.Acquire(t.Context(), claim(1)); !errors.Is(err, errClosed) {
		t.Errorf("have %v", err)
	}
	if _, err := s.NetConf(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("have %v", err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
}

// A lease lives on while the agent does, and lapses after it.
func TestRenewal(t *testing.T) {
	st := network(t, net4)
	cfg := st.config()
	cfg.ttl = 2 * time.Second
	cfg.RenewMargin = time.Second
	s := st.source(cfg)
	got := st.acquire(s, claim(1))
	first := st.all()["subnets/"+got.Host]
	watch := st.Watch(t.Context(), st.prefix+"/subnets", clientv3.WithPrefix(), clientv3.WithRev(first.changed+1))
	r := st.run(s)
	r.until("a snapshot", func(control.Snapshot) bool { return true })
	// Another lease of the same length that nobody renews shows that time has passed, twice.
	for range 2 {
		granted, err := st.Grant(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		st.put("subnets/10.244.250.0-24", value4(250), clientv3.WithLease(granted.ID))
		for gone := false; !gone; {
			for _, event := range (<-watch).Events {
				if string(event.Kv.Key) == st.prefix+"/subnets/"+got.Host {
					t.Fatalf("the own lease was written or has lapsed: %v", event)
				}
				gone = event.Type == clientv3.EventTypeDelete
			}
		}
	}
	if now := st.all()["subnets/"+got.Host]; now != first {
		t.Errorf("have %+v, want %+v", now, first)
	}
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	event := (<-watch).Events[0]
	if event.Type != clientv3.EventTypeDelete || !strings.HasSuffix(string(event.Kv.Key), got.Host) {
		t.Errorf("have %v", event)
	}
}

func TestRenewAt(t *testing.T) {
	for _, test := range []struct{ ttl, margin, want time.Duration }{
		{24 * time.Hour, time.Hour, 8 * time.Hour},
		{24 * time.Hour, 23 * time.Hour, time.Hour},
		{time.Minute, time.Hour, 20 * time.Second}, // an etcd lease of someone else's making
	} {
		now := time.Now()
		s := &Source{cfg: Config{RenewMargin: test.margin}, own: &holding{etcd: 1, ttl: test.ttl, renewed: now}}
		if have := s.renewAt().Sub(now); have != test.want {
			t.Errorf("%+v: have %v", test, have)
		}
	}
}

// While etcd is out of reach, tend says so and comes back soon, but not at once.
func TestTendOutage(t *testing.T) {
	st := network(t, net4)
	line := newLine(t, st.endpoint)
	waiting := newReasons()
	cfg := st.config()
	cfg.Endpoints = []string{line.endpoint}
	cfg.Waiting = waiting.add
	s := st.source(cfg)
	st.acquire(s, claim(1))
	line.cut()
	for _, due := range []bool{false, true} {
		if due {
			s.own.renewed = time.Now().Add(-s.own.ttl)
		}
		if next, err := s.tend(t.Context()); err != nil || next != maxPause {
			t.Errorf("have %v, %v", next, err)
		}
	}
	waiting.next(t, func(reason string) bool { return strings.Contains(reason, "going on with the leases known so far") })
	line.heal()
	for {
		if next, err := s.tend(t.Context()); err != nil {
			t.Fatal(err)
		} else if next > maxPause {
			break
		}
	}
	waiting.next(t, func(reason string) bool { return reason == "" })
	st.expire(s.own.etcd)
	s.own.renewed = time.Now().Add(-s.own.ttl)
	if _, err := s.tend(t.Context()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("have %v", err)
	}
}

// TLS with a client certificate, with a CA alone, and without either.
func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	serverCert, serverKey := ca.issue("server")
	for _, wantClient := range []bool{false, true} {
		cfg := serverConfig(t.TempDir())
		secure := []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = secure, secure
		cfg.ClientTLSInfo = transport.TLSInfo{CertFile: serverCert, KeyFile: serverKey}
		if wantClient {
			cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = ca.file, true
		}
		srv, err := startServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range []struct {
			ca, client, works bool
		}{{true, true, true}, {true, false, !wantClient}, {false, false, false}} {
			source := Config{Endpoints: []string{srv.endpoint}, Prefix: "/p"}
			if test.ca {
				source.CAFile = ca.file
			}
			if test.client {
				source.CertFile, source.KeyFile = ca.issue("client")
			}
			reason := firstReason(t, source)
			if works := strings.Contains(reason, "no network configuration"); works != test.works {
				t.Errorf("%+v, client certificate wanted %v: %s", test, wantClient, reason)
			}
		}
		srv.stop()
	}
}

// firstReason is what a Source waits for, on a machine that may be slow.
func firstReason(t *testing.T, cfg Config) string {
	t.Helper()
	waiting := newReasons()
	cfg.Waiting = waiting.add
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := s.NetConf(t.Context()); done <- err }()
	reason := waiting.next(t, func(reason string) bool { return !strings.Contains(reason, "no answer within") })
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("have %v", err)
	}
	return reason
}

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.file, _ = a.sign("ca", a.cert)
	return a
}

func (a *authority) issue(name string) (certFile, keyFile string) {
	return a.sign(name, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

func (a *authority) sign(name string, cert *x509.Certificate) (certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.key == nil {
		a.key = key
	}
	signed, err := x509.CreateCertificate(rand.Reader, cert, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	files := []string{filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")}
	for i, block := range []*pem.Block{{Type: "CERTIFICATE", Bytes: signed}, {Type: "PRIVATE KEY", Bytes: encoded}} {
		if err := os.WriteFile(files[i], pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return files[0], files[1]
}

func TestTLSFiles(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, cfg := range map[string]Config{
		"holds no PEM certificate": {CAFile: empty},
		"read CertFile":            {CertFile: empty, KeyFile: empty},
	} {
		cfg.Endpoints, cfg.Prefix = []string{"https://127.0.0.1:1"}, "/p"
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("have %v, want %q", err, want)
		}
	}
}

// guarded is a server that asks for a password: its store is root's, and user
// "host" may do no more than a flanneld has to.
func guarded(t *testing.T) (*store, Config) {
	t.Helper()
	srv := ownServer(t)
	st := newStore(t, srv.endpoint)
	st.put("config", net4)
	ctx := t.Context()
	for _, step := range []func() error{
		func() error { _, err := st.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := st.RoleAdd(ctx, "root"); return err },
		func() error { _, err := st.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := st.UserAdd(ctx, "host", "secret"); return err },
		func() error { _, err := st.RoleAdd(ctx, "host"); return err },
		func() error {
			_, err := st.RoleGrantPermission(ctx, "host", st.prefix+"/config", "", clientv3.PermissionType(clientv3.PermRead))
			return err
		},
		func() error { return st.allow(clientv3.PermissionType(clientv3.PermReadWrite)) },
		func() error { _, err := st.UserGrantRole(ctx, "host", "host"); return err },
		func() error { _, err := st.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.endpoint}, Username: "root", Password: "secret", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	st.Client = root
	cfg := st.config()
	cfg.Username, cfg.Password = "host", "secret"
	return st, cfg
}

// allow sets what "host" may do with subnets.
func (st *store) allow(what clientv3.PermissionType) error {
	key := st.prefix + "/subnets"
	_, err := st.RoleGrantPermission(st.t.Context(), "host", key, clientv3.GetPrefixRangeEnd(key), what)
	return err
}

// A user name and password are used, and a wrong one is waited on.
func TestPassword(t *testing.T) {
	st, cfg := guarded(t)
	s := st.source(cfg)
	st.acquire(s, claim(1))
	r := st.run(s)
	r.until("the own lease", func(s control.Snapshot) bool { return len(s.Leases) == 1 })
	for want, change := range map[string]func(*Config){
		"invalid user ID or password": func(c *Config) { c.Password = "wrong" },
		"user name is empty":          func(c *Config) { c.Username, c.Password = "", "" },
	} {
		bad := cfg
		change(&bad)
		if reason := firstReason(t, bad); !strings.Contains(reason, want) {
			t.Errorf("have %q, want %q", reason, want)
		}
	}
}

// An etcd that takes no writes keeps nobody from hearing of the others.
func TestRunReadOnly(t *testing.T) {
	st, cfg := guarded(t)
	waiting := newReasons()
	cfg.Waiting = waiting.add
	s := st.source(cfg)
	own := st.acquire(s, claim(1)).Host
	if err := st.allow(clientv3.PermissionType(clientv3.PermRead)); err != nil {
		t.Fatal(err)
	}
	st.delete("subnets/" + own)
	table, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.settle(t.Context(), table); err != nil || s.nextUpkeep() < maxPause/2 {
		t.Errorf("have %v, next upkeep in %v", err, s.nextUpkeep())
	}
	r := st.run(s)
	reason := waiting.next(t, func(reason string) bool { return reason != "" })
	if !strings.Contains(reason, "put right own lease in etcd") || !strings.Contains(reason, "permission denied") {
		t.Errorf("have %q", reason)
	}
	st.put("subnets/10.244.250.0-24", value4(2))
	r.until("a peer", func(s control.Snapshot) bool { return slices.Equal(hosts(s), []string{"10.244.250.0-24"}) })
	if err := st.allow(clientv3.PermissionType(clientv3.PermReadWrite)); err != nil {
		t.Fatal(err)
	}
	r.until("the own lease", has(own))
	waiting.next(t, func(reason string) bool { return reason == "" })
}
