package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

var (
	ownLink = tunnel.Link{Name: "flannel.1", Type: tunnel.LinkVXLAN, MTU: 1450}
	routeB  = tunnel.Route{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Link: "flannel.1"}
	routeC  = tunnel.Route{Prefix: netip.MustParsePrefix("10.244.3.0/24"), Link: "flannel.1"}
)

func hostPlan(name string, route tunnel.Route) control.HostPlan {
	return control.HostPlan{Host: name, Ways: []control.Way{{
		Subnet: route.Prefix, Endpoint: netip.MustParseAddrPort("192.0.2.2:8472"), Encap: tunnel.EncapVXLAN,
		Engine: tunnel.EngineKernel, MTU: 1450, Objects: []tunnel.Key{ownLink.Key(), route.Key()},
	}}}
}

// TestReadiness: a host is ready once its peers are programmed, and not before.
func TestReadiness(t *testing.T) {
	done, failed := itemState{Done: true}, itemState{Err: "no such device", Attempts: 3}
	disabled := control.HostPlan{Host: "d", Reasons: []string{"publishes no VTEP MAC"}}
	all := control.Plan{
		Complete: true, MTU: 1450, Objects: []tunnel.Object{ownLink, routeB, routeC},
		Hosts: []control.HostPlan{hostPlan("b", routeB), hostPlan("c", routeC), disabled},
	}
	tests := map[string]struct {
		plan  control.Plan
		items map[tunnel.Key]itemState
		want  bool
	}{
		"no usable family":           {control.Plan{Complete: true}, nil, false},
		"listing not whole":          {control.Plan{Objects: all.Objects}, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): done, routeC.Key(): done}, false},
		"nothing tried":              {all, nil, false},
		"one peer not tried":         {all, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): done}, false},
		"all in place":               {all, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): done, routeC.Key(): done}, true},
		"one peer failed":            {all, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): done, routeC.Key(): failed}, true},
		"every peer failed":          {all, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): failed, routeC.Key(): failed}, false},
		"own device failed":          {all, map[tunnel.Key]itemState{ownLink.Key(): failed, routeB.Key(): done, routeC.Key(): done}, false},
		"alone":                      {control.Plan{Complete: true, MTU: 1450, Objects: []tunnel.Object{ownLink}}, map[tunnel.Key]itemState{ownLink.Key(): done}, true},
		"only peers with bad leases": {control.Plan{Complete: true, MTU: 1450, Objects: []tunnel.Object{ownLink}, Hosts: []control.HostPlan{disabled}}, map[tunnel.Key]itemState{ownLink.Key(): done}, true},
	}
	for name, test := range tests {
		if got := readiness(test.plan, test.items, false); got != test.want {
			t.Errorf("%s: ready %v, want %v", name, got, test.want)
		}
	}
	if !readiness(all, map[tunnel.Key]itemState{ownLink.Key(): done, routeB.Key(): done}, true) {
		t.Error("a new peer makes a host that was ready unready")
	}
	if readiness(all, map[tunnel.Key]itemState{ownLink.Key(): failed, routeB.Key(): done, routeC.Key(): done}, true) {
		t.Error("a host that was ready stays so without its own device")
	}
}

func TestPeerStatus(t *testing.T) {
	items := map[tunnel.Key]itemState{ownLink.Key(): {Done: true}, routeB.Key(): {Done: true}}
	if got := peerStatus(hostPlan("b", routeB), items); got.State != StateUp || got.Endpoint != "192.0.2.2:8472" || got.MTU != 1450 {
		t.Errorf("peer in place: %+v", got)
	}
	if got := peerStatus(hostPlan("c", routeC), items); got.State != StateProgramming {
		t.Errorf("peer not tried: %+v", got)
	}
	items[routeC.Key()] = itemState{Err: "network is unreachable", Attempts: 1}
	if got := peerStatus(hostPlan("c", routeC), items); got.State != StateFailed || !strings.Contains(got.Reason, "network is unreachable") {
		t.Errorf("peer that failed: %+v", got)
	}
	got := peerStatus(control.HostPlan{Host: "d", Reasons: []string{"IPv4: publishes no VTEP MAC"}}, items)
	if got.State != StateUnreachable || got.Reason != "IPv4: publishes no VTEP MAC" {
		t.Errorf("peer with a bad lease: %+v", got)
	}
}

func TestDerivedMACDependsOnTheHostAlone(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")
	first := deriveMAC("node-a", 1, v4)
	if first != deriveMAC("node-a", 1, netip.MustParsePrefix("10.0.0.0/8")) {
		t.Error("the MAC changes with the network")
	}
	if first[0]&3 != 2 {
		t.Errorf("MAC %s is not a locally administered unicast address", first)
	}
	for _, other := range []tunnel.MAC{deriveMAC("node-b", 1, v4), deriveMAC("node-a", 2, v4), deriveMAC("node-a", 1, v6)} {
		if other == first {
			t.Errorf("two identities share MAC %s", other)
		}
	}
}

func TestLinkNames(t *testing.T) {
	four := tunnel.Address{Link: "flannel.1", Prefix: netip.MustParsePrefix("10.244.1.0/32")}
	six := tunnel.Address{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd00::/128")}
	shared := tunnel.Address{Link: four.Link, Prefix: six.Prefix}
	for want, objects := range map[string][]tunnel.Object{
		"":                       {tunnel.Route{Link: "eth0"}},
		"flannel.1":              {four, shared},
		"flannel.1,flannel-v6.1": {six, four, tunnel.Route{Link: "flannel.1"}},
	} {
		if got := linkNames(objects); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestPathMTUs: a peer's path MTU is the smaller one of its families, and
// nothing where the kernel carries its packets.
func TestPathMTUs(t *testing.T) {
	peers := []PeerStatus{
		{Name: "both", Engine: "userspace", Subnets: []string{"10.244.1.0/24", "fd00::1:0/112"}, MTU: 1450},
		{Name: "unknown", Engine: "userspace", Subnets: []string{"10.244.2.0/24"}, MTU: 1450},
		{Name: "kernel", Engine: "kernel", Subnets: []string{"10.244.1.0/24"}, MTU: 1500},
	}
	putPathMTUs(peers, map[netip.Prefix]int{
		netip.MustParsePrefix("10.244.1.0/24"): 1450, netip.MustParsePrefix("fd00::1:0/112"): 1330,
	})
	if peers[0].PathMTU != 1330 || peers[1].PathMTU != 0 || peers[2].PathMTU != 0 {
		t.Errorf("path MTUs %d, %d and %d", peers[0].PathMTU, peers[1].PathMTU, peers[2].PathMTU)
	}
}

type heardEvents []string

func (h *heardEvents) Event(warning bool, reason, note string) {
	if warning {
		reason += "!"
	}
	*h = append(*h, reason+" "+note)
}

// TestPeerEvents holds what of a peer is told: that it is reached in another way,
// or by none, and again; not that it is new, or what only its state goes through.
func TestPeerEvents(t *testing.T) {
	var heard heardEvents
	tracker := NewTracker("a", "test", slog.New(slog.DiscardHandler))
	tracker.events = &heard
	way := func(encap tunnel.Encap) control.HostPlan {
		return control.HostPlan{Host: "b", Ways: []control.Way{{
			Subnet: netip.MustParsePrefix("10.244.2.0/24"), Encap: encap, Engine: tunnel.EngineKernel, Reason: "by " + string(encap),
			Objects: []tunnel.Key{{Kind: tunnel.KindRoute, Name: "x"}},
		}}}
	}
	done := map[tunnel.Key]itemState{{Kind: tunnel.KindRoute, Name: "x"}: {Done: true}}
	for _, step := range []struct {
		host  control.HostPlan
		items map[tunnel.Key]itemState
	}{
		{way(tunnel.EncapVXLAN), nil}, {way(tunnel.EncapVXLAN), done}, {way(tunnel.EncapWireGuard), done},
		{control.HostPlan{Host: "b", Reasons: []string{"no way"}}, done}, {way(tunnel.EncapVXLAN), done},
	} {
		tracker.progress(control.Plan{Hosts: []control.HostPlan{step.host}}, step.items, true)
	}
	want := heardEvents{
		"PeerWayChanged b: by wireguard, before by vxlan: by wireguard", "PeerLost! b: unreachable: no way", "PeerBack b: by vxlan: by vxlan",
	}
	if !slices.Equal(heard, want) {
		t.Errorf("have %q, want %q", heard, want)
	}
}
