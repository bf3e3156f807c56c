// Package kube keeps leases in Kubernetes Node objects, in flannel's form: the
// subnet is the Node's podCIDR, everything else an annotation. It is the only
// package that may import k8s.io. It must never write anything but the own
// Node's status and annotations, and never take silence of the API server for
// news. Invites for guests, machines that are no Kubernetes nodes, are made and
// revoked here too, by an administrator.
package kube

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/connrotation"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
)

// Config says where the API server is and which Node is this host's.
type Config struct {
	// Kubeconfig is a file; empty: the credentials every Pod is given. APIURL
	// replaces the server's address of either.
	Kubeconfig string
	APIURL     string
	// NodeName is this host's Node; if empty it is that of the Pod PodName in
	// PodNamespace.
	NodeName     string
	PodName      string
	PodNamespace string
	// Prefix of the annotations, as the user gave it; empty: flannel's.
	Prefix string
	// NetConfPath is the file that holds net-conf.json.
	NetConfPath string
	// Invite, if not nil, stands for all of the above: this host is a guest.
	Invite *Invite
	// Machine tells the machines apart that may come with one invite, for people
	// too; it is the same whenever this agent starts.
	Machine string
	// SetNetworkUnavailable lets Ready set the Node's NetworkUnavailable
	// condition to False.
	SetNetworkUnavailable bool

	Logger *slog.Logger
	// Waiting is told why nothing goes on, or why news is missing, whenever that
	// changes; the empty reason means that all is well again. It must not block.
	Waiting func(reason string)
}

// Source is the leases of one cluster, as seen from one Node. Its methods wait
// out an API server that cannot be reached, and return early only when ctx is
// done.
type Source struct {
	cfg    Config
	api    api
	prefix lease.Prefix
	nodes  *nodes
	wake   chan struct{} // a token: the own Node may need a patch
	// happenings are to be told as Events.
	happenings chan happening
	hold       hold // of a guest
	// recalls holds what the user has changed on the own Node, the latest only.
	recalls chan control.Recall
	// connections are all that lead to the API server.
	connections *connrotation.Dialer

	mu       sync.Mutex
	networks []netip.Prefix // from net-conf.json; nil before NetConf
	name     string         // of the own Node; empty while unknown
	own      own
	recalled control.Recall // as last told
	reasons  [topics]string
}

// New checks cfg and builds a client. It does not talk to the API server.
func New(cfg Config) (*Source, error) {
	if cfg.Invite != nil {
		cfg.NodeName, cfg.Prefix = cfg.Invite.Node, cfg.Invite.Prefix
		cfg.SetNetworkUnavailable = true
		if cfg.Machine == "" {
			return nil, errors.New("an invite needs the name of the machine that uses it")
		}
	}
	if cfg.Prefix == "" {
		cfg.Prefix = string(lease.DefaultPrefix)
	}
	prefix, err := lease.ParsePrefix(cfg.Prefix)
	if err != nil {
		return nil, fmt.Errorf("--kube-annotation-prefix: %w", err)
	}
	if cfg.NodeName == "" && (cfg.PodName == "" || cfg.PodNamespace == "") {
		return nil, errors.New("the name of this host's Node is unknown: set --node-name or NODE_NAME, or both POD_NAME and POD_NAMESPACE")
	}
	if cfg.Waiting == nil {
		cfg.Waiting = func(string) {}
	}
	routeClientLogs(cfg.Logger)
	config, err := restConfig(cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, prefix: prefix, name: cfg.NodeName, wake: make(chan struct{}, 1), happenings: make(chan happening, maxHappenings), recalls: make(chan control.Recall, 1)}
	s.connections = connrotation.NewDialer((&net.Dialer{Timeout: requestTimeout, KeepAlive: requestTimeout}).DialContext)
	config.Dial = s.connections.DialContext
	if cfg.Invite != nil {
		s.hold.identity, s.hold.invite = cfg.Machine+"/"+strings.ToLower(crand.Text()[:8]), *cfg.Invite
		config.BearerToken = ""
		config.Wrap(func(next http.RoundTripper) http.RoundTripper { return guestTransport{next, &s.hold} })
	}
	if s.api, err = newAPI(config); err != nil {
		return nil, err
	}
	s.nodes = newNodes(prefix, s.poke)
	return s, nil
}

// Close closes idle connections. It may be called more than once.
func (s *Source) Close() error {
	s.api.close()
	return nil
}

// NetConf waits until the file holds a valid network configuration. That of a
// guest came with the invite.
func (s *Source) NetConf(ctx context.Context) (netconf.Config, error) {
	var config netconf.Config
	err := s.retry(ctx, topicNetConf, func(context.Context) (err error) {
		if s.cfg.Invite != nil {
			config, err = netconf.Parse(s.cfg.Invite.NetConf)
			return err
		}
		config, err = readNetConf(s.cfg.NetConfPath)
		return err
	})
	if err != nil {
		return netconf.Config{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks = config.Networks()
	return config, nil
}

func readNetConf(path string) (netconf.Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return netconf.Config{}, fmt.Errorf("read network configuration: %w", err)
	}
	config, err := netconf.Parse(data)
	if err != nil {
		return netconf.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

// NodeName returns the name of the own Node, looking up the Pod's if need be.
func (s *Source) NodeName(ctx context.Context) (string, error) {
	s.mu.Lock()
	name := s.name
	s.mu.Unlock()
	if name != "" {
		return name, nil
	}
	err := s.retry(ctx, topicOwn, func(ctx context.Context) error {
		pod, err := s.api.pod(ctx, s.cfg.PodNamespace, s.cfg.PodName)
		if err != nil {
			return err
		}
		if name = pod.Spec.NodeName; name == "" {
			return fmt.Errorf("Pod %s/%s is not bound to a Node", s.cfg.PodNamespace, s.cfg.PodName)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
	return name, nil
}

// topic is one thing that can be waited for. Reasons are kept apart by topic:
// the end of one wait must not hide another.
type topic int

const (
	topicNetConf topic = iota
	topicWatch
	topicNodes
	topicOwn
	topicRecall
	topicServices
	topicHold
	topics
)

// waiting records why a topic makes no progress; empty: it does.
func (s *Source) waiting(about topic, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reasons[about] == reason {
		return
	}
	s.reasons[about] = reason
	var all []string
	for _, r := range s.reasons {
		if r != "" {
			all = append(all, r)
		}
	}
	s.cfg.Waiting(strings.Join(all, "; "))
}

// Limits of waiting. Five seconds keep thousands of hosts that wait for the
// same thing from being a burden.
const (
	firstRetry     = 250 * time.Millisecond
	lastRetry      = 5 * time.Second
	requestTimeout = 15 * time.Second
)

// retry calls attempt until it succeeds, ctx is done or a guest's time has come.
func (s *Source) retry(ctx context.Context, about topic, attempt func(context.Context) error) error {
	var last string
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		err := once(ctx, attempt)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = s.final(err)
		if err == nil {
			s.waiting(about, "")
			return nil
		}
		var end finalError
		if errors.As(err, &end) {
			return end
		}
		reason := plain(err)
		s.waiting(about, reason)
		if reason != last {
			last, wait = reason, firstRetry // something moves
		}
		if err := pause(ctx, delay(err, wait)); err != nil {
			return err
		}
	}
}

// plain words err so that the same trouble always reads the same: without the
// parameters of the request and the local port of the connection.
func plain(err error) string {
	text := err.Error()
	var request *url.Error
	if errors.As(err, &request) {
		text = "no answer from the API server: " + strings.Replace(text, request.Error(), request.Err.Error(), 1)
	}
	var operation *net.OpError
	if errors.As(err, &operation) {
		anyPort := *operation
		anyPort.Source = nil
		text = strings.Replace(text, operation.Error(), anyPort.Error(), 1)
	}
	return text
}

// delay is wait, or what the server asks for if that is longer.
func delay(err error, wait time.Duration) time.Duration {
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		return max(wait, time.Duration(seconds)*time.Second)
	}
	return wait
}

// once bounds one attempt in time.
func once(ctx context.Context, attempt func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return attempt(ctx)
}

// pause waits for d, spread by up to half more, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Recall waits for the own Node and returns what it says about this host.
func (s *Source) Recall(ctx context.Context) (control.Recall, error) {
	name, err := s.NodeName(ctx)
	if err != nil {
		return control.Recall{}, err
	}
	var recall control.Recall
	err = s.retry(ctx, topicOwn, func(ctx context.Context) error {
		node, err := s.api.node(ctx, name)
		if err != nil {
			return err
		}
		recall, err = recallOf(node, s.prefix)
		return err
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recalled = recall
	return recall, err
}
