//go:build e2e

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startForTest starts a control plane for the pod networks, stopped with the test.
func startForTest(t *testing.T, networks ...string) (context.Context, *Cluster) {
	t.Helper()
	return startWith(t, Config{}, networks...)
}

// startWith starts a control plane with what cfg asks for beside the networks.
func startWith(t *testing.T, cfg Config, networks ...string) (context.Context, *Cluster) {
	t.Helper()
	binary := os.Getenv("WEFT_KUBE_BIN")
	if binary == "" {
		t.Fatal("WEFT_KUBE_BIN is not set: run `make e2e`, or bench/kube/build.sh PATH and set it to PATH")
	}
	cfg.Dir, cfg.Binary, cfg.Progress = t.TempDir(), binary, func(text string) { t.Log(text) }
	for _, network := range networks {
		cfg.ClusterCIDRs = append(cfg.ClusterCIDRs, netip.MustParsePrefix(network))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	c, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return ctx, c
}

func TestNodesGetPodCIDRs(t *testing.T) {
	tests := []struct {
		name     string
		networks []string
		bits     []int
	}{
		{"v4", []string{"10.244.0.0/16"}, []int{24}},
		{"v6", []string{"fd00:10:244::/56"}, []int{64}},
		{"dual", []string{"10.244.0.0/16", "fd00:10:244::/56"}, []int{24, 64}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx, c := startForTest(t, test.networks...)
			seen := map[netip.Prefix]string{}
			for _, node := range []string{"a", "b"} {
				if err := c.AddNode(ctx, node, netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("fd77::1")); err != nil {
					t.Fatal(err)
				}
				got, err := c.PodCIDRs(ctx, node)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != len(test.networks) {
					t.Fatalf("podCIDRs of %s are %v, want one in each of %v", node, got, test.networks)
				}
				for i, prefix := range got {
					if network := netip.MustParsePrefix(test.networks[i]); !network.Contains(prefix.Addr()) || prefix.Bits() != test.bits[i] {
						t.Errorf("podCIDR %s of %s: want a /%d in %s", prefix, node, test.bits[i], network)
					}
					if other, taken := seen[prefix]; taken {
						t.Errorf("%s and %s both have %s", node, other, prefix)
					}
					seen[prefix] = node
				}
			}
		})
	}
}

// TestOutage holds that the API server can go away and come back on the same
// address with the same state.
func TestOutage(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	if err := c.AddNode(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	before, err := c.PodCIDRs(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PodCIDRs(ctx, "a"); err == nil {
		t.Fatal("a stopped API server answers")
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := c.PodCIDRs(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if before[0] != after[0] {
		t.Errorf("podCIDR was %s, is %s after the outage", before[0], after[0])
	}
	if err := c.DeleteNode(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	var refused *StatusError
	if _, err := c.PodCIDRs(ctx, "a"); !errors.As(err, &refused) || refused.Code != http.StatusNotFound {
		t.Errorf("deleted node: %v, want 404", err)
	}
}

const rights = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
# Nothing but a comment.
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [nodes], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: default}
`

// TestAccount holds that an account's kubeconfig has the rights the manifest
// gives it, and no more.
func TestAccount(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	if err := c.AddNode(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ctx, []byte(rights)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.AccountKubeconfig(ctx, Account{Namespace: "default", Name: "reader", Node: "a"}, path); err != nil {
		t.Fatal(err)
	}
	account := *c
	account.admin = tokenIn(t, path)
	var refused *StatusError
	_, err := account.PodCIDRs(ctx, "a")
	for errors.As(err, &refused) && refused.Code == http.StatusForbidden && ctx.Err() == nil {
		_, err = account.PodCIDRs(ctx, "a") // the authorizer learns of the binding a little later
	}
	if err != nil {
		t.Errorf("read a Node: %v", err)
	}
	if err := account.DeleteNode(ctx, "a"); !errors.As(err, &refused) || refused.Code != http.StatusForbidden {
		t.Errorf("delete a Node: %v, want 403", err)
	}
}

func tokenIn(t *testing.T, kubeconfig string) string {
	t.Helper()
	data, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Users []struct{ User struct{ Token string } }
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	return file.Users[0].User.Token
}

func TestApplyIsStrict(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	err := c.Apply(ctx, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: default}\ndatum: {}\n"))
	var refused *StatusError
	if !errors.As(err, &refused) || !strings.Contains(refused.Message, "datum") {
		t.Errorf("unknown field: %v, want a refusal that names it", err)
	}
}

// TestStartNamesTheCause holds that a component that dies is named, with its
// last words.
func TestStartNamesTheCause(t *testing.T) {
	binary, err := exec.LookPath("false")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err = Start(ctx, Config{Dir: t.TempDir(), Binary: binary, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	if err == nil || ctx.Err() != nil {
		t.Fatalf("start with a wrong binary: %v, want the component's own error at once", err)
	}
	t.Log(err)
}
