package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/control"
)

// elsewhere is the claim of a host that has moved, and its lease.
func elsewhere(addr string) (control.Claim, control.Lease) {
	claim, lease := dualClaim(), peerLease("own", 1)
	claim.Legs[0].PublicIP = netip.MustParseAddr(addr)
	lease.Legs = slices.Clone(lease.Legs)
	lease.Legs[0].PublicIP = claim.Legs[0].PublicIP
	return claim, lease
}

// TestMoveRepublishes holds that another claim is published, as often as there
// is one, and nothing else.
func TestMoveRepublishes(t *testing.T) {
	f := newFakeServer(t)
	s, _, feed := holding(t, f)
	for _, addr := range []string{"192.168.7.91", "192.168.7.92", "192.168.7.93"} {
		claim, want := elsewhere(addr)
		if err := s.Move(claim); err != nil {
			t.Fatal(err)
		}
		feed.await(t, want)
		patches := f.sentPatches()
		if last := patches[len(patches)-1]; last != `{"metadata":{"annotations":{"flannel.alpha.coreos.com/public-ip":"`+addr+`"}},"status":{}}` {
			t.Errorf("patch is %s", last)
		}
	}
	if n := len(f.sentPatches()); n != 4 {
		t.Errorf("%d patches, want one for each claim: %v", n, f.sentPatches())
	}
	claim := dualClaim()
	claim.Legs[1] = claim.Legs[0]
	if err := s.Move(claim); err == nil {
		t.Error("a claim that cannot be published is taken")
	}
}

// TestMoveMakesConnectionsAnew: those from an address that is gone are dead
// without anybody being told.
func TestMoveMakesConnectionsAnew(t *testing.T) {
	f := newFakeServer(t)
	s, _, feed := holding(t, f)
	f.mu.Lock()
	before := f.closed
	f.mu.Unlock()
	claim, want := elsewhere("192.168.7.91")
	if err := s.Move(claim); err != nil {
		t.Fatal(err)
	}
	feed.await(t, want)
	f.set(newPeer("b", 2)) // seen by a watch that has been opened anew
	feed.await(t, peerLease("b", 2), want)
	f.await(t, "the end of the old connections", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.closed > before
	})
}

// TestPace: a quarrel about the own Node is slowed down, a new wish is not.
func TestPace(t *testing.T) {
	var p pace
	first, second := wish{claim: new(control.Claim)}, wish{claim: new(control.Claim), overwrites: [2]string{"203.0.113.9"}}
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		wish  wish
		want  time.Duration
	}{
		{0, first, 0}, {0, first, time.Second}, {0, first, 2 * time.Second}, {0, second, 0}, {0, second, time.Second},
		{0, first, 0}, {0, first, time.Second}, {repairPeace, first, 0}, {0, first, time.Second}, {0, first, 2 * time.Second},
		{0, first, 4 * time.Second}, {0, first, 8 * time.Second}, {0, first, 16 * time.Second}, {0, first, lastRepairGap}, {0, first, lastRepairGap},
	} {
		now = now.Add(step.after)
		wait := p.next(now, step.wish)
		if wait != step.want {
			t.Errorf("step %d waits for %v, want %v", i, wait, step.want)
		}
		now = now.Add(wait)
	}
}

const (
	overwriteName  = "flannel.alpha.coreos.com/public-ip-overwrite"
	nodePublicName = "flannel.alpha.coreos.com/node-public-ip"
)

// annotateOwn sets an annotation of the own Node; empty: takes it away.
func (f *fakeServer) annotateOwn(name, value string) {
	f.edit("own", func(n *corev1.Node) {
		if delete(n.Annotations, name); value != "" {
			n.Annotations[name] = value
		}
	})
}

// TestOverwriteIsLive walks through the life of a public-ip-overwrite: it is
// published at once, what makes no sense leaves all as it is, and without it the
// host's own address is back.
func TestOverwriteIsLive(t *testing.T) {
	f := newFakeServer(t)
	s, why, feed := holding(t, f)
	for _, value := range []string{"203.0.113.9", "203.0.113.8", "203.0.113.7"} {
		f.annotateOwn(overwriteName, value)
		_, want := elsewhere(value)
		feed.await(t, want)
		if recall := <-s.Recalls(); !slices.Equal(recall.Overwrite, []netip.Addr{netip.MustParseAddr(value)}) {
			t.Errorf("told %+v", recall)
		}
	}
	f.annotateOwn(overwriteName, "example.org")
	why.await(t, "public-ip-overwrite")
	if have := f.get("own").Annotations["flannel.alpha.coreos.com/public-ip"]; have != "203.0.113.7" {
		t.Errorf("publishes %s instead of nonsense, want what it was", have)
	}
	// A move meanwhile is published once it can be, below the overwrite.
	claim, moved := elsewhere("192.168.7.91")
	if err := s.Move(claim); err != nil {
		t.Fatal(err)
	}
	f.annotateOwn(overwriteName, "203.0.113.6")
	_, want := elsewhere("203.0.113.6")
	feed.await(t, want)
	why.await(t, "")
	<-s.Recalls()
	f.annotateOwn(overwriteName, "")
	feed.await(t, moved)
	if recall := <-s.Recalls(); len(recall.Overwrite) != 0 {
		t.Errorf("told %+v", recall)
	}
}

// TestRecallsAreLive holds that what the user sets on the Node, and the Node's
// own address, are passed on, each change once, and nonsense is not.
func TestRecallsAreLive(t *testing.T) {
	f := newFakeServer(t)
	s, why := prepared(t, f)
	f.set(newNode("own", cidr4(1), cidr6(1)))
	if _, err := s.Recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Acquire(t.Context(), dualClaim()); err != nil {
		t.Fatal(err)
	}
	runSource(t, s).await(t, peerLease("own", 1))
	f.annotateOwn(nodePublicName, "nonsense")
	why.await(t, "node-public-ip")
	f.annotateOwn(nodePublicName, "203.0.113.7")
	if recall := <-s.Recalls(); !slices.Equal(recall.PublicIP, []netip.Addr{netip.MustParseAddr("203.0.113.7")}) || len(recall.Overwrite) != 0 {
		t.Errorf("told %+v", recall)
	}
	why.await(t, "")
	f.annotateOwn("example.com/noise", "1")
	f.edit("own", func(n *corev1.Node) {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "own"}, {Type: corev1.NodeInternalIP, Address: "192.168.7.50"}}
	})
	if recall := <-s.Recalls(); !slices.Equal(recall.InternalIP, []netip.Addr{netip.MustParseAddr("192.168.7.50")}) || len(recall.PublicIP) != 1 {
		t.Errorf("told %+v", recall)
	}
	// Bad values damage nothing else: the annotations are put back all the same.
	f.annotateOwn(nodePublicName, "nonsense")
	f.annotateOwn("flannel.alpha.coreos.com/backend-type", "junk")
	f.await(t, "the backend type", func() bool { return f.get("own").Annotations["flannel.alpha.coreos.com/backend-type"] == "vxlan" })
	if !strings.Contains(why.String(), "node-public-ip") {
		t.Errorf("reasons %s", why)
	}
}
