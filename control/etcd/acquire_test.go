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
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

// What is written must be flannel's key, value and time to live.
func TestAcquireBytes(t *testing.T) {
	for name, test := range map[string]struct {
		config     string
		families   []string
		previous   []netip.Prefix
		key, value string
	}{
		"IPv4": {net4, []string{"4"}, []netip.Prefix{prefix("10.244.7.0/24")}, "subnets/10.244.7.0-24", value4(3)},
		"dual": {netDual, []string{"4", "6"}, []netip.Prefix{prefix("10.244.7.0/24"), prefix("fd00:10:244:9::/64")}, "subnets/10.244.7.0-24&fd00:10:244:9::-64",
			`{"PublicIP":"192.0.2.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:34:00:00:00:03"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:36:00:00:00:03"}}`},
		"IPv6": {net6, []string{"6"}, []netip.Prefix{prefix("fd00:10:244:9::/64")}, "x-weft-subnets/fd00:10:244:9::-64",
			`{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"02:36:00:00:00:03"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			st := network(t, test.config)
			cfg := st.config()
			cfg.Previous = test.previous
			got := st.acquire(st.source(cfg), claim(3, test.families...))
			all := st.all()
			if len(all) != 1 || all[test.key].value != test.value {
				t.Errorf("have %v, want %s = %s", all, test.key, test.value)
			}
			life, err := st.TimeToLive(t.Context(), all[test.key].etcd)
			if err != nil || life.GrantedTTL != 86400 {
				t.Errorf("have %+v, %v, want 86400", life, err)
			}
			want := control.Lease{Host: test.key[strings.Index(test.key, "/")+1:], Backend: "vxlan", Legs: claim(3, test.families...).Legs}
			for i := range want.Legs {
				want.Legs[i].Subnet = test.previous[i]
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("have %+v, want %+v", got, want)
			}
		})
	}
}

func TestAcquireAgain(t *testing.T) {
	st := network(t, net4)
	first := st.acquire(st.source(st.config()), claim(1))
	before := st.all()
	// A restart finds the lease, extends it and writes nothing.
	if again := st.acquire(st.source(st.config()), claim(1)); !reflect.DeepEqual(again, first) {
		t.Errorf("have %+v, want %+v", again, first)
	}
	if after := st.all(); !reflect.DeepEqual(after, before) {
		t.Errorf("have %v, want %v", after, before)
	}
	// A new MAC is written under the same key and etcd lease.
	changed := claim(1)
	changed.Legs[0].MAC[5] = 0x77
	st.acquire(st.source(st.config()), changed)
	after := st.all()
	key := "subnets/" + first.Host
	if len(after) != 1 || !strings.Contains(after[key].value, "02:34:00:00:00:77") || after[key].etcd != before[key].etcd {
		t.Errorf("have %v", after)
	}
}

// The own lease wins over what a file remembers.
func TestAcquirePrevious(t *testing.T) {
	st := network(t, net4)
	st.put("subnets/10.244.5.0-24", value4(9))
	cfg := st.config()
	cfg.Previous = []netip.Prefix{prefix("10.244.5.0/24"), prefix("10.99.1.0/24"), prefix("10.244.6.0/25"), prefix("10.244.6.0/24")}
	if got := st.acquire(st.source(cfg), claim(1)); got.Host != "10.244.6.0-24" {
		t.Errorf("have %s, want the one previous subnet that is free and fits", got.Host)
	}
	cfg.Previous = []netip.Prefix{prefix("10.244.7.0/24")}
	if got := st.acquire(st.source(cfg), claim(1)); got.Host != "10.244.6.0-24" {
		t.Errorf("have %s, want the own lease", got.Host)
	}
}

// A lease that the configuration no longer allows is replaced in one step.
func TestAcquireIncompatible(t *testing.T) {
	st := network(t, net4)
	st.put("subnets/10.1.5.0-24", value4(1), clientv3.WithLease(st.grant()))
	got := st.acquire(st.source(st.config()), claim(1))
	if all := st.all(); len(all) != 1 || all["subnets/"+got.Host].value != value4(1) {
		t.Errorf("have %v", all)
	}
	if !prefix("10.244.0.0/16").Contains(got.Legs[0].Subnet.Addr()) {
		t.Errorf("have %v", got)
	}
}

// Whatever overlaps a taken subnet is taken, and so is what cannot be read.
func TestAcquireAvoids(t *testing.T) {
	st := network(t, `{"Network":"10.244.0.0/22","SubnetLen":24,"SubnetMin":"10.244.0.0","Backend":{"Type":"vxlan"}}`)
	st.put("subnets/10.244.0.0-23", value4(8))
	st.put("subnets/10.244.2.16-28", "junk")
	st.put("subnets-meta/10.244.3.0-24", value4(7))
	if got := st.acquire(st.source(st.config()), claim(1)); got.Host != "10.244.3.0-24" {
		t.Errorf("have %s", got.Host)
	}
}

// Half of a network of four thousand million subnets is not looked through.
func TestAcquireSkips(t *testing.T) {
	st := network(t, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/32","Backend":{"Type":"vxlan"}}`)
	st.put("x-weft-subnets/fd00::-33", value4(8))
	if got := st.acquire(st.source(st.config()), claim(1, "6")); !prefix("fd00:0:8000::/33").Contains(got.Legs[0].Subnet.Addr()) {
		t.Errorf("have %s", got.Host)
	}
}

// A full network is waited on, and says so.
func TestAcquireFull(t *testing.T) {
	st := network(t, `{"Network":"10.244.0.0/28","Backend":{"Type":"vxlan"}}`)
	for i, key := range []string{"subnets/10.244.0.4-30", "subnets/10.244.0.8-30", "subnets/10.244.0.12-30"} {
		st.put(key, value4(byte(100+i)))
	}
	waiting := newReasons()
	cfg := st.config()
	cfg.Waiting = waiting.add
	s := st.source(cfg)
	got := make(chan control.Lease, 1)
	go func() { got <- st.acquire(s, claim(1)) }()
	reason := waiting.next(t, func(reason string) bool { return reason != "" })
	if !strings.Contains(reason, "no free subnet from 10.244.0.4 to 10.244.0.12 of length /30") {
		t.Errorf("have %q", reason)
	}
	st.delete("subnets/10.244.0.8-30")
	if have := (<-got).Host; have != "10.244.0.8-30" {
		t.Errorf("have %s", have)
	}
	waiting.next(t, func(reason string) bool { return reason == "" })
}

func TestAcquireClaimErrors(t *testing.T) {
	st := network(t, netDual)
	s := st.source(st.config())
	for _, bad := range []control.Claim{{}, claim(1), claim(1, "6"), claim(1, "6", "4"), claim(1, "4", "4")} {
		if got, err := s.Acquire(t.Context(), bad); err == nil {
			t.Errorf("%+v: have %+v", bad, got)
		}
	}
	if all := st.all(); len(all) != 0 {
		t.Errorf("left behind: %v", all)
	}
	unread, err := New(st.config())
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	if _, err := unread.Recall(t.Context()); err == nil {
		t.Error("Recall without a configuration")
	}
	if err := s.Run(t.Context(), nil); err == nil {
		t.Error("Run without a lease")
	}
}

// Bug 4 of flannel: a reservation is given an expiry at the next acquire.
func TestBug4ReservationStays(t *testing.T) {
	st := network(t, net4)
	const key = "subnets/10.244.9.0-24"
	st.put(key, `{"PublicIP": "192.0.2.1"}`)
	for range 2 {
		if got := st.acquire(st.source(st.config()), claim(1)); got.Host != "10.244.9.0-24" {
			t.Fatalf("have %s", got.Host)
		}
		if all := st.all(); len(all) != 1 || all[key].etcd != 0 || all[key].value != value4(1) {
			t.Fatalf("have %v", all)
		}
	}
	before := st.all()[key].changed
	st.acquire(st.source(st.config()), claim(1))
	if after := st.all()[key].changed; after != before {
		t.Error("an unchanged reservation was written")
	}
}

// A reservation made for a host that has a lease already takes its place.
func TestReservationWins(t *testing.T) {
	st := network(t, net4)
	st.acquire(st.source(st.config()), claim(1))
	st.put("subnets/10.244.9.0-24", `{"PublicIP":"192.0.2.1"}`)
	if got := st.acquire(st.source(st.config()), claim(1)); got.Host != "10.244.9.0-24" {
		t.Fatalf("have %s", got.Host)
	}
	if all := st.all(); len(all) != 1 {
		t.Errorf("have %v", all)
	}
}

// Two keys of this host for the same subnet become one.
func TestAcquireTwice(t *testing.T) {
	for _, permanent := range []bool{false, true} {
		st := network(t, net4)
		for _, key := range []string{"subnets/10.244.9.0-24&fd00:10:244:9::-64", "subnets/10.244.9.0-24"} {
			var options []clientv3.OpOption
			if !permanent {
				options = append(options, clientv3.WithLease(st.grant()))
			}
			st.put(key, value4(1), options...)
		}
		if got := st.acquire(st.source(st.config()), claim(1)); got.Host != "10.244.9.0-24" {
			t.Errorf("have %s", got.Host)
		}
		all := st.all()
		if p := all["subnets/10.244.9.0-24"]; p.value != value4(1) || (p.etcd == 0) != permanent || !permanent && len(all) != 1 {
			t.Errorf("have %+v", all)
		}
		st.put("config", netDual)
		if got := st.acquire(st.source(st.config()), claim(1, "4", "6")); !strings.HasPrefix(got.Host, "10.244.9.0-24&") {
			t.Errorf("have %s", got.Host)
		}
	}
}

// Of two hosts on one subnet the older lease stays and the other moves.
func TestAcquireConflict(t *testing.T) {
	st := network(t, net4)
	st.put("subnets/10.244.9.0-24", value4(1), clientv3.WithLease(st.grant()))
	st.put("subnets/10.244.9.0-24&fd00::-64", value4(2), clientv3.WithLease(st.grant()))
	if got := st.acquire(st.source(st.config()), claim(1)); got.Host != "10.244.9.0-24" {
		t.Errorf("have %s", got.Host)
	}
	if got := st.acquire(st.source(st.config()), claim(2)); strings.HasPrefix(got.Host, "10.244.9.0") {
		t.Errorf("have %s", got.Host)
	}
	if all := st.all(); len(all) != 2 {
		t.Errorf("have %+v", all)
	}
}

// A reservation that does not fit the network is not deleted.
func TestReservationOutside(t *testing.T) {
	st := network(t, net4)
	st.put("subnets/10.9.9.0-24", `{"PublicIP":"192.0.2.1"}`)
	got := st.acquire(st.source(st.config()), claim(1))
	if again := st.acquire(st.source(st.config()), claim(1)); again.Host != got.Host {
		t.Errorf("have %s, then %s", got.Host, again.Host)
	}
	all := st.all()
	if len(all) != 2 || all["subnets/10.9.9.0-24"].etcd != 0 || all["subnets/"+got.Host].etcd == 0 {
		t.Errorf("have %v", all)
	}
}

// Bug 5 of flannel: it panics when IPv6 is enabled while leases without it
// exist. Hosts keep their IPv4 subnet, and a reservation its permanence.
func TestBug5EnableIPv6(t *testing.T) {
	st := network(t, net4)
	first := st.acquire(st.source(st.config()), claim(1))
	st.put("subnets/10.244.9.0-24", `{"PublicIP":"192.0.2.2"}`)
	st.acquire(st.source(st.config()), claim(2))
	old := st.all()["subnets/"+first.Host]

	st.put("config", netDual)
	for n, want := range map[byte]string{1: first.Host, 2: "10.244.9.0-24"} {
		got := st.acquire(st.source(st.config()), claim(n, "4", "6"))
		if len(got.Legs) != 2 || !strings.HasPrefix(got.Host, want+"&fd00:10:244:") {
			t.Errorf("have %+v, want %s and IPv6", got, want)
		}
		p := st.all()["subnets/"+got.Host]
		if n == 1 && p.etcd != old.etcd || n == 2 && p.etcd != 0 {
			t.Errorf("host %d: the expiry has changed: %+v", n, p)
		}
	}
	st.put("subnets/10.244.20.0-24", value4(20)) // a host that is still IPv4 only
	third := st.source(st.config())
	st.acquire(third, claim(3, "4", "6"))
	if all := st.all(); len(all) != 4 {
		t.Errorf("have %v", all)
	}
	r := st.run(third)
	snapshot := r.until("everyone", func(s control.Snapshot) bool { return len(s.Leases) == 4 })
	if legs := snapshot.Leases[slices.Index(hosts(snapshot), "10.244.20.0-24")].Legs; len(legs) != 1 || len(snapshot.Problems) > 0 {
		t.Errorf("have %+v", snapshot)
	}

	// And back.
	st.put("config", net4)
	if got := st.acquire(st.source(st.config()), claim(1)); got.Host != first.Host {
		t.Errorf("have %s, want %s", got.Host, first.Host)
	}
}

// Bug 15 of flannel: in etcd mode the MAC is not remembered.
func TestBug15Recall(t *testing.T) {
	st := network(t, netDual)
	mine := claim(1, "4", "6")
	mine.Offers.WireGuard = control.WireGuardOffer{Keys: tunnel.WireGuardKeys{{7}, {8}}, Ports: [2]uint16{51820, 51821}}
	st.acquire(st.source(st.config()), mine)
	cfg := st.config()
	cfg.PublicIPs = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")}
	have, err := st.source(cfg).Recall(t.Context())
	if err != nil || len(have.MACs) != 2 || have.MACs[0] != claim(1, "4").Legs[0].MAC || have.MACs[1] != claim(1, "6").Legs[0].MAC {
		t.Errorf("have %v, %v", have, err)
	}
	if have.Keys != mine.Offers.WireGuard.Keys {
		t.Errorf("have keys %v, want %v", have.Keys, mine.Offers.WireGuard.Keys)
	}
	cfg.PublicIPs = cfg.PublicIPs[:1]
	if have, err := st.source(cfg).Recall(t.Context()); err != nil || have.MACs != nil {
		t.Errorf("have %v, %v", have, err)
	}
}

// An address that two hosts have had names the host that has more of it, or
// that has the subnet.
func TestFindOwn(t *testing.T) {
	st := network(t, netDual)
	other := claim(9, "4", "6")
	other.Legs[0].PublicIP = claim(1).Legs[0].PublicIP
	cfg := st.config()
	cfg.Previous = []netip.Prefix{prefix("10.244.1.0/24"), prefix("fd00:10:244:1::/64")}
	st.acquire(st.source(cfg), other)
	cfg.Previous = []netip.Prefix{prefix("10.244.2.0/24"), prefix("fd00:10:244:2::/64")}
	s := st.source(cfg)
	st.put("subnets/10.244.2.0-24&fd00:10:244:2::-64", `{"PublicIP":"192.0.2.77","PublicIPv6":"2001:db8::1"}`, clientv3.WithLease(st.grant()))
	if got := st.acquire(s, claim(1, "4", "6")); got.Host != "10.244.2.0-24&fd00:10:244:2::-64" {
		t.Errorf("have %s", got.Host)
	}
	s.cfg.Previous = nil // now all of the addresses speak for it
	if got := st.acquire(s, claim(1, "4", "6")); got.Host != "10.244.2.0-24&fd00:10:244:2::-64" {
		t.Errorf("have %s", got.Host)
	}
	if all := st.all(); len(all) != 2 {
		t.Errorf("the other host's lease is gone: %v", all)
	}
}

func TestAcquireCancelled(t *testing.T) {
	st := network(t, `{"Network":"10.244.0.0/28","Backend":{"Type":"vxlan"}}`)
	st.put("subnets/10.244.0.0-28", value4(9))
	waiting := newReasons()
	cfg := st.config()
	cfg.Waiting = waiting.add
	s := st.source(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.Acquire(ctx, claim(1)); done <- err }()
	waiting.next(t, func(reason string) bool { return reason != "" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("have %v", err)
	}
}

func TestNewErrors(t *testing.T) {
	good := Config{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/p"}
	for want, change := range map[string]func(*Config){
		"no Endpoints":                      func(c *Config) { c.Endpoints = nil },
		`endpoint "ftp://a"`:                func(c *Config) { c.Endpoints = []string{"ftp://a"} },
		"mixed schemes":                     func(c *Config) { c.Endpoints = append(c.Endpoints, "https://a:1") },
		"use Username and Password":         func(c *Config) { c.Endpoints = []string{"http://me:secret@a:1"} },
		"Prefix is empty":                   func(c *Config) { c.Prefix = "" },
		"RenewMargin is 24h0m0s; allowed":   func(c *Config) { c.RenewMargin = 24 * time.Hour },
		"RenewMargin is -1s":                func(c *Config) { c.RenewMargin = -time.Second },
		"KeyFile and CertFile belong":       func(c *Config) { c.KeyFile = "k" },
		"read CAFile: open /nonexistent/ca": func(c *Config) { c.Endpoints = []string{"https://a:1"}; c.CAFile = "/nonexistent/ca" },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("have %v, want %q", err, want)
		}
	}
}

// Bug 16 of flannel: passwords are logged.
func TestBug16PasswordHidden(t *testing.T) {
	cfg := Config{Endpoints: []string{"http://a:1"}, Prefix: "/p", Username: "me", Password: "secret"}
	var log strings.Builder
	cfg.Logger = textLogger(&log)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cfg.Logger.Info("starting", "config", cfg, "all", struct{ Etcd Config }{cfg})
	log.WriteString(fmt.Sprintf("%v %+v %#v %s", cfg, cfg, cfg, struct{ Etcd Config }{cfg}))
	if strings.Contains(log.String(), "secret") {
		t.Error(log.String())
	}
}
