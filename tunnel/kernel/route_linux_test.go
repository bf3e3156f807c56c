package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

// TestForeignRouteStays holds that a route somebody else made to the same
// prefix is named and not replaced.
func TestForeignRouteStays(t *testing.T) {
	h := newHost(t)
	h.apply(device4(), device6())
	vxlan := tunnel.Route{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.244.1.0"), Link: "flannel.1", OnLink: true}
	direct := tunnel.Route{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("192.168.7.2"), Link: "eth0"}
	direct6 := tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd77::2"), Link: "eth0"}
	vxlan6 := tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd00:10:244:1::"), Link: "flannel-v6.1", OnLink: true}
	for _, tt := range []struct {
		want    tunnel.Route
		foreign string
		hidden  bool // a more specific route answers lookups
		text    string
	}{
		{vxlan, "10.244.1.0/24 via 192.168.7.2 dev eth0", false, "10.244.1.0/24 proto boot via 192.168.7.2 dev eth0"},
		{direct, "10.244.1.0/24 via 192.168.7.3 dev eth0", false, "10.244.1.0/24 proto boot via 192.168.7.3 dev eth0"},
		{direct, "10.244.1.0/24 via 192.168.7.2 dev eth0 proto static", false, "10.244.1.0/24 proto static"},
		{direct, "10.244.1.0/24 via 192.168.7.3 dev eth0", true, "10.244.1.0/24 proto boot via 192.168.7.3 dev eth0"},
		{direct, "blackhole 10.244.1.0/24", false, "10.244.1.0/24 proto boot"},
		{direct6, "fd00:10:244:1::/64 via fd77::3 dev eth0", false, "fd00:10:244:1::/64 proto boot via fd77::3 dev eth0 metric 1024"},
		{vxlan6, "fd00:10:244:1::/64 via fd77::3 dev eth0", false, "fd00:10:244:1::/64 proto boot via fd77::3 dev eth0"},
		{direct6, "blackhole fd00:10:244:1::/64", false, "fd00:10:244:1::/64 proto boot"},
	} {
		h.run("ip route add " + tt.foreign)
		specific := "10.244.1.0/25 via 192.168.7.4 dev eth0"
		if tt.hidden {
			h.run("ip route add " + specific)
		}
		before := h.dump()
		wantText(t, h.applyError(tt.want), "apply route "+tt.want.Prefix.String(), "a foreign route is in its place and stays: "+tt.text)
		h.checkForeign(before)
		h.run("ip route delete " + tt.foreign)
		if tt.hidden {
			h.run("ip route delete " + specific)
		}
		h.apply(tt.want)
		h.remove(tt.want)
	}
}

// TestForeignRouteBeside holds that a foreign route with another metric is no
// obstacle and survives all we do.
func TestForeignRouteBeside(t *testing.T) {
	h := newHost(t)
	h.run("ip route add 10.244.1.0/24 via 192.168.7.3 dev eth0 metric 5", "ip -6 route add fd00:10:244:1::/64 via fd77::3 dev eth0 metric 5")
	before := h.dump()
	for _, want := range []tunnel.Route{
		{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("192.168.7.2"), Link: "eth0"},
		{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd77::2"), Link: "eth0"},
		{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Blackhole: true},
	} {
		h.apply(want)
		h.apply(want)
		h.check(want)
		h.remove(want)
	}
	h.checkForeign(before)
}

// TestTakeOver holds that the routes of flannel's host-gw become ours without
// being away for a moment.
func TestTakeOver(t *testing.T) {
	h := newHost(t)
	h.run("ip route add 10.244.9.0/24 via 192.168.7.2 dev eth0", "ip -6 route add fd00:10:244:9::/64 via fd77::2 dev eth0")
	want := []tunnel.Object{
		tunnel.Route{Prefix: netip.MustParsePrefix("10.244.9.0/24"), Via: netip.MustParseAddr("192.168.7.2"), Link: "eth0"},
		tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:9::/64"), Via: netip.MustParseAddr("fd77::2"), Link: "eth0"},
	}
	h.check()
	h.apply(want...)
	h.check(want...)
	if routes := h.run("ip route show 10.244.9.0/24", "ip -6 route show fd00:10:244:9::/64"); strings.Count(routes, "\n") != 2 {
		t.Errorf("not replaced:\n%s", routes)
	}
}

// TestCoveredGateway holds that a wider foreign route is no obstacle, although
// IPv6 refuses a gateway that it leads to.
func TestCoveredGateway(t *testing.T) {
	h := newHost(t)
	h.apply(device4(), device6())
	h.run("ip route add 10.244.0.0/16 via 192.168.7.3 dev eth0", "ip -6 route add fd00:10:244::/48 via fd77::3 dev eth0")
	want := []tunnel.Object{
		device4(), device6(),
		tunnel.Route{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.244.1.0"), Link: "flannel.1", OnLink: true},
		tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd00:10:244:1::"), Link: "flannel-v6.1", OnLink: true},
	}
	h.apply(want...)
	h.check(want...)
}

// TestRouteChangesWay holds that a peer goes from VXLAN to a direct route and
// back by replacement: there is always exactly one route.
func TestRouteChangesWay(t *testing.T) {
	h := newHost(t)
	h.apply(device4(), device6())
	for _, ways := range [][]tunnel.Route{
		{
			{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.244.1.0"), Link: "flannel.1", OnLink: true},
			{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("192.168.7.2"), Link: "eth0"},
		},
		{
			{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd00:10:244:1::"), Link: "flannel-v6.1", OnLink: true},
			{Prefix: netip.MustParsePrefix("fd00:10:244:1::/64"), Via: netip.MustParseAddr("fd77::2"), Link: "eth0"},
		},
	} {
		for _, want := range append(ways, ways...) {
			h.apply(want)
			h.check(device4(), device6(), want)
			show := "ip -4 route show "
			if want.Prefix.Addr().Is6() {
				show = "ip -6 route show "
			}
			if routes := h.run(show + want.Prefix.String()); strings.Count(routes, "\n") != 1 {
				t.Errorf("want one route:\n%s", routes)
			}
		}
		h.remove(ways[1])
	}
}

func TestBadRoutes(t *testing.T) {
	h := newHost(t)
	h.apply(device4())
	prefix, via := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParseAddr("10.244.1.0")
	for want, route := range map[string]tunnel.Route{
		"prefix: not set":         {Link: "eth0"},
		"want 10.244.1.0/24":      {Prefix: netip.MustParsePrefix("10.244.1.5/24"), Link: "eth0"},
		"link: not set":           {Prefix: prefix},
		"blackhole:":              {Prefix: prefix, Blackhole: true, Link: "eth0"},
		"gateway fd77::1":         {Prefix: prefix, Via: netip.MustParseAddr("fd77::1"), Link: "eth0"},
		"onlink: needs a gateway": {Prefix: prefix, OnLink: true, Link: "eth0"},
		"device nosuch":           {Prefix: prefix, Via: via, Link: "nosuch"},
		"device flannel.9":        {Prefix: prefix, Via: via, Link: "flannel.9", OnLink: true},
		"gateway 10.244.1.0 is not on the layer 2 of eth0": {Prefix: prefix, Via: via, Link: "eth0"},
	} {
		wantText(t, h.applyError(route), "apply route", want)
	}
	for want, object := range map[string]tunnel.Object{
		"device eth0 is not weft's": tunnel.Address{Link: "eth0", Prefix: netip.MustParsePrefix("10.1.1.1/32")},
		"device lo is not weft's":   tunnel.Neighbor{Link: "lo", IP: via, MAC: peerMAC},
		"device nosuch is not":      tunnel.FDBEntry{Link: "nosuch", Remote: via, MAC: peerMAC},
		"prefix: not set":           tunnel.Address{Link: "flannel.1"},
		"IP: not set":               tunnel.Neighbor{Link: "flannel.1", MAC: peerMAC},
		"MAC: not set":              tunnel.Neighbor{Link: "flannel.1", IP: via},
		"remote: not set":           tunnel.FDBEntry{Link: "flannel.1", MAC: peerMAC},
	} {
		wantText(t, h.applyError(object), want)
	}
	h.check(device4())
}
