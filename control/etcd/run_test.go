package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
)

// member is a running host with a fixed subnet.
func member(t *testing.T, st *store, cfg Config, n byte) *running {
	t.Helper()
	cfg.Previous = append(cfg.Previous, prefix(fmt.Sprintf("10.244.%d.0/24", n)))
	s := st.source(cfg)
	if got := st.acquire(s, claim(n)); got.Host != fmt.Sprintf("10.244.%d.0-24", n) {
		t.Fatalf("have %s", got.Host)
	}
	r := st.run(s)
	r.until("a first snapshot", func(control.Snapshot) bool { return true })
	return r
}

func has(host string) func(control.Snapshot) bool {
	return func(s control.Snapshot) bool { return slices.Contains(hosts(s), host) }
}

func TestRunDelivers(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 5)
	st.put("subnets/10.244.2.0-24", value4(2))
	st.put("subnets/10.244.9.0-24", value4(9))
	snapshot := r.until("both", func(s control.Snapshot) bool { return len(s.Leases) == 3 })
	if have := hosts(snapshot); !slices.Equal(have, []string{"10.244.2.0-24", "10.244.5.0-24", "10.244.9.0-24"}) {
		t.Errorf("have %v", have)
	}
	before := fmt.Sprint(snapshot)
	st.put("subnets/10.244.2.0-24", value4(22))
	changed := r.until("the change", func(s control.Snapshot) bool {
		return len(s.Leases) == 3 && s.Leases[0].Legs[0].PublicIP.String() == "192.0.2.22"
	})
	st.delete("subnets/10.244.9.0-24")
	r.until("the removal", func(s control.Snapshot) bool { return len(s.Leases) == 2 })
	if fmt.Sprint(snapshot) != before || fmt.Sprint(changed.Leases[2]) != fmt.Sprint(snapshot.Leases[2]) {
		t.Error("a delivered snapshot has changed")
	}
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
	if all := st.all(); all["subnets/10.244.5.0-24"].value == "" {
		t.Error("the own lease went with the agent")
	}
}

// Changes that come together are delivered together.
func TestRunCoalesces(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 200)
	const count = 100
	for i := range count {
		st.put(fmt.Sprintf("subnets/10.244.%d.0-24", i+1), value4(byte(i+1)))
	}
	delivered := 0
	r.until("all of them", func(s control.Snapshot) bool { delivered++; return len(s.Leases) == count+1 })
	if delivered >= count/2 {
		t.Errorf("%d changes were delivered %d times", count, delivered)
	}
}

// Bug 1 of flannel: one foreign key or one bad value wipes all peers.
func TestBug1ForeignKeys(t *testing.T) {
	st := network(t, net4)
	st.put("subnets/early", "x") // in the first listing
	r := member(t, st, st.config(), 1)
	st.put("subnets/10.244.2.0-24", value4(2))
	st.put("subnets/10.244.3.0-24", value4(3))
	r.until("the peers", func(s control.Snapshot) bool { return len(s.Leases) == 3 })
	foreign := []string{"subnets-meta/x", "subnets/10.244.300.0-24", "subnets/10.244.4.0-24", "subnets/\x1b[2J", "subnets/early"}
	for _, key := range foreign[:4] {
		st.put(key, "{]")
	}
	snapshot := r.until("the problems", func(s control.Snapshot) bool { return len(s.Problems) == len(foreign) })
	if have := hosts(snapshot); len(have) != 3 {
		t.Errorf("have %v", have)
	}
	for i, problem := range snapshot.Problems {
		if !strings.Contains(problem.Source, st.prefix) || strings.Contains(problem.Source, "\x1b") || !strings.Contains(problem.Reason, "delete it") {
			t.Errorf("problem %d: %+v", i, problem)
		}
	}
	// A peer whose value turns bad goes; the others stay.
	st.put("subnets/10.244.2.0-24", "null")
	snapshot = r.until("one more problem", func(s control.Snapshot) bool { return len(s.Problems) == len(foreign)+1 })
	if have := hosts(snapshot); !slices.Equal(have, []string{"10.244.1.0-24", "10.244.3.0-24"}) {
		t.Errorf("have %v", have)
	}
	// A leg that cannot be used is named, and its host stays in sight.
	st.put("subnets/10.244.2.0-24", `{"PublicIP":"192.0.2.2","BackendType":"vxlan","BackendData":{"VNI":1}}`)
	snapshot = r.until("the host", func(s control.Snapshot) bool { return len(s.Problems) == len(foreign) && len(s.Leases) == 3 })
	if l := snapshot.Leases[1]; len(l.Legs) != 0 || len(l.Problems) != 1 || !strings.Contains(l.Problems[0], "VtepMAC is missing") {
		t.Errorf("have %+v", l)
	}
	for _, key := range foreign {
		st.delete(key)
	}
	r.until("no problems", func(s control.Snapshot) bool { return len(s.Problems) == 0 })
}

// Bug 2 of flannel: a first listing that fails leaves it deaf for ever and
// deaf to signals.
func TestBug2FirstListingFails(t *testing.T) {
	st := network(t, net4)
	line := newLine(t, st.endpoint)
	waiting := newReasons()
	cfg := st.config()
	cfg.Endpoints, cfg.Waiting = []string{line.endpoint}, waiting.add
	s := st.source(cfg)
	st.acquire(s, claim(1))
	line.cut()
	r := st.run(s)
	reason := waiting.next(t, func(reason string) bool { return reason != "" })
	if !strings.Contains(reason, "list leases in etcd at "+line.endpoint) {
		t.Errorf("have %q", reason)
	}
	line.heal()
	snapshot := r.until("a snapshot", func(control.Snapshot) bool { return true })
	if len(snapshot.Leases) != 1 {
		t.Errorf("have %v", hosts(snapshot))
	}
	waiting.next(t, func(reason string) bool { return reason == "" })

	// And it ends while it waits.
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
	line.cut()
	r = st.run(s)
	waiting.next(t, func(reason string) bool { return reason != "" })
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
}

// The watch goes on where it was after etcd has been away.
func TestRunOutage(t *testing.T) {
	st := network(t, net4)
	line := newLine(t, st.endpoint)
	cfg := st.config()
	cfg.Endpoints = []string{line.endpoint}
	r := member(t, st, cfg, 1)
	st.put("subnets/10.244.2.0-24", value4(2))
	r.until("a peer", has("10.244.2.0-24"))
	line.cut()
	st.delete("subnets/10.244.2.0-24")
	st.put("subnets/10.244.3.0-24", value4(3))
	line.heal()
	snapshot := r.until("another", has("10.244.3.0-24"))
	if have := hosts(snapshot); !slices.Equal(have, []string{"10.244.1.0-24", "10.244.3.0-24"}) {
		t.Errorf("have %v", have)
	}
}

// Compaction past the watch asks for a listing, not for an end.
func TestRunCompacted(t *testing.T) {
	srv := ownServer(t)
	st := newStore(t, srv.endpoint)
	st.put("config", net4)
	line := newLine(t, st.endpoint)
	cfg := st.config()
	cfg.Endpoints = []string{line.endpoint}
	cfg.Previous = []netip.Prefix{prefix("10.244.1.0/24")} // not one that a peer has below
	s := st.source(cfg)
	st.acquire(s, claim(1))
	stale, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	compact := func() {
		t.Helper()
		var last int64
		for range 5 {
			last = st.put("subnets/10.244.2.0-24", value4(2))
		}
		if _, err := st.Compact(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	compact()
	if _, err := s.follow(t.Context(), stale, func(control.Snapshot) { t.Error("delivered") }); err == nil || !strings.Contains(err.Error(), "compacted") {
		t.Errorf("have %v", err)
	}

	// The same from outside: what a watch missed in an outage is compacted away.
	r := st.run(s)
	for range 3 {
		st.put("subnets/10.244.3.0-24", value4(3))
		r.until("everyone", func(s control.Snapshot) bool { return len(s.Leases) == 3 })
		line.cut()
		st.delete("subnets/10.244.3.0-24")
		compact()
		line.heal()
		r.until("one less", func(s control.Snapshot) bool { return len(s.Leases) == 2 })
	}
}

// Bug 6 of flannel: a second listing removes the own lease. Snapshots are
// whole and the own lease is in every one of them.
func TestBug6OwnLeaseInEverySnapshot(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	// Each of these makes Run list again.
	for range 3 {
		st.put("subnets/10.244.1.0-24", value4(1))
		st.put("subnets/10.244.2.0-24", value4(2))
		r.until("the peer", has("10.244.2.0-24"))
		st.delete("subnets/10.244.2.0-24")
		r.until("the peer's end", func(s control.Snapshot) bool {
			if !has("10.244.1.0-24")(s) {
				t.Errorf("have %v", hosts(s))
			}
			return len(s.Leases) == 1
		})
	}
}

// A lease that expired is made again while its subnet is free.
func TestRunRestores(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	const key = "subnets/10.244.1.0-24"
	back := func(changed int64) pair {
		t.Helper()
		r.until("the own lease", has("10.244.1.0-24"))
		p := st.all()[key]
		if p.value != value4(1) || p.etcd == 0 || p.changed <= changed {
			t.Errorf("have %+v", p)
		}
		return p
	}
	p := st.all()[key]
	st.expire(p.etcd)
	again := back(p.changed)
	if again.etcd == p.etcd {
		t.Error("the etcd lease did not end")
	}
	st.delete(key)
	if last := back(again.changed); last.etcd != again.etcd {
		t.Error("a living etcd lease was not used again")
	}
}

// A reservation that is deleted becomes an ordinary lease.
func TestRunReservationDeleted(t *testing.T) {
	st := network(t, net4)
	const key = "subnets/10.244.1.0-24"
	st.put(key, `{"PublicIP":"192.0.2.1"}`)
	r := member(t, st, st.config(), 1)
	st.delete(key)
	r.until("the own lease", has("10.244.1.0-24"))
	if p := st.all()[key]; p.etcd == 0 || p.value != value4(1) {
		t.Errorf("have %+v", p)
	}
}

// Bug 4 of flannel: renewal overwrites another owner.
func TestBug4RenewalLeavesAnotherOwner(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	s := r.source
	const key = "subnets/10.244.1.0-24"
	etcdLease := st.all()[key].etcd
	st.put(key, value4(2))
	err := r.ended()
	if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "192.0.2.2") || !strings.Contains(err.Error(), key) {
		t.Errorf("have %v", err)
	}
	p := st.all()[key]
	if p.value != value4(2) || p.etcd != 0 {
		t.Errorf("have %+v", p)
	}
	// Even a renewal that comes before the watch speaks leaves it alone.
	if _, err := s.keepAlive(t.Context(), etcdLease); err != nil {
		t.Error(err)
	}
	if now := st.all()[key]; now != p {
		t.Errorf("have %+v, want %+v", now, p)
	}
	// Started again, this host gets another subnet.
	if got := st.acquire(st.source(s.cfg), claim(1)); got.Host == "10.244.1.0-24" {
		t.Error("the subnet was taken back")
	}
}

// A subnet that was leased to another while our key was gone is lost, also
// under another key.
func TestRunLostUnderAnotherKey(t *testing.T) {
	for _, taker := range []string{"subnets/10.244.0.0-20", "subnets/10.244.1.128-25", "subnets/10.244.1.0-24&fd00::-64"} {
		st := network(t, net4)
		r := member(t, st, st.config(), 1)
		_, err := st.Txn(t.Context()).Then(
			clientv3.OpDelete(st.prefix+"/subnets/10.244.1.0-24"),
			clientv3.OpPut(st.prefix+"/"+taker, value4(2))).Commit()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ended(); !errors.Is(err, ErrLost) {
			t.Errorf("%s: have %v", taker, err)
		}
		if all := st.all(); len(all) != 1 {
			t.Errorf("%s: have %v", taker, all)
		}
		st.delete(taker)
	}
}

// A key of ours that someone changed is put right, once.
func TestRunPutsRight(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	s := r.source
	const key = "subnets/10.244.1.0-24"
	before := st.all()[key]
	st.put(key, "junk")
	r.until("the own lease", func(snapshot control.Snapshot) bool {
		return has("10.244.1.0-24")(snapshot) && len(snapshot.Problems) == 0
	})
	if p := st.all()[key]; p.value != value4(1) || p.etcd != before.etcd {
		t.Errorf("have %+v, want %+v", p, before)
	}
	// Again so soon it waits, so that two agents do not busy the whole network.
	wrong := strings.Replace(value4(1), "02:34", "02:99", 1)
	st.put(key, wrong, clientv3.WithLease(before.etcd))
	r.until("the wrong lease", func(snapshot control.Snapshot) bool {
		return has("10.244.1.0-24")(snapshot) && snapshot.Leases[0].Legs[0].MAC[1] == 0x99
	})
	st.put("subnets/10.244.2.0-24", value4(2))
	r.until("a peer", has("10.244.2.0-24"))
	if p := st.all()[key]; p.value != wrong {
		t.Errorf("have %+v", p)
	}
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if s.own.due.IsZero() || s.nextUpkeep() > rewriteTime {
		t.Errorf("it is not to be put right: %+v", s.own)
	}
	s.own.rewritten = s.own.rewritten.Add(-rewriteTime)
	r = st.run(s)
	r.until("the right lease", func(snapshot control.Snapshot) bool { return snapshot.Leases[0].Legs[0].MAC[1] == 0x34 })
}

// A user who puts the own lease without an expiry has made a reservation.
func TestRunBecomesReservation(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	s := r.source
	const key = "subnets/10.244.1.0-24"
	st.put(key, value4(1))
	st.put("subnets/10.244.2.0-24", value4(2))
	r.until("a peer", has("10.244.2.0-24"))
	r.cancel()
	if err := r.ended(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if p := st.all()[key]; p.etcd != 0 || s.own.etcd != 0 {
		t.Errorf("have %+v, %+v", p, s.own)
	}
	if next, err := s.tend(t.Context()); err != nil || next <= 0 {
		t.Errorf("have %v, %v", next, err)
	}
	if p := st.all()[key]; p.etcd != 0 {
		t.Errorf("have %+v", p)
	}
}

// A key that was spoilt while this host was away for longer than its etcd
// lease lives is put right under a new one.
func TestRunPutsRightLate(t *testing.T) {
	st := network(t, net4)
	s := st.source(st.config())
	key := "subnets/" + st.acquire(s, claim(1)).Host
	st.put(key, "junk")
	st.expire(s.own.etcd)
	r := st.run(s)
	r.until("the own lease", func(s control.Snapshot) bool { return len(s.Leases) == 1 && len(s.Problems) == 0 })
	if p := st.all()[key]; p.value != value4(1) || p.etcd == 0 {
		t.Errorf("have %+v", p)
	}
}

// A stolen key that is given back before Run looks is simply ours.
func TestTakeOwn(t *testing.T) {
	st := network(t, net4)
	s := st.source(st.config())
	got := st.acquire(s, claim(1))
	table, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.settle(t.Context(), table); err != nil {
		t.Error(err)
	}
	watch := st.Watch(t.Context(), s.own.key, clientv3.WithRev(table.revision+1))
	st.put("subnets/"+got.Host, value4(1))
	response := <-watch
	if err := s.take(table, response.Events); err == nil {
		t.Error("a change of the own lease went unseen")
	}
	if have := table.snapshot(); !reflect.DeepEqual(have.Leases, []control.Lease{got}) {
		t.Errorf("have %+v, want %+v", have, got)
	}
}
