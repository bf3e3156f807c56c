package kube

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/control"
)

// newGuest makes the Source of the guest "own" on a machine.
func newGuest(t *testing.T, f *fakeServer, machine string) (*Source, *reasons) {
	t.Helper()
	invite, why := newInvite(), newReasons()
	s, err := New(Config{Invite: &invite, Machine: machine, Logger: slog.New(slog.DiscardHandler), Waiting: why.Waiting})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s.api, err = newAPI(&rest.Config{Host: f.URL}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, err := s.NetConf(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, why
}

// newGuestNode is the Node of the guest "own", and its Lease, as an invite
// makes them.
func newGuestNode(f *fakeServer) {
	node := newNode("own", cidr4(1), cidr6(1))
	node.Labels = map[string]string{guestLabel: "true"}
	node.Annotations = map[string]string{expiresAnnotation: "2099-01-02T03:04:05Z"}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "GuestHasNotJoined"}}
	f.set(node)
	f.change(func() {
		f.leases["own"] = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "own", Namespace: leaseNamespace, ResourceVersion: "1"}}
	})
}

func TestGuestNeedsAMachine(t *testing.T) {
	invite := newInvite()
	if _, err := New(Config{Invite: &invite, Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a guest without the name of its machine was made")
	}
}

// TestGuestKeepsNodeAlive holds the Lease and the conditions of a guest that
// has joined, also after the node-lifecycle controller has given it up, and
// that it lets go when it ends.
func TestGuestKeepsNodeAlive(t *testing.T) {
	f := newFakeServer(t)
	newGuestNode(f)
	s, _ := newGuest(t, f, "anna/1")
	if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	held := f.lease("own")
	if holder, renewed := holderOf(held); holder != s.hold.identity || !strings.HasPrefix(holder, "anna/1/") || time.Since(renewed) > time.Minute || *held.Spec.LeaseDurationSeconds != 40 {
		t.Errorf("Lease is %+v", held.Spec)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, func(control.Snapshot) {}) }()
	if err := s.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	up := func() bool {
		node := f.get("own")
		return conditionOf(node, corev1.NodeReady).Status == corev1.ConditionTrue &&
			conditionOf(node, corev1.NodeNetworkUnavailable).Status == corev1.ConditionFalse
	}
	f.await(t, "the conditions", up)
	f.edit("own", func(node *corev1.Node) {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	})
	f.await(t, "the conditions once more", up)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if holder, _ := holderOf(f.lease("own")); holder != "" {
		t.Errorf("the Lease of a guest that ended is held by %q", holder)
	}
}

// TestInviteOnTwoMachines holds who may use an invite that was copied.
func TestInviteOnTwoMachines(t *testing.T) {
	hold := func(holder string, age time.Duration) *coordinationv1.Lease {
		renewed := metav1.NewMicroTime(time.Now().Add(-age))
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "own", Namespace: leaseNamespace, ResourceVersion: "1"},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed},
		}
	}
	tests := []struct {
		name   string
		holder string
		age    time.Duration
		want   string // in the error; empty: taken over
	}{
		{"nobody", "", time.Hour, ""},
		{"another machine", "bert/2/x", 9 * time.Second, `"bert/2/x" renewed it at`},
		{"another machine whose clock is ahead", "bert/2/x", -time.Minute, "in use"},
		{"another machine, long ago", "bert/2/x", time.Minute, ""},
		{"this machine, before it crashed", "anna/1/x", time.Second, ""},
		{"a machine with a longer name", "anna/12/x", time.Second, "in use"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeServer(t)
			newGuestNode(f)
			f.change(func() { f.leases["own"] = hold(test.holder, test.age) })
			s, _ := newGuest(t, f, "anna/1")
			_, err := s.Acquire(t.Context(), dualClaim())
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Acquire: %v, want an error with %q", err, test.want)
			}
			holder, _ := holderOf(f.lease("own"))
			if taken := holder == s.hold.identity; taken != (test.want == "") {
				t.Errorf("the Lease is held by %q", holder)
			}
			if patches := f.sentPatches(); test.want != "" && len(patches) > 0 {
				t.Errorf("a refused guest has published %v", patches)
			}
		})
	}
}

// TestLostInvite holds that the first machine stops when a second one has the
// invite, and that it leaves the other's Lease alone.
func TestLostInvite(t *testing.T) {
	f := newFakeServer(t)
	newGuestNode(f)
	first, _ := newGuest(t, f, "anna/1")
	if _, err := first.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	f.change(func() {
		stale := metav1.NewMicroTime(time.Now().Add(-time.Minute))
		f.leases["own"].Spec.RenewTime = &stale
	})
	second, _ := newGuest(t, f, "bert/2")
	if _, err := second.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	if err := first.renewOwn(t.Context()); err == nil || !strings.Contains(err.Error(), `now in use by "bert/2/`) || !errors.As(err, new(finalError)) {
		t.Errorf("renewing a Lease that was lost: %v", err)
	}
	first.letGo(t.Context())
	if holder, _ := holderOf(f.lease("own")); holder != second.hold.identity {
		t.Errorf("the Lease is held by %q", holder)
	}
	if err := second.renewOwn(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRevokedGuestEnds holds that a guest whose Node is gone ends at once, and
// says why in the same words, whatever the API server answers by then: a token
// it has checked before it takes for some time after the guest's rights are gone.
func TestRevokedGuestEnds(t *testing.T) {
	for _, refusal := range []int{0, http.StatusUnauthorized, http.StatusForbidden} {
		f := newFakeServer(t)
		newGuestNode(f)
		f.set(newPeer("b", 2))
		s, _ := newGuest(t, f, "anna/1")
		if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
			t.Fatal(err)
		}
		ended, known := make(chan error, 1), make(chan struct{}, 10)
		go func() { ended <- s.Run(t.Context(), func(control.Snapshot) { known <- struct{}{} }) }()
		<-known
		f.change(func() { f.refusal = refusal })
		f.remove("own")
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "the invite was revoked") {
			t.Errorf("Run of a revoked guest that is answered %d: %v", refusal, err)
		}
	}
}

// TestGuestRefusals holds what ends a guest that talks to the API server: a
// token that is refused for some time, and a Node that is not there.
func TestGuestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unauthorized := apierrors.NewUnauthorized("Unauthorized")
		forbidden := &apierrors.StatusError{ErrStatus: metav1.Status{Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden}}
		isFinal := func(err error) bool { return errors.As(err, new(finalError)) }
		invite := newInvite()
		invite.Expires = time.Now().Add(time.Hour)
		s := &Source{cfg: Config{Invite: &invite}, hold: hold{invite: invite}}
		if err := s.final(unauthorized); isFinal(err) {
			t.Errorf("the first refusal: %v", err)
		}
		time.Sleep(refusedFor)
		if err := s.final(forbidden); isFinal(err) {
			t.Errorf("a missing right: %v", err)
		}
		if err := s.final(unauthorized); isFinal(err) {
			t.Errorf("a refusal after an answer: %v", err)
		}
		time.Sleep(refusedFor)
		if err := s.final(unauthorized); !isFinal(err) || !strings.Contains(err.Error(), "the invite was revoked") {
			t.Errorf("a lasting refusal: %v", err)
		}
		time.Sleep(time.Hour)
		if err := s.final(unauthorized); !isFinal(err) || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("a refusal after the end: %v", err)
		}
		if err := s.final(errNoNode); !isFinal(err) {
			t.Errorf("no Node: %v", err)
		}
		if err := (&Source{}).final(errNoNode); isFinal(err) {
			t.Errorf("no Node of a host that is no guest: %v", err)
		}
	})
}

// TestExpiredGuests holds that peers drop a guest when its invite ends, and at
// once if nobody can tell when that is.
func TestExpiredGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Source{cfg: Config{Waiting: func(string) {}}, nodes: newNodes("flannel.alpha.coreos.com/", func() {})}
		guest := func(name string, n byte, expires string) *corev1.Node {
			node := newPeer(name, n)
			node.Labels = map[string]string{guestLabel: "true"}
			node.Annotations[expiresAnnotation] = expires
			return node
		}
		at := func(d time.Duration) string { return time.Now().Add(d).Format(time.RFC3339) }
		renewed := guest("renewed", 4, at(time.Hour))
		list := []any{newPeer("a", 1), guest("early", 2, at(time.Hour)), guest("late", 3, at(2*time.Hour)), renewed, guest("odd", 5, "soon")}
		s.nodes.Replace(list, "")
		var mu sync.Mutex
		var hosts, problems []string
		go s.deliver(t.Context(), func(snapshot control.Snapshot) {
			mu.Lock()
			defer mu.Unlock()
			hosts, problems = nil, nil
			for _, lease := range snapshot.Leases {
				hosts = append(hosts, lease.Host)
				if lease.Guest != (lease.Host != "a") {
					t.Errorf("%s is a guest: %t", lease.Host, lease.Guest)
				}
			}
			for _, problem := range snapshot.Problems {
				problems = append(problems, problem.Source)
			}
		})
		step := func(d time.Duration, wantHosts, wantProblems string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if strings.Join(hosts, " ") != wantHosts || strings.Join(problems, " ") != wantProblems {
				t.Errorf("hosts are %v and problems %v, want %s and %s", hosts, problems, wantHosts, wantProblems)
			}
		}
		step(time.Second, "a early late renewed", "odd")
		again := renewed.DeepCopy()
		again.Annotations[expiresAnnotation] = at(3 * time.Hour)
		s.nodes.Update(again)
		step(time.Hour-2*time.Second, "a early late renewed", "odd")
		step(time.Second, "a late renewed", "early odd")
		step(time.Hour, "a renewed", "early late odd")
	})
}

// TestRenewedInvite holds that a renewed invite is used once it lies where the
// first one did, and nothing else that lies there.
func TestRenewedInvite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "invite")
	put := func(change func(*Invite)) {
		t.Helper()
		invite := newInvite()
		change(&invite)
		if err := os.WriteFile(path, []byte(encode(t, invite)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(func(*Invite) {})
	invite, err := LoadInvite(path)
	if err != nil {
		t.Fatal(err)
	}
	var seen string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Get("Authorization") }))
	t.Cleanup(server.Close)
	h := hold{invite: invite}
	client := http.Client{Transport: guestTransport{server.Client().Transport, &h}}
	ask := func() string {
		t.Helper()
		answer, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return seen
	}
	later := func(i *Invite) { i.Token, i.Expires = "new", i.Expires.Add(time.Hour) }
	for name, change := range map[string]func(*Invite){
		"the same":        func(*Invite) {},
		"an earlier one":  func(i *Invite) { later(i); i.Expires = time.Now().Add(time.Hour) },
		"another guest's": func(i *Invite) { later(i); i.Node = "other" },
	} {
		put(change)
		if h.reread() || ask() != "Bearer secret" {
			t.Errorf("%s was taken over: %s", name, seen)
		}
	}
	put(later)
	if !h.reread() || ask() != "Bearer new" {
		t.Errorf("a renewed invite was not taken over: %s", seen)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if h.reread() || ask() != "Bearer new" {
		t.Errorf("without the file the guest is %s", seen)
	}
}
