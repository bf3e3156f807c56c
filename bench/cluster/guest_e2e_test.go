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
	"testing"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/kube"
)

// newAdmin is whoever a kubeconfig is of, as `weft invite` would be run by him.
func newAdmin(t *testing.T, kubeconfig string) *kube.Admin {
	t.Helper()
	admin, err := kube.NewAdmin(kube.AdminConfig{Kubeconfig: kubeconfig, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	return admin
}

// invited makes an invite, by way of its file.
func invited(ctx context.Context, t *testing.T, admin *kube.Admin, request kube.InviteRequest) kube.Invite {
	t.Helper()
	made, notes, err := admin.Invite(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %q", request.Name, notes)
	data, err := made.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "invite")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	invite, err := kube.LoadInvite(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return invite
}

// newGuestHost makes the Source of a guest on a machine.
func newGuestHost(t *testing.T, invite kube.Invite, machine string) *host {
	t.Helper()
	h := &host{name: invite.Node, news: make(chan struct{})}
	source, err := kube.New(kube.Config{Invite: &invite, Machine: machine, Logger: slog.New(slog.DiscardHandler), Waiting: h.waiting})
	if err != nil {
		t.Fatal(err)
	}
	h.Source = source
	t.Cleanup(func() { h.Close() })
	return h
}

// run joins and follows the leases until stop is called or the invite ends;
// ended tells what Run returned.
func (h *host) run(ctx context.Context, t *testing.T, n byte, networks ...string) (lease control.Lease, stop func(), ended <-chan error) {
	t.Helper()
	if _, err := h.NetConf(ctx); err != nil {
		t.Fatal(err)
	}
	claim := claimOf(h.name, n, networks...)
	recall, err := h.Recall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range claim.Legs {
		claim.Legs[i].MAC = recall.MACs[i]
	}
	if lease, err = h.Acquire(ctx, claim); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan error, 1)
	go func() {
		defer close(result)
		result <- h.Run(ctx, h.deliver)
	}()
	t.Cleanup(func() {
		cancel()
		<-result
	})
	if err := h.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return lease, cancel, result
}

// guestNode is what the tests look at of a guest's Node.
type guestNode struct {
	Metadata struct {
		UID                 string
		Labels, Annotations map[string]string
	}
	Spec struct {
		PodCIDRs      []string
		Unschedulable bool
		Taints        []struct{ Key, Effect string }
	}
	Status struct {
		Addresses  []any
		Conditions []struct{ Type, Status, Reason string }
	}
}

func (n guestNode) taints() string {
	var all []string
	for _, taint := range n.Spec.Taints {
		all = append(all, taint.Key+":"+taint.Effect)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (n guestNode) condition(kind string) string {
	for _, condition := range n.Status.Conditions {
		if condition.Type == kind {
			return condition.Status + " " + condition.Reason
		}
	}
	return ""
}

func guestNodeNamed(ctx context.Context, t *testing.T, c *Cluster, name string) (node guestNode) {
	t.Helper()
	if err := c.Request(ctx, http.MethodGet, "/api/v1/nodes/"+name, nil, &node); err != nil {
		t.Fatal(err)
	}
	return node
}

// leftovers are the objects of a guest that are still there, the Node aside.
func leftovers(ctx context.Context, t *testing.T, c *Cluster, name string) (found []string) {
	t.Helper()
	for _, path := range []string{
		"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/" + name,
		"/api/v1/namespaces/kube-weft/serviceaccounts/weft-guest-" + name,
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/weft-guest-" + name,
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/weft-guest-" + name,
		"/apis/rbac.authorization.k8s.io/v1/namespaces/kube-node-lease/roles/weft-guest-" + name,
		"/apis/rbac.authorization.k8s.io/v1/namespaces/kube-node-lease/rolebindings/weft-guest-" + name,
	} {
		if err := c.Request(ctx, http.MethodGet, path, nil, nil); !isStatus(err, http.StatusNotFound) {
			found = append(found, path)
		}
	}
	return found
}

func isStatus(err error, code int) bool {
	var refused *StatusError
	return errors.As(err, &refused) && refused.Code == code
}

// TestGuest takes a guest from its invite to its end, on a cluster that taints
// and collects what nobody keeps.
func TestGuest(t *testing.T) {
	networks := []string{"10.244.0.0/16", "fd00:10:244::/56"}
	ctx, c := startWith(t, Config{Lifecycle: true}, networks...)
	applyManifests(ctx, t, c, "weft.yaml", "guests.yaml")
	admin := newAdmin(t, c.Kubeconfig())
	request := kube.InviteRequest{Name: "anna", TTL: time.Hour, NetConf: []byte(netConf2)}

	if _, _, err := admin.Invite(ctx, request); err == nil || !strings.Contains(err.Error(), "admission policy") {
		t.Fatalf("invite without the admission policy: %v", err)
	}
	if found := leftovers(ctx, t, c, "anna"); len(found) > 0 {
		t.Errorf("a failed invite has left %v", found)
	}
	applyManifests(ctx, t, c, "admission.yaml")
	for _, name := range []string{"a", "silent"} {
		if err := c.AddNode(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	a := newHost(ctx, t, c, "a", netConf2)
	leaseA := a.join(ctx, t, claimOf("a", 1, networks...))

	// The policy works a little after it has been made.
	eventually(ctx, t, "an invite", func() bool {
		_, _, err := admin.Invite(ctx, request)
		return err == nil
	})
	if _, _, err := admin.Invite(ctx, request); err == nil || !strings.Contains(err.Error(), "--renew") {
		t.Errorf("a second invite: %v", err)
	}
	if _, err := admin.Revoke(ctx, "a"); err == nil || !strings.Contains(err.Error(), "is no guest") {
		t.Errorf("revoking a node: %v", err)
	}
	before := guestNodeNamed(ctx, t, c, "anna")
	request.Renew, request.TTL = true, 2*time.Hour
	invite := invited(ctx, t, admin, request)
	node := guestNodeNamed(ctx, t, c, "anna")
	if node.Metadata.UID != before.Metadata.UID || !slices.Equal(node.Spec.PodCIDRs, before.Spec.PodCIDRs) || time.Until(invite.Expires) < 90*time.Minute ||
		node.Metadata.Annotations["weft-net.github.io/expires"] != invite.Expires.Format(time.RFC3339) {
		t.Errorf("renewed from %+v\nto %+v, %s", before, node, invite.Expires)
	}
	if !node.Spec.Unschedulable || !strings.Contains(node.taints(), "weft-net.github.io/guest:NoExecute weft-net.github.io/guest:NoSchedule") || len(node.Status.Addresses) > 0 {
		t.Errorf("Node is %+v", node)
	}

	guest := newGuestHost(t, invite, "laptop/1")
	lease, stop, ended := guest.run(ctx, t, 9, networks...)
	both := func() bool { return a.hosts() == "a anna" && slices.Equal(a.latest.Leases[1].Legs, lease.Legs) }
	a.await(ctx, t, "the guest", both)
	guest.await(ctx, t, "the other host", func() bool {
		return guest.hosts() == "a anna" && slices.Equal(guest.latest.Leases[0].Legs, leaseA.Legs)
	})
	checkGuestRights(ctx, t, c, invite)
	checkLikeOthers(ctx, t, c)

	second := newGuestHost(t, invite, "desktop/2")
	if _, err := second.NetConf(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Acquire(ctx, claimOf("anna", 10, networks...)); err == nil || !strings.Contains(err.Error(), `in use: "laptop/1/`) {
		t.Errorf("the invite on a second machine: %v", err)
	}
	eventually(ctx, t, "the fate of a Node that nobody keeps", func() bool {
		return strings.Contains(guestNodeNamed(ctx, t, c, "silent").taints(), "node.kubernetes.io/unreachable:NoExecute")
	})
	if node := guestNodeNamed(ctx, t, c, "anna"); node.condition("Ready") != "True GuestIsUp" || node.condition("NetworkUnavailable") != "False FlannelIsUp" ||
		strings.Contains(node.taints(), "node.kubernetes.io/not-ready") || strings.Contains(node.taints(), "unreachable") {
		t.Errorf("Node is %+v", node)
	}
	if guests, err := admin.Guests(ctx); err != nil || len(guests) != 1 || !guests[0].Joined || !strings.HasPrefix(guests[0].Holder, "laptop/1/") || time.Since(guests[0].Renewed) > time.Minute {
		t.Errorf("guests are %+v, %v", guests, err)
	}

	// The other machine may have it once the first has let go.
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	_, _, ended = second.run(ctx, t, 10, networks...)
	a.await(ctx, t, "the guest at its new address", func() bool {
		return a.hosts() == "a anna" && a.latest.Leases[1].Legs[0].PublicIP == netip.AddrFrom4([4]byte{192, 168, 7, 10})
	})

	deleted, err := admin.Revoke(ctx, "anna")
	if err != nil || len(deleted) == 0 || deleted[0] != "nodes/anna" {
		t.Errorf("revoked %v, %v", deleted, err)
	}
	a.await(ctx, t, "the guest to be gone", func() bool { return a.hosts() == "a" })
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("Run of a revoked guest: %v", err)
	}
	if found := leftovers(ctx, t, c, "anna"); len(found) > 0 {
		t.Errorf("revoking has left %v", found)
	}
	as := *c
	as.admin = invite.Token
	eventually(ctx, t, "the token to be refused", func() bool {
		return isStatus(as.Request(ctx, http.MethodGet, "/api/v1/nodes", nil, nil), http.StatusUnauthorized)
	})
	if deleted, err := admin.Revoke(ctx, "anna"); err != nil || len(deleted) > 0 {
		t.Errorf("revoking once more: %v, %v", deleted, err)
	}
	checkExpiry(ctx, t, c, admin, a)
}

// checkLikeOthers holds that a guest publishes what every host does, and is
// given no Pods: neither by weft's own DaemonSet, which tolerates every taint.
func checkLikeOthers(ctx context.Context, t *testing.T, c *Cluster) {
	t.Helper()
	published := func(name string) (names []string) {
		for key := range guestNodeNamed(ctx, t, c, name).Metadata.Annotations {
			if strings.HasPrefix(key, "flannel.alpha.coreos.com/") {
				names = append(names, key)
			}
		}
		slices.Sort(names)
		return names
	}
	if of, want := published("anna"), published("a"); !slices.Equal(of, want) {
		t.Errorf("a guest publishes %v, a node %v", of, want)
	}
	var daemons struct {
		Status struct{ DesiredNumberScheduled int }
	}
	if err := c.Request(ctx, http.MethodGet, "/apis/apps/v1/namespaces/kube-weft/daemonsets/weft", nil, &daemons); err != nil || daemons.Status.DesiredNumberScheduled != 2 {
		t.Errorf("%d Nodes are to run weft's DaemonSet (%v), want the two nodes", daemons.Status.DesiredNumberScheduled, err)
	}
}

// checkGuestRights holds that a guest's token is good for its own Node alone,
// and there for nothing but what its agent writes.
func checkGuestRights(ctx context.Context, t *testing.T, c *Cluster, invite kube.Invite) {
	t.Helper()
	guest := *c
	guest.admin = invite.Token
	type object = map[string]any
	annotate := func(name string, value any) object {
		return object{"metadata": object{"annotations": object{name: value}}}
	}
	const flannel, status = "flannel.alpha.coreos.com/", "/api/v1/nodes/anna/status?dryRun=All"
	conditions := func(kind string) object {
		return object{"status": object{"conditions": []object{{"type": kind, "status": "True", "reason": "x", "message": "y"}}}}
	}
	const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
	lease := func(metadata object) (changed object) {
		if err := c.Request(ctx, http.MethodGet, leases+"/anna", nil, &changed); err != nil {
			t.Fatal(err)
		}
		maps.Copy(changed["metadata"].(object), metadata)
		return changed
	}
	tests := []struct {
		name, verb, path string
		body             any
		refusal          string // empty: allowed
	}{
		{"public IP", http.MethodPatch, status, annotate(flannel+"public-ip", "192.0.2.7"), ""},
		{"offers", http.MethodPatch, status, annotate(flannel+"weft-offers", `{"version":1}`), ""},
		{"MAC of another", http.MethodPatch, status, annotate(flannel+"backend-data", `{"VNI":1,"VtepMAC":"02:00:00:00:04:01"}`), "MAC"},
		{"no MAC", http.MethodPatch, status, annotate(flannel+"backend-v6-data", nil), "MAC"},
		{"expiry", http.MethodPatch, status, annotate("weft-net.github.io/expires", "2099-01-01T00:00:00Z"), "only annotations under its prefix"},
		{"labels", http.MethodPatch, status, object{"metadata": object{"labels": object{"weft-net.github.io/guest": nil}}}, "labels"},
		{"pressure", http.MethodPatch, status, conditions("DiskPressure"), "only the condition"},
		{"addresses", http.MethodPatch, status, object{"status": object{"addresses": []object{{"type": "InternalIP", "address": "192.0.2.7"}}}}, "addresses"},
		{"capacity", http.MethodPatch, status, object{"status": object{"capacity": object{"pods": "100"}}}, "capacity"},
		{"taints", http.MethodPatch, "/api/v1/nodes/anna", object{"spec": object{"taints": nil}}, "forbidden"},
		{"delete itself", http.MethodDelete, "/api/v1/nodes/anna", nil, "forbidden"},
		{"another Node", http.MethodPatch, "/api/v1/nodes/a/status", annotate(flannel+"public-ip", "192.0.2.7"), "forbidden"},
		{"delete another Node", http.MethodDelete, "/api/v1/nodes/a", nil, "forbidden"},
		{"create a Node", http.MethodPost, "/api/v1/nodes", object{"metadata": object{"name": "x"}}, "forbidden"},
		{"own Lease", http.MethodGet, leases + "/anna", nil, ""},
		{"another Lease", http.MethodGet, leases + "/silent", nil, "forbidden"},
		{"own Lease that cannot be deleted", http.MethodPut, leases + "/anna", lease(map[string]any{"finalizers": []string{"example.com/stay"}}), "only renew"},
		{"own Lease that is nobody's", http.MethodPut, leases + "/anna", lease(map[string]any{"ownerReferences": nil}), "only renew"},
		{"all Leases", http.MethodGet, leases, nil, "forbidden"},
		{"a Lease elsewhere", http.MethodGet, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/anna", nil, "forbidden"},
		{"Services", http.MethodGet, "/api/v1/services", nil, ""},
		{"EndpointSlices", http.MethodGet, "/apis/discovery.k8s.io/v1/endpointslices", nil, ""},
		{"Pods", http.MethodGet, "/api/v1/pods", nil, "forbidden"},
		{"Secrets", http.MethodGet, "/api/v1/secrets", nil, "forbidden"},
		{"another token", http.MethodPost, "/api/v1/namespaces/kube-weft/serviceaccounts/weft-guest-anna/token", object{}, "forbidden"},
	}
	for _, test := range tests {
		err := guest.Request(ctx, test.verb, test.path, test.body, nil)
		if test.refusal == "" && err != nil {
			t.Errorf("%s: refused: %v", test.name, err)
		}
		if test.refusal != "" && (err == nil || !strings.Contains(err.Error(), test.refusal)) {
			t.Errorf("%s: %v, want a refusal with %q", test.name, err, test.refusal)
		}
	}
}

// checkExpiry holds that hosts drop a guest when its time is over, before
// anybody cleans up, and that the job can do that and nothing more.
func checkExpiry(ctx context.Context, t *testing.T, c *Cluster, admin *kube.Admin, a *host) {
	t.Helper()
	request := kube.InviteRequest{Name: "bert", TTL: time.Hour, NetConf: []byte(netConf2)}
	invite := invited(ctx, t, admin, request)
	request.Name = "cleo"
	invited(ctx, t, admin, request)
	guest := newGuestHost(t, invite, "laptop/1")
	_, _, ended := guest.run(ctx, t, 9, "10.244.0.0/16", "fd00:10:244::/56")
	a.await(ctx, t, "the guest", func() bool { return a.hosts() == "a bert" })
	over := map[string]any{"metadata": map[string]any{"annotations": map[string]any{"weft-net.github.io/expires": time.Now().Add(-time.Second).Format(time.RFC3339)}}}
	if err := c.Request(ctx, http.MethodPatch, "/api/v1/nodes/bert", over, nil); err != nil {
		t.Fatal(err)
	}
	a.await(ctx, t, "the guest to be passed over", func() bool { return a.hosts() == "a" && len(a.latest.Problems) == 1 })

	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.AccountKubeconfig(ctx, Account{Namespace: "kube-weft", Name: "weft-revoke"}, path); err != nil {
		t.Fatal(err)
	}
	revoked, err := newAdmin(t, path).RevokeExpired(ctx, time.Now())
	if err != nil || !slices.Equal(revoked, []string{"bert"}) {
		t.Errorf("revoked %v, %v; want bert alone", revoked, err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("Run of a guest whose Node was taken away: %v", err)
	}
	eventually(ctx, t, "the garbage collector", func() bool { return len(leftovers(ctx, t, c, "bert")) == 0 })
	job := *c
	job.admin = tokenIn(t, path)
	if err := job.DeleteNode(ctx, "silent"); err == nil || !strings.Contains(err.Error(), "only the Nodes of guests") {
		t.Errorf("the job deletes a node: %v", err)
	}
	if found := leftovers(ctx, t, c, "cleo"); len(found) != 6 {
		t.Errorf("of a guest with time left there is only %v", found)
	}
}
