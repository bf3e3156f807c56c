package kube

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/control"
)

// prepared returns a Source that has read its network configuration.
func prepared(t *testing.T, f *fakeServer) (*Source, *reasons) {
	t.Helper()
	s, why := newSource(t, f, nil)
	if _, err := s.NetConf(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, why
}

// TestAcquirePublishes holds the annotations that are published, on a Node
// that has none (flannel panics there), and that a second time nothing is sent.
func TestAcquirePublishes(t *testing.T) {
	f := newFakeServer(t)
	s, _ := prepared(t, f)
	f.set(newNode("own", cidr4(1), cidr6(1)))
	got, err := s.Acquire(t.Context(), dualClaim())
	if err != nil {
		t.Fatal(err)
	}
	if want := peerLease("own", 1); !sameLease(got, want) {
		t.Errorf("lease is %+v, want %+v", got, want)
	}
	want := newPeer("own", 1).Annotations
	delete(want, "example.com/noise")
	if annotations := f.get("own").Annotations; !maps.Equal(annotations, want) {
		t.Errorf("annotations are %v, want %v", annotations, want)
	}
	if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	if patches := f.sentPatches(); len(patches) != 1 {
		t.Errorf("%d patches were sent, want 1: %v", len(patches), patches)
	}
}

// TestAcquirePatchesOnlyWhatDiffers holds that foreign annotations and equal
// ones are left alone.
func TestAcquirePatchesOnlyWhatDiffers(t *testing.T) {
	f := newFakeServer(t)
	s, _ := prepared(t, f)
	node := newPeer("own", 1)
	node.Annotations["flannel.alpha.coreos.com/public-ip"] = "192.168.7.99"
	f.set(node)
	if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	var patch struct {
		Metadata struct{ Annotations map[string]string }
		Status   map[string]any
	}
	if err := json.Unmarshal([]byte(f.sentPatches()[0]), &patch); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"flannel.alpha.coreos.com/public-ip": public4(1).String()}; !maps.Equal(patch.Metadata.Annotations, want) || len(patch.Status) > 0 {
		t.Errorf("patch is %+v, want only %v", patch, want)
	}
}

// offering returns a claim with offers, and its lease.
func offering() (control.Claim, control.Lease) {
	claim, lease := dualClaim(), peerLease("own", 1)
	claim.Offers, lease.Offers = checksums, checksums
	return claim, lease
}

// TestReassertsOffers holds that offers are published, read back, and put back
// to the byte where something strips or changes them.
func TestReassertsOffers(t *testing.T) {
	claim, want := offering()
	for name, damage := range map[string]func(*corev1.Node){
		"stripped": func(n *corev1.Node) { delete(n.Annotations, offersName) },
		"changed":  func(n *corev1.Node) { n.Annotations[offersName] = `{"version":1}` },
		"junk":     func(n *corev1.Node) { n.Annotations[offersName] = strings.Repeat("[", 1<<16) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			s, _ := prepared(t, f)
			f.set(newNode("own", cidr4(1), cidr6(1)))
			if got, err := s.Acquire(t.Context(), claim); err != nil || !sameLease(got, want) {
				t.Fatalf("have %+v, %v, want %+v", got, err, want)
			}
			published := f.get("own").Annotations
			if published[offersName] != offersText {
				t.Errorf("annotations are %v", published)
			}
			feed := runSource(t, s)
			feed.await(t, want)
			f.edit("own", damage)
			feed.awaitUntil(t, "the offers", func(snapshot control.Snapshot) bool {
				return sameLease(snapshot.Leases[0], want) && len(f.sentPatches()) == 2
			})
			if annotations := f.get("own").Annotations; !maps.Equal(annotations, published) {
				t.Errorf("annotations are %v, want %v", annotations, published)
			}
		})
	}
}

// TestStaleOffersGo: the kernel's engine may follow the userspace one on the
// same Node, and what somebody else writes there must not be believed either.
func TestStaleOffersGo(t *testing.T) {
	f := newFakeServer(t)
	s, _ := prepared(t, f)
	f.set(newNode("own", cidr4(1), cidr6(1)))
	claim, _ := offering()
	if _, err := s.Acquire(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	s, _ = prepared(t, f)
	if got, err := s.Acquire(t.Context(), dualClaim()); err != nil || !sameLease(got, peerLease("own", 1)) {
		t.Errorf("have %+v, %v", got, err)
	}
	if patch := f.sentPatches()[1]; patch != `{"metadata":{"annotations":{"`+offersName+`":null}},"status":{}}` {
		t.Errorf("patch is %s", patch)
	}
	feed := runSource(t, s)
	feed.await(t, peerLease("own", 1))
	f.edit("own", func(n *corev1.Node) { n.Annotations[offersName] = offersText })
	feed.awaitUntil(t, "no offers", func(snapshot control.Snapshot) bool {
		return sameLease(snapshot.Leases[0], peerLease("own", 1)) && len(f.sentPatches()) == 3
	})
	if value, there := f.get("own").Annotations[offersName]; there {
		t.Errorf("the Node still has %q", value)
	}
}

// TestAcquireHonoursOverwrite: a node's administrator may publish another
// address than the one this host uses.
func TestAcquireHonoursOverwrite(t *testing.T) {
	f := newFakeServer(t)
	s, _ := prepared(t, f)
	node := newNode("own", cidr4(1), cidr6(1))
	node.Annotations = map[string]string{"flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.9"}
	f.set(node)
	got, err := s.Acquire(t.Context(), dualClaim())
	if err != nil {
		t.Fatal(err)
	}
	if got.Legs[0].PublicIP.String() != "203.0.113.9" || got.Legs[1].PublicIP != public6(1) {
		t.Errorf("published %v and %v", got.Legs[0].PublicIP, got.Legs[1].PublicIP)
	}
}

// TestAcquireWaits walks a Node through everything that can be missing.
func TestAcquireWaits(t *testing.T) {
	f := newFakeServer(t)
	s, why := prepared(t, f)
	f.stop()
	later(t, func() {
		why.await(t, "get Node own")
		f.start(false)
		why.await(t, `there is no Node "own"`)
		f.set(newNode("own"))
		why.await(t, "no pod CIDR is assigned")
		f.set(newNode("own", cidr4(1)))
		why.await(t, "family of fd77::1")
		f.set(newNode("own", "10.200.1.0/24", cidr6(1)))
		why.await(t, "outside of the network 10.244.0.0/16")
		f.change(func() { f.failPatch = 1 })
		f.set(newNode("own", cidr4(1), cidr6(1)))
		why.await(t, "etcd is slow")
		why.await(t, "")
	})
	got, err := s.Acquire(t.Context(), dualClaim())
	if err != nil {
		t.Fatal(err)
	}
	if want := peerLease("own", 1); !sameLease(got, want) {
		t.Errorf("lease is %+v, want %+v (%s)", got, want, why)
	}
}

// TestAcquireOneFamily: the other family's podCIDR and stale annotations are
// none of this host's business.
func TestAcquireOneFamily(t *testing.T) {
	f := newFakeServer(t)
	s, _ := prepared(t, f)
	f.set(newPeer("own", 1))
	claim := dualClaim()
	claim.Legs = claim.Legs[1:]
	got, err := s.Acquire(t.Context(), claim)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Legs) != 1 || got.Legs[0] != peerLease("own", 1).Legs[1] {
		t.Errorf("lease is %+v, want the IPv6 leg alone", got)
	}
}

// holding returns a Source that has a lease and is running, and its feed.
func holding(t *testing.T, f *fakeServer) (*Source, *reasons, *feed) {
	t.Helper()
	s, why := prepared(t, f)
	f.set(newNode("own", cidr4(1), cidr6(1)))
	if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	feed := runSource(t, s)
	feed.await(t, peerLease("own", 1))
	return s, why, feed
}

// TestReasserts: something strips or changes the annotations, or the Node is
// made anew; the host must come back by itself.
func TestReasserts(t *testing.T) {
	tests := map[string]func(*fakeServer){
		"stripped": func(f *fakeServer) { f.edit("own", func(n *corev1.Node) { n.Annotations = nil }) },
		"changed": func(f *fakeServer) {
			f.edit("own", func(n *corev1.Node) { n.Annotations["flannel.alpha.coreos.com/public-ipv6"] = "fd77::66" })
		},
		"made anew": func(f *fakeServer) {
			f.remove("own")
			f.set(newNode("own"))
			f.edit("own", func(n *corev1.Node) { n.Spec.PodCIDRs = []string{cidr4(1), cidr6(1)} })
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			_, _, feed := holding(t, f)
			damage(f)
			feed.awaitUntil(t, "the own lease is back", func(snapshot control.Snapshot) bool {
				whole := len(snapshot.Leases) == 1 && sameLease(snapshot.Leases[0], peerLease("own", 1))
				return whole && len(f.sentPatches()) > 1
			})
		})
	}
}

// TestReassertsAfterFailure holds that a refused repair is tried again.
func TestReassertsAfterFailure(t *testing.T) {
	f := newFakeServer(t)
	_, why, feed := holding(t, f)
	f.change(func() { f.failPatch = 1 })
	f.edit("own", func(n *corev1.Node) { n.Annotations = nil })
	why.await(t, "etcd is slow")
	why.await(t, "")
	feed.await(t, peerLease("own", 1))
}

// TestReady holds the condition, and that it is set again.
func TestReady(t *testing.T) {
	f := newFakeServer(t)
	s, _, _ := holding(t, f)
	f.edit("own", func(n *corev1.Node) {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	})
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.awaitReady("own")
	f.edit("own", func(n *corev1.Node) {
		for i, condition := range n.Status.Conditions {
			if condition.Type == corev1.NodeNetworkUnavailable {
				n.Status.Conditions[i].Status, n.Status.Conditions[i].Reason = corev1.ConditionTrue, "NoRouteCreated"
			}
		}
	})
	f.awaitReady("own")
	node := f.get("own")
	condition := conditionOf(node, corev1.NodeNetworkUnavailable)
	if len(node.Status.Conditions) != 2 || condition.Message != "Flannel is running on this node" || condition.LastTransitionTime.IsZero() {
		t.Errorf("conditions are %+v", node.Status.Conditions)
	}
}

// TestReadyCanBeOff: k3s and others set the condition themselves.
func TestReadyCanBeOff(t *testing.T) {
	f := newFakeServer(t)
	s, _, feed := holding(t, f)
	s.cfg.SetNetworkUnavailable = false
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.set(newPeer("b", 2))
	feed.await(t, peerLease("b", 2), peerLease("own", 1))
	if patches := f.sentPatches(); slices.ContainsFunc(patches, func(p string) bool { return strings.Contains(p, "NetworkUnavailable") }) {
		t.Errorf("patches are %v", patches)
	}
}

// awaitReady waits until the Node's network is said to be there, by us.
func (f *fakeServer) awaitReady(name string) {
	for {
		f.mu.Lock()
		moved, node := f.moved, f.nodes[name]
		f.mu.Unlock()
		if condition := conditionOf(node, corev1.NodeNetworkUnavailable); condition.Status == corev1.ConditionFalse && condition.Reason == "FlannelIsUp" {
			return
		}
		select {
		case <-f.t.Context().Done():
			f.t.Fatalf("conditions are %+v", node.Status.Conditions)
		case <-moved:
		}
	}
}

// TestSubnetLost: everything on this host has addresses of the old subnet, so
// a new one is a new start.
func TestSubnetLost(t *testing.T) {
	tests := map[string]struct {
		cidrs []string
		want  string
	}{
		"another subnet":      {[]string{cidr4(2), cidr6(1)}, "from [10.244.1.0/24 fd00:10:244:1::/64] to [10.244.2.0/24 fd00:10:244:1::/64]"},
		"outside the network": {[]string{"10.200.0.0/24", cidr6(1)}, "outside of the network"},
		"one family less":     {[]string{cidr4(1)}, "family of fd77::1"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			_, _, feed := holding(t, f)
			f.remove("own")
			f.set(newNode("own"))
			f.edit("own", func(n *corev1.Node) { n.Spec.PodCIDRs = test.cidrs })
			if err := <-feed.ended; err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run: %v, want %q", err, test.want)
			}
			feed.ended <- nil
		})
	}
}

// TestOwnNodeDeleted holds that the loss is told, and that it changes nothing
// else.
func TestOwnNodeDeleted(t *testing.T) {
	f := newFakeServer(t)
	_, why, feed := holding(t, f)
	f.set(newPeer("b", 2))
	feed.await(t, peerLease("b", 2), peerLease("own", 1))
	f.remove("own")
	why.await(t, "was deleted")
	feed.await(t, peerLease("b", 2))
	f.set(newNode("own", cidr4(1), cidr6(1)))
	why.await(t, "")
	feed.await(t, peerLease("b", 2), peerLease("own", 1))
}
