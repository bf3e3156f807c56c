package etcd

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
)

// at is a claim of host n at the address of host m.
func at(n, m byte) control.Claim {
	c := claim(n)
	c.Legs[0].PublicIP = claim(m).Legs[0].PublicIP
	return c
}

// published waits until the lease of a host says that it is there.
func published(host string, addr netip.Addr) func(control.Snapshot) bool {
	return func(s control.Snapshot) bool {
		for _, l := range s.Leases {
			if l.Host == host && len(l.Legs) == 1 && l.Legs[0].PublicIP == addr {
				return true
			}
		}
		return false
	}
}

// A host that moves keeps its key and its etcd lease; its peers see the new
// address at once, also when it moves on within the time of a quarrel.
func TestMoveRepublishes(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	peer := member(t, st, st.config(), 2)
	before := st.all()["subnets/10.244.1.0-24"]
	for _, m := range []byte{91, 92, 93} {
		want := at(1, m)
		if err := r.source.Move(want); err != nil {
			t.Fatal(err)
		}
		addr := want.Legs[0].PublicIP
		r.until("its own move", published("10.244.1.0-24", addr))
		peer.until("the move", published("10.244.1.0-24", addr))
	}
	after := st.all()["subnets/10.244.1.0-24"]
	if want := strings.Replace(value4(1), "192.0.2.1\"", "192.0.2.93\"", 1); after.value != want || after.etcd != before.etcd || len(st.all()) != 2 {
		t.Errorf("have %+v of %d, want %s in place of %+v", after, len(st.all()), want, before)
	}
	if err := r.source.Move(claim(1, "4", "6")); err == nil || !strings.Contains(err.Error(), "2 address families") {
		t.Errorf("a claim of other families: %v", err)
	}
}

// Where the address stays and only this host's end of its connection is gone,
// nothing is written, and the leases are followed on another connection.
func TestMoveMakesTheConnectionAnew(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	before, conn := st.all()["subnets/10.244.1.0-24"], r.source.conn
	if err := r.source.Move(claim(1)); err != nil {
		t.Fatal(err)
	}
	st.put("subnets/10.244.2.0-24", value4(2))
	r.until("a peer", has("10.244.2.0-24"))
	r.source.mu.Lock()
	defer r.source.mu.Unlock()
	if r.source.conn == conn {
		t.Error("the old connection is still used")
	}
	if after := st.all()["subnets/10.244.1.0-24"]; after != before {
		t.Errorf("have %+v, want %+v", after, before)
	}
}

// A move while etcd is out of reach is published afterwards, the last one only.
func TestMoveDuringOutage(t *testing.T) {
	st := network(t, net4)
	line := newLine(t, st.endpoint)
	cfg := st.config()
	cfg.Endpoints = []string{line.endpoint}
	r := member(t, st, cfg, 1)
	line.cut()
	for _, m := range []byte{91, 92} {
		if err := r.source.Move(at(1, m)); err != nil {
			t.Fatal(err)
		}
	}
	line.heal()
	r.until("the move", published("10.244.1.0-24", at(1, 92).Legs[0].PublicIP))
}

// Before the lease is rewritten it is ours by the old address, and afterwards
// by the new one alone: whoever is at the old one now is another host.
func TestMoveLeavesTheOldAddress(t *testing.T) {
	st := network(t, net4)
	r := member(t, st, st.config(), 1)
	if err := r.source.Move(at(1, 91)); err != nil {
		t.Fatal(err)
	}
	r.until("the move", published("10.244.1.0-24", at(1, 91).Legs[0].PublicIP))
	st.put("subnets/10.244.1.0-24", value4(1))
	if err := r.ended(); err == nil || !strings.Contains(err.Error(), "now belongs to 192.0.2.1") {
		t.Errorf("have %v", err)
	}
}
