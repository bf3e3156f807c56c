// Package etcd keeps leases in etcd v3 under flannel's keys, so that weft hosts
// and flanneld hosts see each other. It must never write a key under the
// network's subnets that is not a whole, valid lease: one bad key makes every
// flanneld of the network drop all its peers.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/status"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
)

// Config is everything a Source is made of.
type Config struct {
	// Endpoints are URLs of one scheme, or host:port for http.
	Endpoints []string
	Prefix    string // where the network's keys are, as in /coreos.com/network
	// KeyFile and CertFile authenticate this host and are read again for every
	// connection; CAFile vouches for the servers. Each may be empty; https
	// without CAFile trusts the system's roots.
	KeyFile, CertFile, CAFile string
	Username, Password        string
	// RenewMargin is how long before its expiry a lease is renewed at the
	// latest: more than zero and less than the 24 hours a lease lives.
	RenewMargin time.Duration
	// Previous are the subnets this host had before, to be had again if they are free.
	Previous []netip.Prefix
	// PublicIPs are all addresses this host may publish: those the user set, or
	// its own. Recall looks for leases of theirs.
	PublicIPs []netip.Addr
	Logger    *slog.Logger
	// Waiting is told why nothing goes on at the moment, and "" once it does.
	Waiting func(reason string)

	ttl time.Duration // of a lease; 0: leaseTTL
}

// String leaves the password out.
func (c Config) String() string {
	return fmt.Sprintf("etcd %s, prefix %s", strings.Join(c.Endpoints, ","), c.Prefix)
}

// GoString leaves the password out.
func (c Config) GoString() string { return c.String() }

// LogValue leaves the password out.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

const (
	leaseTTL       = 24 * time.Hour // flannel's
	defaultMargin  = time.Hour      // flannel's
	requestTimeout = 5 * time.Second
	minPause       = 100 * time.Millisecond
	maxPause       = 5 * time.Second
)

// Source is one host's view of the leases in etcd. NetConf comes first, then
// Recall and Acquire, then Run; only Move, Ready and Close may be called meanwhile.
type Source struct {
	cfg     Config
	client  clientv3.Config
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	network netconf.Config
	dir     string // where the leases of this network are, relative to Prefix
	reason  string // last told to cfg.Waiting
	own     *holding
	moves   chan move // the latest only

	mu   sync.Mutex
	conn *clientv3.Client
}

// New checks cfg. It does not talk to etcd.
func New(cfg Config) (*Source, error) {
	if cfg.Prefix == "" {
		return nil, errors.New("etcd: Prefix is empty; set it, as in /coreos.com/network")
	}
	if cfg.ttl == 0 {
		cfg.ttl = leaseTTL
	}
	if cfg.RenewMargin == 0 {
		cfg.RenewMargin = min(defaultMargin, cfg.ttl/2)
	}
	if cfg.RenewMargin < 0 || cfg.RenewMargin >= cfg.ttl {
		return nil, fmt.Errorf("etcd: RenewMargin is %v; allowed: more than 0 and less than %v", cfg.RenewMargin, cfg.ttl)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Waiting == nil {
		cfg.Waiting = func(string) {}
	}
	secure, err := checkEndpoints(cfg.Endpoints)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	tlsConfig, err := makeTLS(cfg, secure)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	if !secure && (cfg.Password != "" || cfg.KeyFile != "" || cfg.CAFile != "") {
		cfg.Logger.Warn("etcd is spoken to in clear, certificates are not used; make the endpoints https:// to change that")
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Source{cfg: cfg, ctx: ctx, cancel: cancel, moves: make(chan move, 1), client: clientv3.Config{
		Endpoints: cfg.Endpoints, TLS: tlsConfig, Username: cfg.Username, Password: cfg.Password,
		Context: ctx, DialTimeout: requestTimeout,
		// A connection that died in silence is noticed within half a minute.
		DialKeepAliveTime: 20 * time.Second, DialKeepAliveTimeout: 10 * time.Second,
		// Retries are ours: those of the client hide the reason. The second try is
		// for a login token that has expired.
		MaxUnaryRetries: 2,
		DialOptions:     dialOptions(),
		Logger:          zap.NewNop(),
	}}, nil
}

// dialOptions make requests fail at once, with the reason, while there is no
// connection, and connections come back soon after a long outage.
func dialOptions() []grpc.DialOption {
	failFast := func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		return invoke(ctx, method, req, reply, conn, append(slices.Clip(options), grpc.WaitForReady(false))...)
	}
	retry := grpcbackoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = minPause, maxPause
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(failFast),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: requestTimeout}),
	}
}

// Close ends the connection; every call that is under way fails.
func (s *Source) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	if errors.Is(err, context.Canceled) {
		return nil // by our own cancel
	}
	return err
}

// Ready has nothing to tell etcd: a lease is all there is.
func (s *Source) Ready(context.Context) error { return nil }

// connect returns the client, which it makes on first use because making it
// logs in.
func (s *Source) connect() (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, errClosed
	}
	if s.conn == nil {
		conn, err := clientv3.New(s.client)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

var errClosed = errors.New("closed")

// ask makes one request, bounded in time.
func (s *Source) ask(ctx context.Context, request func(ctx context.Context, client *clientv3.Client) error) error {
	client, err := s.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return request(ctx, client)
}

// insist makes a request until it succeeds, and says why it does not. Its only
// errors are the end of ctx and Close.
func (s *Source) insist(ctx context.Context, what string, request func(ctx context.Context, client *clientv3.Client) error) error {
	var pause backoff
	for {
		err := s.ask(ctx, request)
		if err == nil {
			return nil
		}
		if err := s.stopped(ctx); err != nil {
			return err
		}
		s.waiting(s.explain(what, err))
		if err := pause.wait(ctx, s.ctx); err != nil {
			return err
		}
	}
}

// stopped returns why nothing more should be tried.
func (s *Source) stopped(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.ctx.Err() != nil {
		return errClosed
	}
	return nil
}

func (s *Source) explain(what string, err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", requestTimeout)
	} else if answer, ok := status.FromError(err); ok {
		err = errors.New(answer.Message())
	}
	return fmt.Sprintf("%s in etcd at %s: %v", what, strings.Join(s.cfg.Endpoints, ","), err)
}

func (s *Source) waiting(reason string) {
	if reason != s.reason {
		s.reason = reason
		s.cfg.Waiting(reason)
	}
}

// key is the absolute key of one relative to the prefix.
func (s *Source) key(relative string) string { return path.Join(s.cfg.Prefix, relative) }

// NetConf returns the network's configuration. While it is missing, malformed
// or out of reach it waits, says so, and looks again when it changes.
func (s *Source) NetConf(ctx context.Context) (netconf.Config, error) {
	key := s.key(lease.ConfigKey)
	var pause backoff
	for {
		var got *clientv3.GetResponse
		err := s.insist(ctx, "read "+key, func(ctx context.Context, client *clientv3.Client) (err error) {
			got, err = client.Get(ctx, key)
			return err
		})
		if err != nil {
			return netconf.Config{}, fmt.Errorf("read %s: %w", key, err)
		}
		if len(got.Kvs) == 0 {
			s.waiting(fmt.Sprintf(`no network configuration in etcd: write net-conf.json to %s with the v3 API, as in {"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, key))
		} else if config, err := netconf.Parse(got.Kvs[0].Value); err != nil {
			s.waiting(fmt.Sprintf("unusable network configuration in etcd at %s: %v", key, err))
		} else {
			s.network, s.dir = config, lease.Dir(config.Networks())
			s.waiting("")
			return config, nil
		}
		if s.awaitChange(ctx, key, got.Header.Revision) {
			pause.reset()
		}
		if err := pause.wait(ctx, s.ctx); err != nil {
			return netconf.Config{}, fmt.Errorf("read %s: %w", key, err)
		}
	}
}

// awaitChange waits until a key may have changed after revision, and tells
// whether it has.
func (s *Source) awaitChange(ctx context.Context, key string, revision int64) bool {
	client, err := s.connect()
	if err != nil {
		return false
	}
	// A watch that went deaf costs no more than this.
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), 30*time.Second)
	defer cancel()
	response, ok := <-client.Watch(ctx, key, clientv3.WithRev(revision+1))
	return ok && response.Err() == nil
}

// Recall returns the MACs and keys in the lease of this host, if there is one: an
// address of Config.PublicIPs has published it. It waits while etcd is out of
// reach.
func (s *Source) Recall(ctx context.Context) (control.Recall, error) {
	table, err := s.list(ctx)
	if err != nil {
		return control.Recall{}, fmt.Errorf("recall lease: %w", err)
	}
	s.waiting("")
	if own := table.publishedBy(s.cfg.PublicIPs, s.cfg.Previous); len(own) > 0 {
		return control.Recall{MACs: own[0].value.MACs(), Keys: own[0].value.Keys()}, nil
	}
	return control.Recall{}, nil
}
