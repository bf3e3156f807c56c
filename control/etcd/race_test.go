package etcd

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
)

// Bug 4 of flannel: a lost race for a subnet makes it exit. Twenty hosts come
// at once to a network that has room for just them.
func TestBug4LostRaceRetries(t *testing.T) {
	for name, test := range map[string]struct {
		config   string
		families []string
	}{
		"IPv4": {`{"Network":"10.244.0.0/22","SubnetLen":27,"SubnetMin":"10.244.0.0","SubnetMax":"10.244.2.96","Backend":{"Type":"vxlan"}}`, []string{"4"}},
		// Only the second family is small: its subnets are not in the order of the keys.
		"dual": {`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/56","IPv6SubnetMin":"fd00::","IPv6SubnetMax":"fd00:0:0:13::","Backend":{"Type":"vxlan"}}`, []string{"4", "6"}},
		"IPv6": {`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/56","IPv6SubnetMin":"fd00::","IPv6SubnetMax":"fd00:0:0:13::","Backend":{"Type":"vxlan"}}`, []string{"6"}},
	} {
		t.Run(name, func(t *testing.T) {
			st := network(t, test.config)
			const count = 20
			before := st.idle()
			leases := make([]control.Lease, count)
			var group sync.WaitGroup
			for i := range leases {
				s := st.source(st.config())
				group.Go(func() {
					var err error
					if leases[i], err = s.Acquire(t.Context(), claim(byte(i+1), test.families...)); err != nil {
						t.Errorf("host %d: %v", i, err)
					}
				})
			}
			group.Wait()
			var subnets []netip.Prefix
			for _, l := range leases {
				for _, leg := range l.Legs {
					if i := slices.IndexFunc(subnets, leg.Subnet.Overlaps); i >= 0 {
						t.Errorf("%v was given twice", leg.Subnet)
					}
					subnets = append(subnets, leg.Subnet)
				}
			}
			all := st.all()
			if len(all) != count || len(subnets) != count*len(test.families) {
				t.Errorf("%d keys, %d subnets", len(all), len(subnets))
			}
			// No etcd lease was granted in vain and kept.
			if idle := st.idle(); idle > before {
				t.Errorf("%d etcd leases hold nothing", idle-before)
			}
		})
	}
}

// idle counts the etcd leases of the server that hold no key.
func (st *store) idle() (idle int) {
	st.t.Helper()
	granted, err := st.Leases(st.t.Context())
	if err != nil {
		st.t.Fatal(err)
	}
	for _, l := range granted.Leases {
		life, err := st.TimeToLive(st.t.Context(), l.ID, clientv3.WithAttachedKeys())
		if err != nil {
			st.t.Fatal(err)
		}
		if life.TTL > 0 && len(life.Keys) == 0 {
			idle++
		}
	}
	return idle
}

// What changed since the listing makes an attempt a lost race that writes
// nothing, whether it is the own key or another with the same subnet.
func TestStaleListing(t *testing.T) {
	for name, test := range map[string]struct{ before, after, value string }{
		"own key taken":     {"subnets/10.244.3.0-24&fd00:10:244:3::-64", "subnets/10.244.3.0-24&fd00:10:244:3::-64", value4(2)},
		"same key":          {"", "subnets/10.244.3.0-24&fd00:10:244:3::-64", value4(2)},
		"same IPv6":         {"", "subnets/10.244.77.0-24&fd00:10:244:3::-64", value4(2)},
		"same IPv4":         {"", "subnets/10.244.3.0-24", value4(2)},
		"left-over changed": {"subnets/10.244.99.0-25", "subnets/10.244.99.0-25", value4(1) + " "},
	} {
		st := network(t, netDual)
		s := st.source(st.config())
		if test.before != "" {
			st.put(test.before, value4(1), clientv3.WithLease(st.grant()))
		}
		table, err := s.list(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st.put(test.after, test.value)
		wanted := claim(1, "4", "6")
		wishAgain(wanted, &holding{subnets: []netip.Prefix{prefix("10.244.3.0/24"), prefix("fd00:10:244:3::/64")}})
		var spare clientv3.LeaseID
		if own, err := s.tryAcquire(t.Context(), table, wanted, []byte(value4(1)+"\n"), &spare); !errors.Is(err, errRace) {
			t.Errorf("%s: have %+v, %v, want a lost race", name, own.key, err)
		}
		if all := st.all(); len(all) != 1 || all[test.after].value != test.value || all[test.after].etcd != 0 {
			t.Errorf("%s: have %+v", name, all)
		}
	}
}

// A left-over that another host has taken since the listing is not removed.
func TestStaleLeftover(t *testing.T) {
	st := network(t, net4)
	s := st.source(st.config())
	for _, key := range []string{"subnets/10.244.3.0-24", "subnets/10.244.4.0-24"} {
		st.put(key, value4(1), clientv3.WithLease(st.grant()))
	}
	table, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st.put("subnets/10.244.4.0-24", value4(2))
	var spare clientv3.LeaseID
	if _, err := s.tryAcquire(t.Context(), table, claim(1), []byte(value4(1)), &spare); !errors.Is(err, errRace) {
		t.Errorf("have %v, want a lost race", err)
	}
	if all := st.all(); len(all) != 2 || all["subnets/10.244.4.0-24"].value != value4(2) {
		t.Errorf("have %+v", all)
	}
}

// A write whose answer is lost, and that comes to pass only after the next
// listing, is neither doubled nor given up.
func TestAcquireUnansweredWrite(t *testing.T) {
	st := network(t, net4)
	s := st.source(st.config())
	table, err := s.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wanted, value, spare := claim(1), []byte(value4(1)), st.grant()
	wishAgain(wanted, nil)
	wishAgain(wanted, &holding{subnets: []netip.Prefix{prefix("10.244.3.0/24")}})
	st.put("subnets/10.244.3.0-24", value4(1), clientv3.WithLease(spare))
	if own, err := s.tryAcquire(t.Context(), table, wanted, value, &spare); !errors.Is(err, errRace) || own.subnets[0] != prefix("10.244.3.0/24") {
		t.Fatalf("have %+v, %v, want a lost race", own, err)
	}
	if table, err = s.list(t.Context()); err != nil {
		t.Fatal(err)
	}
	own, err := s.tryAcquire(t.Context(), table, wanted, value, &spare)
	if err != nil || own.etcd != spare || len(st.all()) != 1 {
		t.Errorf("have %+v, %v", own, err)
	}
}
