//go:build e2e

package cluster

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/kube"
	"github.com/weft-net/weft/tunnel"
)

// The names in deploy/weft.yaml.
var manifestAccount = Account{Namespace: "kube-weft", Name: "weft"}

// applyManifests applies what deploy ships.
func applyManifests(ctx context.Context, t *testing.T, c *Cluster, names ...string) {
	t.Helper()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join("../../deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Apply(ctx, data); err != nil {
			t.Fatal(err)
		}
	}
}

// host is one Source with the rights of a DaemonSet's pod, and what it was
// told.
type host struct {
	*kube.Source
	name string

	mu      sync.Mutex
	latest  control.Snapshot
	count   int
	reasons []string
	news    chan struct{}
}

// newHost makes the Source of a Node.
func newHost(ctx context.Context, t *testing.T, c *Cluster, name, netConf string) *host {
	t.Helper()
	dir := t.TempDir()
	account := manifestAccount
	account.Node = name
	if err := c.AccountKubeconfig(ctx, account, filepath.Join(dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "net-conf.json"), []byte(netConf), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &host{name: name, news: make(chan struct{})}
	source, err := kube.New(kube.Config{
		Kubeconfig: filepath.Join(dir, "kubeconfig"), NodeName: name, NetConfPath: filepath.Join(dir, "net-conf.json"),
		SetNetworkUnavailable: true, Logger: slog.New(slog.DiscardHandler), Waiting: h.waiting,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.Source = source
	t.Cleanup(func() { h.Close() })
	return h
}

func (h *host) waiting(reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reasons = append(h.reasons, reason)
	h.tell()
}

func (h *host) deliver(snapshot control.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.latest = snapshot
	h.count++
	h.tell()
}

func (h *host) tell() {
	close(h.news)
	h.news = make(chan struct{})
}

// join goes through what an agent does, and follows the leases until the test
// ends.
func (h *host) join(ctx context.Context, t *testing.T, claim control.Claim) control.Lease {
	t.Helper()
	if _, err := h.NetConf(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Recall(ctx); err != nil {
		t.Fatal(err)
	}
	lease, err := h.Acquire(ctx, claim)
	if err != nil {
		t.Fatal(err)
	}
	h.follow(ctx, t)
	return lease
}

// follow runs the Source until the test ends.
func (h *host) follow(ctx context.Context, t *testing.T) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx, h.deliver) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

// await waits until good holds, which it asks with h.mu held.
func (h *host) await(ctx context.Context, t *testing.T, what string, good func() bool) {
	t.Helper()
	for {
		h.mu.Lock()
		done, news := good(), h.news
		h.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ctx.Done():
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("%s still waits for %s; it has %+v and was told %q", h.name, what, h.latest, h.reasons)
		case <-news:
		}
	}
}

// reason is what the host was told last of why it waits. h.mu must be held.
func (h *host) reason() string {
	if len(h.reasons) == 0 {
		return ""
	}
	return h.reasons[len(h.reasons)-1]
}

// hosts are the names in the latest Snapshot. h.mu must be held.
func (h *host) hosts() string {
	var names []string
	for _, lease := range h.latest.Leases {
		names = append(names, lease.Host)
	}
	return strings.Join(names, " ")
}

const (
	netConf4 = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`
	netConf6 = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}`
	netConf2 = `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}`
)

// claimOf is a claim of the host with the number n.
func claimOf(name string, n byte, networks ...string) control.Claim {
	claim := control.Claim{Host: name, Backend: "vxlan"}
	for _, network := range networks {
		leg := control.Leg{PublicIP: netip.AddrFrom4([4]byte{192, 168, 7, n}), MAC: tunnel.MAC{2, 0, 0, 0, 4, n}, VNI: 1}
		if netip.MustParsePrefix(network).Addr().Is6() {
			leg.PublicIP, leg.MAC = netip.AddrFrom16([16]byte{0xfd, 0x77, 15: n}), tunnel.MAC{2, 0, 0, 0, 6, n}
		}
		claim.Legs = append(claim.Legs, leg)
	}
	return claim
}

// TestSource runs two Sources with the rights of the manifest through joining,
// loss and an outage, in every mix of families.
func TestSource(t *testing.T) {
	tests := []struct {
		name, netConf string
		networks      []string
	}{
		{"v4", netConf4, []string{"10.244.0.0/16"}},
		{"v6", netConf6, []string{"fd00:10:244::/56"}},
		{"dual", netConf2, []string{"10.244.0.0/16", "fd00:10:244::/56"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, c := startForTest(t, test.networks...)
			applyManifests(ctx, t, c, "weft.yaml", "admission.yaml")
			for _, name := range []string{"a", "b", "stranger"} {
				if err := c.AddNode(ctx, name); err != nil {
					t.Fatal(err)
				}
			}
			a, b := newHost(ctx, t, c, "a", test.netConf), newHost(ctx, t, c, "b", test.netConf)
			claimA := claimOf("a", 1, test.networks...)
			claimA.Offers.VXLAN.RemoteChecksum = true
			leaseA := a.join(ctx, t, claimA)
			leaseB := b.join(ctx, t, claimOf("b", 2, test.networks...))
			both := func(h *host) func() bool {
				return func() bool {
					return len(h.latest.Leases) == 2 && slices.Equal(h.latest.Leases[0].Legs, leaseA.Legs) && slices.Equal(h.latest.Leases[1].Legs, leaseB.Legs) &&
						h.latest.Leases[0].Offers == claimA.Offers && h.latest.Leases[1].Offers == control.Offers{}
				}
			}
			a.await(ctx, t, "both leases", both(a))
			b.await(ctx, t, "both leases", both(b))
			wantLegs(ctx, t, c, leaseA, claimA)

			checkReasserts(ctx, t, c, a)
			checkReady(ctx, t, c, b)

			if err := c.StopAPIServer(); err != nil {
				t.Fatal(err)
			}
			a.await(ctx, t, "the outage", func() bool { return strings.Contains(a.reason(), "no answer from the API server") })
			if err := c.StartAPIServer(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteNode(ctx, "b"); err != nil {
				t.Fatal(err)
			}
			a.await(ctx, t, "b to be gone", func() bool { return a.hosts() == "a" && a.reason() == "" })
		})
	}
}

// wantLegs checks a lease against the Node and the claim.
func wantLegs(ctx context.Context, t *testing.T, c *Cluster, lease control.Lease, claim control.Claim) {
	t.Helper()
	cidrs, err := c.PodCIDRs(ctx, lease.Host)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(claim.Legs)
	for i := range want {
		want[i].Subnet = cidrs[i]
	}
	if !slices.Equal(lease.Legs, want) {
		t.Errorf("legs of %s are %+v, want %+v", lease.Host, lease.Legs, want)
	}
}

// nodeState is what the tests look at of a Node.
type nodeState struct {
	Metadata struct{ Annotations map[string]string }
	Status   struct {
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

func getNode(ctx context.Context, t *testing.T, c *Cluster, name string) nodeState {
	t.Helper()
	var node nodeState
	if err := c.Request(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &node); err != nil {
		t.Fatal(err)
	}
	return node
}

// checkReasserts strips the annotations of h's Node and expects them back.
func checkReasserts(ctx context.Context, t *testing.T, c *Cluster, h *host) {
	t.Helper()
	before := getNode(ctx, t, c, h.name).Metadata.Annotations
	stripped := map[string]any{}
	for name := range before {
		stripped[name] = nil
	}
	if err := c.Request(ctx, http.MethodPatch, "/api/v1/nodes/"+h.name, map[string]any{"metadata": map[string]any{"annotations": stripped}}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "annotations of "+h.name+" as they were", func() bool {
		return maps.Equal(getNode(ctx, t, c, h.name).Metadata.Annotations, before)
	})
}

// eventually asks the API server until good holds.
func eventually(ctx context.Context, t *testing.T, what string, good func() bool) {
	t.Helper()
	for !good() {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			t.Fatalf("still waiting for %s: %v", what, err)
		}
	}
}

// checkReady expects the condition, also after something has set it back.
func checkReady(ctx context.Context, t *testing.T, c *Cluster, h *host) {
	t.Helper()
	if err := h.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	set := func() bool {
		for _, condition := range getNode(ctx, t, c, h.name).Status.Conditions {
			if condition.Type == "NetworkUnavailable" {
				return condition.Status == "False" && condition.Reason == "FlannelIsUp" && condition.Message == "Flannel is running on this node"
			}
		}
		return false
	}
	eventually(ctx, t, "the condition", set)
	back := map[string]any{"status": map[string]any{"conditions": []map[string]any{{"type": "NetworkUnavailable", "status": "True", "reason": "Test", "message": "set back"}}}}
	if err := c.Request(ctx, http.MethodPatch, "/api/v1/nodes/"+h.name+"/status", back, nil); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "the condition once more", set)
}

// TestAdmission holds that an agent's token is good for its own Node alone, and
// there for nothing but what weft writes.
func TestAdmission(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	applyManifests(ctx, t, c, "weft.yaml", "admission.yaml")
	for _, name := range []string{"a", "b"} {
		if err := c.AddNode(ctx, name, netip.MustParseAddr("192.168.7.1")); err != nil {
			t.Fatal(err)
		}
	}
	agent := *c
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.AccountKubeconfig(ctx, Account{Namespace: "kube-weft", Name: "weft", Node: "a"}, path); err != nil {
		t.Fatal(err)
	}
	agent.admin = tokenIn(t, path)
	type object = map[string]any
	annotate := func(name string, value any) object {
		return object{"metadata": object{"annotations": object{name: value}}}
	}
	condition := func(kind string) object {
		return object{"status": object{"conditions": []object{
			{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "no kubelet here"},
			{"type": kind, "status": "False", "reason": "x", "message": "y"},
		}}}
	}
	tests := []struct {
		name, node string
		patch      object
		refusal    string // empty: allowed
	}{
		{"another Node", "b", annotate("flannel.alpha.coreos.com/public-ip", "192.168.7.66"), "only the Node it runs on"},
		{"own Node", "a", annotate("flannel.alpha.coreos.com/public-ip", "192.168.7.1"), ""},
		{"own offers", "a", annotate("flannel.alpha.coreos.com/weft-offers", `{"version":1}`), ""},
		{"own offers taken away", "a", annotate("flannel.alpha.coreos.com/weft-offers", nil), ""},
		{"another's offers", "b", annotate("flannel.alpha.coreos.com/weft-offers", `{"version":1}`), "only the Node it runs on"},
		{"foreign annotation", "a", annotate("example.com/x", "y"), "only annotations under its prefix"},
		{"labels", "a", object{"metadata": object{"labels": object{"node-role.kubernetes.io/control-plane": ""}}}, "labels"},
		{"own condition", "a", condition("NetworkUnavailable"), ""},
		{"foreign condition", "a", condition("DiskPressure"), "only the condition NetworkUnavailable"},
		{"addresses", "a", object{"status": object{"addresses": []object{{"type": "InternalIP", "address": "192.168.7.66"}}}}, "addresses"},
		{"capacity", "a", object{"status": object{"capacity": object{"pods": "1000"}}}, "capacity"},
	}
	send := func(node string, patch object) error {
		return agent.Request(ctx, http.MethodPatch, "/api/v1/nodes/"+node+"/status", patch, nil)
	}
	// The policy works a little after it has been made.
	eventually(ctx, t, "the policy", func() bool {
		err := send("b", tests[0].patch)
		return err != nil && strings.Contains(err.Error(), "weft agent")
	})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := send(test.node, test.patch)
			if test.refusal == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if test.refusal != "" && (err == nil || !strings.Contains(err.Error(), test.refusal)) {
				t.Errorf("%v, want a refusal with %q", err, test.refusal)
			}
		})
	}
	if err := c.Request(ctx, http.MethodPatch, "/api/v1/nodes/b/status", annotate("example.com/x", "y"), nil); err != nil {
		t.Errorf("the policy hits others too: %v", err)
	}
	for verb, path := range map[string]string{
		http.MethodDelete: "/api/v1/nodes/a", http.MethodPatch: "/api/v1/nodes/a", http.MethodGet: "/api/v1/pods",
	} {
		var refused *StatusError
		if err := agent.Request(ctx, verb, path, object{}, nil); !errors.As(err, &refused) || refused.Code != http.StatusForbidden {
			t.Errorf("%s %s: %v, want 403", verb, path, err)
		}
	}
}

// TestDaemonSet holds that every Linux node gets a pod, whatever its taints.
func TestDaemonSet(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	applyManifests(ctx, t, c, "weft.yaml")
	type object = map[string]any
	for _, name := range []string{"a", "tainted"} {
		if err := c.AddNode(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	taints := object{"spec": object{"taints": []object{
		{"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"}, {"key": "x", "effect": "NoExecute"},
	}}}
	if err := c.Request(ctx, http.MethodPatch, "/api/v1/nodes/tainted", taints, nil); err != nil {
		t.Fatal(err)
	}
	eventually(ctx, t, "two pods", func() bool {
		var pods struct {
			Items []struct{ Metadata struct{ Name string } }
		}
		if err := c.Request(ctx, http.MethodGet, "/api/v1/namespaces/kube-weft/pods", nil, &pods); err != nil {
			t.Fatal(err)
		}
		return len(pods.Items) == 2
	})
}
