package kube

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// feed collects Snapshots of a running Source.
type feed struct {
	mu    sync.Mutex
	all   []control.Snapshot
	news  chan struct{}
	ended chan error // what Run returned
}

// runSource runs s until the test ends, which must be how Run ends.
func runSource(t *testing.T, s *Source) *feed {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	fd := &feed{news: make(chan struct{}), ended: make(chan error, 1)}
	go func() { fd.ended <- s.Run(ctx, fd.put) }()
	t.Cleanup(func() {
		cancel()
		if err := <-fd.ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return fd
}

func (fd *feed) put(snapshot control.Snapshot) {
	fd.mu.Lock()
	defer fd.mu.Unlock()
	fd.all = append(fd.all, snapshot)
	close(fd.news)
	fd.news = make(chan struct{})
}

// await waits until the newest Snapshot has exactly these leases.
func (fd *feed) await(t *testing.T, want ...control.Lease) {
	t.Helper()
	fd.awaitUntil(t, fmt.Sprintf("%+v", want), func(snapshot control.Snapshot) bool {
		return slices.EqualFunc(snapshot.Leases, want, sameLease)
	})
}

func (fd *feed) awaitUntil(t *testing.T, what string, good func(control.Snapshot) bool) {
	t.Helper()
	for {
		fd.mu.Lock()
		all, news := fd.all, fd.news
		fd.mu.Unlock()
		if n := len(all); n > 0 && good(all[n-1]) {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("still waiting for %s, got %+v", what, all)
		case err := <-fd.ended:
			fd.ended <- err
			t.Fatalf("Run ended while waiting for %s: %v", what, err)
		case <-news:
		}
	}
}

// snapshots are all that were delivered; each must be complete and sorted.
func (fd *feed) snapshots(t *testing.T) []control.Snapshot {
	t.Helper()
	fd.mu.Lock()
	defer fd.mu.Unlock()
	for _, snapshot := range fd.all {
		if !snapshot.Complete {
			t.Error("an incomplete Snapshot was delivered")
		}
		if !slices.IsSortedFunc(snapshot.Leases, func(a, b control.Lease) int { return strings.Compare(a.Host, b.Host) }) {
			t.Errorf("leases are not sorted: %+v", snapshot.Leases)
		}
	}
	return slices.Clone(fd.all)
}

// following returns a Source without a lease that watches three Nodes, one of
// which is no member.
func following(t *testing.T, f *fakeServer) (*reasons, *feed) {
	t.Helper()
	s, why := newSource(t, f, nil)
	f.set(newPeer("c", 3))
	f.set(newPeer("b", 2))
	f.set(newNode("stranger", cidr4(9)))
	fd := runSource(t, s)
	fd.await(t, peerLease("b", 2), peerLease("c", 3))
	return why, fd
}

// TestFirstSnapshotIsWhole holds that nothing is delivered before the list is
// whole.
func TestFirstSnapshotIsWhole(t *testing.T) {
	for _, noStreams := range []bool{false, true} {
		t.Run(fmt.Sprintf("no streams %t", noStreams), func(t *testing.T) {
			f := newFakeServer(t)
			f.noStreams = noStreams
			_, fd := following(t, f)
			if first := fd.snapshots(t)[0]; len(first.Leases) != 2 {
				t.Errorf("first Snapshot has %+v", first.Leases)
			}
			f.mu.Lock()
			lists := f.lists
			f.mu.Unlock()
			if (lists > 0) != noStreams {
				t.Errorf("%d plain lists were asked for", lists)
			}
		})
	}
}

// TestChanges holds that every change that matters is noticed. flannel misses
// the single-family ones and those of the podCIDR (bug 3).
func TestChanges(t *testing.T) {
	alone := func(change func(*control.Lease)) control.Lease {
		lease := peerLease("b", 2)
		change(&lease)
		return lease
	}
	annotate := func(name, value string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Annotations["flannel.alpha.coreos.com/"+name] = value }
	}
	tests := map[string]struct {
		edit func(*corev1.Node)
		want []control.Lease // besides c's
	}{
		"IPv4 MAC alone": {
			annotate("backend-data", `{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}`),
			[]control.Lease{alone(func(l *control.Lease) { l.Legs[0].MAC = mac(0x77) })},
		},
		"IPv6 MAC alone": {
			annotate("backend-v6-data", `{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}`),
			[]control.Lease{alone(func(l *control.Lease) { l.Legs[1].MAC = mac(0x77) })},
		},
		"IPv4 address alone": {
			annotate("public-ip", "192.168.7.77"),
			[]control.Lease{alone(func(l *control.Lease) { l.Legs[0].PublicIP = public4(77) })},
		},
		"IPv6 address alone": {
			annotate("public-ipv6", "fd77::4d"),
			[]control.Lease{alone(func(l *control.Lease) { l.Legs[1].PublicIP = public6(77) })},
		},
		"backend type": {
			annotate("backend-type", "host-gw"),
			[]control.Lease{alone(func(l *control.Lease) {
				l.Backend = "host-gw"
				for i := range l.Legs {
					l.Legs[i].MAC, l.Legs[i].VNI = tunnel.MAC{}, 0
				}
			})},
		},
		"offers alone": {
			annotate("weft-offers", offersText),
			[]control.Lease{alone(func(l *control.Lease) { l.Offers = checksums })},
		},
		"bad offers": {
			annotate("weft-offers", `{"version":2}`),
			[]control.Lease{alone(func(l *control.Lease) {
				l.Problems = []string{"offers: version is 2 and only 1 is known here: update weft on this host"}
			})},
		},
		"podCIDR": {
			func(n *corev1.Node) { n.Spec.PodCIDRs = []string{cidr4(5), cidr6(2)} },
			[]control.Lease{alone(func(l *control.Lease) { l.Legs[0].Subnet = peerLease("", 5).Legs[0].Subnet })},
		},
		"podCIDR of old servers": {
			func(n *corev1.Node) { n.Spec.PodCIDRs, n.Spec.PodCIDR = nil, cidr4(5) },
			[]control.Lease{alone(func(l *control.Lease) {
				l.Legs = l.Legs[:1]
				l.Legs[0].Subnet = peerLease("", 5).Legs[0].Subnet
			})},
		},
		"no member any more": {annotate("kube-subnet-manager", "false"), nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFakeServer(t)
			_, fd := following(t, f)
			f.edit("b", test.edit)
			fd.await(t, append(test.want, peerLease("c", 3))...)
		})
	}
}

// TestBackendAlone: host-gw and ipip differ in nothing but the name.
func TestBackendAlone(t *testing.T) {
	f := newFakeServer(t)
	_, fd := following(t, f)
	for _, backend := range []string{"host-gw", "ipip"} {
		f.edit("b", func(n *corev1.Node) { n.Annotations["flannel.alpha.coreos.com/backend-type"] = backend })
		fd.awaitUntil(t, backend, func(snapshot control.Snapshot) bool { return snapshot.Leases[0].Backend == backend })
	}
}

func TestNodeDeleted(t *testing.T) {
	f := newFakeServer(t)
	_, fd := following(t, f)
	f.remove("b")
	fd.await(t, peerLease("c", 3))
}

// TestJunkHarmsNobodyElse holds that a bad peer is in the Snapshot with its
// problem, and the others as before.
func TestJunkHarmsNobodyElse(t *testing.T) {
	f := newFakeServer(t)
	_, fd := following(t, f)
	f.edit("b", func(n *corev1.Node) {
		n.Annotations["flannel.alpha.coreos.com/backend-data"] = `{"VtepMAC":`
		n.Annotations["flannel.alpha.coreos.com/public-ipv6"] = "::1"
	})
	fd.awaitUntil(t, "problems of b", func(snapshot control.Snapshot) bool {
		return len(snapshot.Leases) == 2 && len(snapshot.Leases[0].Legs) == 0 && len(snapshot.Leases[0].Problems) == 2 &&
			sameLease(snapshot.Leases[1], peerLease("c", 3))
	})
}

// TestGuestIsNews holds that a Node's becoming a guest's is delivered, though
// its lease says the same as before.
func TestGuestIsNews(t *testing.T) {
	n := newNodes("flannel.alpha.coreos.com/", func() {})
	if err := n.Replace([]any{newPeer("b", 2)}, ""); err != nil {
		t.Fatal(err)
	}
	<-n.changed
	node := newPeer("b", 2)
	node.Labels = map[string]string{guestLabel: "true"}
	node.Annotations[expiresAnnotation] = "2099-01-02T03:04:05Z"
	trimmed, err := n.Transformer()(node)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Update(trimmed); err != nil {
		t.Fatal(err)
	}
	snapshot, _, _ := n.snapshot(time.Unix(0, 0))
	if len(n.changed) != 1 || len(snapshot.Leases) != 1 || !snapshot.Leases[0].Guest {
		t.Errorf("changed: %d, have %+v", len(n.changed), snapshot)
	}
}

// TestHeartbeatsAreNoNews holds that a change of what is never read delivers
// nothing: kubelets write their Nodes every few minutes.
func TestHeartbeatsAreNoNews(t *testing.T) {
	n := newNodes("flannel.alpha.coreos.com/", func() {})
	if err := n.Replace([]any{newPeer("b", 2), newNode("stranger")}, ""); err != nil {
		t.Fatal(err)
	}
	<-n.changed
	for _, node := range []*corev1.Node{newPeer("b", 2), newNode("stranger")} {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Message: "a minute later"}}
		metav1.SetMetaDataAnnotation(&node.ObjectMeta, "example.com/noise", "a minute later")
		if err := n.Update(node); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-n.changed:
		t.Error("a heartbeat is news")
	default:
	}
}

// TestOutage holds that silence changes nothing, whatever happened meanwhile
// arrives afterwards, and an empty Snapshot is never delivered.
func TestOutage(t *testing.T) {
	for _, forget := range []bool{false, true} {
		t.Run(fmt.Sprintf("history lost %t", forget), func(t *testing.T) {
			f := newFakeServer(t)
			why, fd := following(t, f)
			f.stop()
			why.await(t, "watch Nodes")
			f.remove("c")
			f.set(newPeer("d", 4))
			if forget {
				f.change(func() { f.events = nil })
			}
			f.start(forget)
			why.await(t, "")
			fd.await(t, peerLease("b", 2), peerLease("d", 4))
			for _, snapshot := range fd.snapshots(t) {
				if len(snapshot.Leases) == 0 {
					t.Error("an empty Snapshot was delivered")
				}
			}
		})
	}
}

// TestEmptyServerIsNotBelieved: an API server that has lost its store must not
// take the network down.
func TestEmptyServerIsNotBelieved(t *testing.T) {
	f := newFakeServer(t)
	why, fd := following(t, f)
	f.change(func() {
		f.hideAll, f.events = true, nil
		f.connection++
		f.oldest = f.version + 1
	})
	why.await(t, "knows no Node at all")
	f.change(func() {
		f.hideAll = false
		f.connection++
		f.oldest = f.version + 1
	})
	f.set(newPeer("d", 4))
	why.await(t, "")
	fd.await(t, peerLease("b", 2), peerLease("c", 3), peerLease("d", 4))
	for _, snapshot := range fd.snapshots(t) {
		if len(snapshot.Leases) == 0 {
			t.Error("an empty Snapshot was delivered")
		}
	}
}

// TestOrderDoesNotMatter feeds the same Nodes in random orders, with detours,
// and wants the same Snapshot.
func TestOrderDoesNotMatter(t *testing.T) {
	var want control.Snapshot
	for round := range 50 {
		n := newNodes("flannel.alpha.coreos.com/", func() {})
		for _, i := range rand.Perm(9) {
			node := newPeer(fmt.Sprint("node-", i), byte(i))
			detour := newPeer(node.Name, 9)
			if err := errors.Join(n.Add(detour), n.Delete(detour), n.Add(detour), n.Update(node)); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, ok := n.snapshot(time.Now()); ok {
			t.Fatal("there is a Snapshot before the first list is whole")
		}
		var list []any
		for _, i := range rand.Perm(9) {
			list = append(list, newPeer(fmt.Sprint("node-", i), byte(i)))
		}
		if err := n.Replace(list, ""); err != nil {
			t.Fatal(err)
		}
		got, _, ok := n.snapshot(time.Now())
		if !ok || !got.Complete {
			t.Fatal("there is no Snapshot after the first list")
		}
		if round == 0 {
			want = got
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("order mattered: %+v and %+v", got, want)
		}
	}
}

// TestTrim holds what is kept of a Node, and that a trimmed Node reads like
// the whole.
func TestTrim(t *testing.T) {
	n := newNodes("flannel.alpha.coreos.com/", func() {})
	node := newPeer("b", 2)
	node.Labels = map[string]string{"a": "b"}
	node.Status.Images = make([]corev1.ContainerImage, 50)
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady}, {Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}
	object, err := n.Transformer()(node)
	if err != nil {
		t.Fatal(err)
	}
	trimmed := object.(*corev1.Node)
	want := newNode("b", cidr4(2), cidr6(2))
	want.Annotations = newPeer("b", 2).Annotations
	delete(want.Annotations, "example.com/noise")
	want.Status.Conditions = node.Status.Conditions[1:]
	if !reflect.DeepEqual(trimmed, want) {
		t.Errorf("trimmed to %+v, want %+v", trimmed, want)
	}
}
