package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dualNetConf = `{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}`

// newSource makes a Source of the Node "own" that talks to the server.
func newSource(t *testing.T, f *fakeServer, change func(*Config)) (*Source, *reasons) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(path, []byte(dualNetConf), 0o600); err != nil {
		t.Fatal(err)
	}
	why := newReasons()
	cfg := Config{
		APIURL: f.URL, NodeName: "own", NetConfPath: path, SetNetworkUnavailable: true,
		Logger: slog.New(slog.DiscardHandler), Waiting: why.Waiting,
	}
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, why
}

// newNode makes a Node that no agent has touched.
func newNode(name string, cidrs ...string) *corev1.Node {
	node := &corev1.Node{}
	node.Name = name
	node.Spec.PodCIDRs = cidrs
	if len(cidrs) > 0 {
		node.Spec.PodCIDR = cidrs[0]
	}
	return node
}

// newPeer makes the Node of a member with the number n, in both families.
func newPeer(name string, n byte) *corev1.Node {
	node := newNode(name, cidr4(n), cidr6(n))
	node.Annotations = map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true",
		"flannel.alpha.coreos.com/backend-type":        "vxlan",
		"flannel.alpha.coreos.com/backend-data":        `{"VNI":1,"VtepMAC":"` + mac(n).String() + `"}`,
		"flannel.alpha.coreos.com/backend-v6-data":     `{"VNI":1,"VtepMAC":"` + mac(n).String() + `"}`,
		"flannel.alpha.coreos.com/public-ip":           public4(n).String(),
		"flannel.alpha.coreos.com/public-ipv6":         public6(n).String(),
		"example.com/noise":                            "not ours",
	}
	return node
}

func cidr4(n byte) string {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, n, 0}), 24).String()
}
func cidr6(n byte) string       { return "fd00:10:244:" + string('0'+n) + "::/64" }
func public4(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 7, n}) }
func public6(n byte) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 15: n}) }
func mac(n byte) tunnel.MAC     { return tunnel.MAC{0x02, 0, 0, 0, 0, n} }

// peerLease is how newPeer reads.
func peerLease(name string, n byte) control.Lease {
	return control.Lease{Host: name, Backend: "vxlan", Legs: []control.Leg{
		{Subnet: netip.MustParsePrefix(cidr4(n)), PublicIP: public4(n), MAC: mac(n), VNI: 1},
		{Subnet: netip.MustParsePrefix(cidr6(n)), PublicIP: public6(n), MAC: mac(n), VNI: 1},
	}}
}

// dualClaim is what the host with number 1 publishes.
func dualClaim() control.Claim {
	return control.Claim{Host: "own", Backend: "vxlan", Legs: []control.Leg{
		{PublicIP: public4(1), MAC: mac(1), VNI: 1},
		{PublicIP: public6(1), MAC: mac(1), VNI: 1},
	}}
}

// checksums is what a host with the userspace engine offers, and its form.
var checksums = control.Offers{VXLAN: control.VXLANOffer{RemoteChecksum: true}}

const (
	offersName = "flannel.alpha.coreos.com/weft-offers"
	offersText = `{"version":1,"vxlan":{"remoteChecksum":true}}`
)

func sameLease(a, b control.Lease) bool {
	return a.Host == b.Host && a.Backend == b.Backend && slices.Equal(a.Legs, b.Legs) && a.Offers == b.Offers && slices.Equal(a.Problems, b.Problems)
}

// later runs do while the test waits for something else, and is done with it
// before the test ends.
func later(t *testing.T, do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	t.Cleanup(func() { <-done })
}

func TestNew(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"nowhere"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cfg  Config
		want string // in the error
	}{
		{"prefix", Config{APIURL: "http://127.0.0.1:1", NodeName: "a", Prefix: "no/two/slashes"}, "--kube-annotation-prefix"},
		{"no name", Config{APIURL: "http://127.0.0.1:1", PodName: "p"}, "NODE_NAME"},
		{"no server", Config{NodeName: "a"}, "--kubeconfig-file"},
		{"kubeconfig is missing", Config{NodeName: "a", Kubeconfig: kubeconfig + ".not"}, "--kubeconfig-file"},
		{"kubeconfig is incomplete", Config{NodeName: "a", Kubeconfig: kubeconfig}, "nowhere"},
		{"URL", Config{NodeName: "a", APIURL: "http://[::1"}, "::1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Logger = slog.New(slog.DiscardHandler)
			if _, err := New(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("New: %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestNetConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "net-conf.json")
	s, why := newSource(t, newFakeServer(t), func(cfg *Config) { cfg.NetConfPath = path })
	later(t, func() {
		why.await(t, "no such file")
		for _, step := range []struct{ text, reason string }{
			{`{"Network":"10.244.0.0/33"}`, "Network"},
			{`{`, "net-conf.json"},
			{dualNetConf, ""},
		} {
			if err := os.WriteFile(path, []byte(step.text), 0o600); err != nil {
				t.Error(err)
			}
			why.await(t, step.reason)
		}
	})
	config, err := s.NetConf(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Networks(); len(got) != 2 || got[0] != netip.MustParsePrefix("10.244.0.0/16") {
		t.Errorf("networks are %v", got)
	}
}

func TestNodeNameOfPod(t *testing.T) {
	f := newFakeServer(t)
	s, why := newSource(t, f, func(cfg *Config) { cfg.NodeName, cfg.PodName, cfg.PodNamespace = "", "weft-x", "kube-weft" })
	later(t, func() {
		why.await(t, "get Pod kube-weft/weft-x")
		f.change(func() { f.pods["kube-weft/weft-x"] = &corev1.Pod{} })
		why.await(t, "not bound")
		f.change(func() { f.pods["kube-weft/weft-x"] = &corev1.Pod{Spec: corev1.PodSpec{NodeName: "own"}} })
	})
	if name, err := s.NodeName(t.Context()); name != "own" || err != nil {
		t.Errorf("NodeName: %q, %v", name, err)
	}
}

func TestRecall(t *testing.T) {
	f := newFakeServer(t)
	s, why := newSource(t, f, nil)
	node := newPeer("own", 1)
	node.Annotations["flannel.alpha.coreos.com/node-public-ip"] = "nonsense"
	node.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: "own"},
		{Type: corev1.NodeInternalIP, Address: "not an address"},
		{Type: corev1.NodeInternalIP, Address: "192.168.7.1"},
		{Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
		{Type: corev1.NodeInternalIP, Address: "fd77::1"},
	}
	later(t, func() {
		why.await(t, `there is no Node "own"`)
		f.set(node)
		why.await(t, "node-public-ip")
		f.edit("own", func(n *corev1.Node) {
			n.Annotations["flannel.alpha.coreos.com/node-public-ip"] = "203.0.113.7"
			delete(n.Annotations, "flannel.alpha.coreos.com/backend-v6-data")
			n.Annotations["flannel.alpha.coreos.com/weft-offers"] = `{"version":1,"wireguard":{"key":"` + tunnel.PublicKey{7}.String() + `","port":51820}}`
		})
	})
	recall, err := s.Recall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []tunnel.MAC{mac(1), {}}; !slices.Equal(recall.MACs, want) {
		t.Errorf("MACs are %v, want %v", recall.MACs, want)
	}
	if want := []netip.Addr{public4(1), public6(1)}; !slices.Equal(recall.InternalIP, want) {
		t.Errorf("internal IPs are %v, want %v", recall.InternalIP, want)
	}
	if want := []netip.Addr{netip.MustParseAddr("203.0.113.7")}; !slices.Equal(recall.PublicIP, want) {
		t.Errorf("public IPs are %v, want %v", recall.PublicIP, want)
	}
	if want := (tunnel.WireGuardKeys{{7}}); recall.Keys != want {
		t.Errorf("keys are %v, want %v", recall.Keys, want)
	}
}

// TestRecallWithSlashPrefix: flannel builds the name of the annotation it
// recalls its MAC from without the "-" that its prefix rule adds (bug 15).
func TestRecallWithSlashPrefix(t *testing.T) {
	f := newFakeServer(t)
	s, _ := newSource(t, f, func(cfg *Config) { cfg.Prefix = "example.com/net" })
	node := newNode("own", cidr4(1))
	node.Annotations = map[string]string{"example.com/net-backend-data": `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`}
	f.set(node)
	recall, err := s.Recall(t.Context())
	if err != nil || recall.MACs[0] != mac(1) {
		t.Errorf("MACs are %v (%v), want %v first", recall.MACs, err, mac(1))
	}
	if s.prefix != lease.Prefix("example.com/net-") {
		t.Errorf("prefix is %q", s.prefix)
	}
}

// TestStopsWhileDown holds that a Source waiting for a dead API server hears
// of ctx, whatever it is doing.
func TestStopsWhileDown(t *testing.T) {
	calls := map[string]func(*Source, context.Context) error{
		"Recall":  func(s *Source, ctx context.Context) error { _, err := s.Recall(ctx); return err },
		"Acquire": func(s *Source, ctx context.Context) error { _, err := s.Acquire(ctx, dualClaim()); return err },
		"Run":     func(s *Source, ctx context.Context) error { return s.Run(ctx, func(control.Snapshot) {}) },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			s, why := newSource(t, f, nil)
			f.Close() // connections are refused from now on
			ctx, cancel := context.WithCancel(t.Context())
			later(t, func() {
				why.await(t, "connection refused")
				cancel()
			})
			if err := call(s, ctx); err == nil || ctx.Err() == nil {
				t.Errorf("%s: %v, want it to end with ctx", name, err)
			}
		})
	}
}

// TestReasonsRepeatAlike holds that one outage has one wording: the reason is
// logged whenever it changes.
func TestReasonsRepeatAlike(t *testing.T) {
	refused := func(local, query string) error {
		operation := &net.OpError{
			Op: "read", Net: "tcp", Err: syscall.ECONNRESET,
			Source: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(local)), Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.0.0.1:6443")),
		}
		return fmt.Errorf("watch Nodes: %w", &url.Error{Op: "Get", URL: "https://10.0.0.1:6443/api/v1/nodes?" + query, Err: operation})
	}
	a, b := plain(refused("10.0.0.2:1111", "timeoutSeconds=1")), plain(refused("10.0.0.2:2222", "timeoutSeconds=2"))
	if want := "no answer from the API server: watch Nodes: read tcp 10.0.0.1:6443: connection reset by peer"; a != want || b != want {
		t.Errorf("reasons are %q and %q, want %q", a, b, want)
	}
}
