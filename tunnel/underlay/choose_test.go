package underlay

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func ips(texts ...string) (addrs []netip.Addr) {
	for _, s := range texts {
		addrs = append(addrs, ip(s))
	}
	return addrs
}

func fixed(texts ...string) (addrs []Addr) {
	for _, s := range texts {
		addrs = append(addrs, Addr{Prefix: netip.MustParsePrefix(s), Permanent: true})
	}
	return addrs
}

func route(prefix, link, via string, metric int) Route {
	r := Route{Prefix: netip.MustParsePrefix(prefix), Link: link, Metric: metric}
	if via != "" {
		r.Via = ip(via)
	}
	return r
}

// office is a host with two interfaces, one of them towards the internet.
func office() Facts {
	return Facts{
		Links: []Link{
			{Name: "lo", Index: 1, MTU: 65536, Up: true, Addrs: fixed("127.0.0.1/8", "::1/128", "10.255.0.1/32")},
			{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addrs: append(fixed("192.168.7.1/24", "fe80::1/64", "fd77::1/64"),
				Addr{Prefix: netip.MustParsePrefix("192.168.7.50/24")})},
			{Name: "eth1", Index: 3, MTU: 9000, Up: true, Addrs: fixed("10.1.0.5/16", "fd01::5/64")},
			{Name: "eth2", Index: 4, MTU: 1500, Addrs: fixed("10.2.0.5/16")},
			{Name: "ppp0", Index: 5, MTU: 1492, Up: true, Addrs: fixed("100.64.0.2/32")},
		},
		Routes: []Route{
			route("0.0.0.0/0", "eth0", "192.168.7.254", 100),
			route("0.0.0.0/0", "eth1", "10.1.0.1", 200),
			route("192.168.7.0/24", "eth0", "", 0),
			route("192.168.8.0/24", "eth0", "192.168.7.254", 0),
			route("10.1.0.0/16", "eth1", "", 0),
			route("::/0", "eth0", "fe80::ff", 1024),
			route("fd77::/64", "eth0", "", 256),
			route("fe80::/64", "eth0", "", 256),
			route("fd01::/64", "eth1", "", 256),
		},
	}
}

// oneLink is a host with one interface and nothing else.
func oneLink(addrs ...Addr) Facts {
	return Facts{Links: []Link{{Name: "eth0", MTU: 1500, Up: true, Addrs: addrs}}}
}

func TestChoose(t *testing.T) {
	v4, both := []Family{IPv4}, []Family{IPv4, IPv6}
	eth0 := Choice{Link: "eth0", MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("fd77::/64")}}
	eth1 := Choice{Link: "eth1", MTU: 9000, OnLink: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd01::/64")}}
	at := func(c Choice, reason string, addrs, public []netip.Addr) Choice {
		c.Reason, c.Addrs, c.Public = reason, addrs, public
		if public == nil {
			c.Public = addrs
		}
		return c
	}
	tests := []struct {
		name    string
		request Request
		facts   func() Facts
		want    Choice
	}{
		{"default route, lowest metric", Request{Families: v4}, office, at(eth0, "default route", ips("192.168.7.1"), nil)},
		{"default route, both families", Request{Families: both}, office, at(eth0, "default route", ips("192.168.7.1", "fd77::1"), nil)},
		{"default route of one family only", Request{Families: both}, func() Facts {
			f := office()
			f.Routes = append(f.Routes[:5:5], f.Routes[6:]...)
			return f
		}, at(eth0, "default route", ips("192.168.7.1", "fd77::1"), nil)},
		{"IPv6 alone", Request{Families: []Family{IPv6}}, office, at(eth0, "default route", ips("fd77::1"), nil)},
		{"InternalIP before the default route", Request{Families: both, InternalIPs: ips("10.1.0.5", "fd01::5")}, office,
			at(eth1, "the Node's InternalIP 10.1.0.5", ips("10.1.0.5", "fd01::5"), nil)},
		{"InternalIP is not the best address", Request{Families: v4, InternalIPs: ips("192.168.7.50")}, office,
			at(eth0, "the Node's InternalIP 192.168.7.50", ips("192.168.7.50"), nil)},
		{"InternalIPs are not the best addresses", Request{Families: both, InternalIPs: ips("fd77::50", "192.168.7.50")}, func() Facts {
			f := office()
			f.Links[1].Addrs = append(f.Links[1].Addrs, Addr{Prefix: netip.MustParsePrefix("fd77::50/64")})
			return f
		}, at(eth0, "the Node's InternalIP fd77::50", ips("192.168.7.50", "fd77::50"), nil)},
		{"the address in use, though another is better", Request{Families: both, InUse: ips("192.168.7.50", "fd77::1")}, func() Facts {
			f := office()
			f.Links[1].Addrs = append(fixed("192.168.7.3/24", "fd77::3/64"), f.Links[1].Addrs...)
			return f
		}, at(eth0, "default route", ips("192.168.7.50", "fd77::1"), nil)},
		{"the address in use is gone", Request{Families: v4, InUse: ips("192.168.7.9")}, office, at(eth0, "default route", ips("192.168.7.1"), nil)},
		{"the address in use is of an interface that was left", Request{Families: v4, InUse: ips("10.1.0.5")}, office,
			at(eth0, "default route", ips("192.168.7.1"), nil)},
		{"the address in use is not to be used any more", Request{Families: []Family{IPv6}, InUse: ips("fd77::50")}, func() Facts {
			f := office()
			f.Links[1].Addrs = append(f.Links[1].Addrs, Addr{Prefix: netip.MustParsePrefix("fd77::50/64"), Deprecated: true})
			return f
		}, at(eth0, "default route", ips("fd77::1"), nil)},
		{"InternalIP before the address in use", Request{Families: v4, InternalIPs: ips("192.168.7.50"), InUse: ips("192.168.7.1")}, office,
			at(eth0, "the Node's InternalIP 192.168.7.50", ips("192.168.7.50"), nil)},
		{"InternalIP of another host", Request{Families: v4, InternalIPs: ips("10.9.9.9")}, office, at(eth0, "default route", ips("192.168.7.1"), nil)},
		{"public IP before InternalIP", Request{Families: v4, PublicIPs: ips("10.1.0.5"), InternalIPs: ips("192.168.7.1")}, office,
			at(eth1, "public IP 10.1.0.5", ips("10.1.0.5"), nil)},
		{"public IPv6 decides as well", Request{Families: both, PublicIPs: ips("203.0.113.9", "fd01::5")}, office,
			at(eth1, "public IP fd01::5", ips("10.1.0.5", "fd01::5"), ips("203.0.113.9", "fd01::5"))},
		{"public IP of a NAT", Request{Families: both, PublicIPs: ips("203.0.113.9")}, office,
			at(eth0, "default route", ips("192.168.7.1", "fd77::1"), ips("203.0.113.9", "fd77::1"))},
		{"public IP of a NAT, interface named", Request{Families: v4, PublicIPs: ips("203.0.113.9"), Ifaces: []string{"eth1"}}, office,
			at(eth1, "--iface=eth1", ips("10.1.0.5"), ips("203.0.113.9"))},
		{"public IP on another interface is bound", Request{Families: v4, PublicIPs: ips("10.255.0.1"), Ifaces: []string{"eth0"}}, office,
			at(eth0, "--iface=eth0", ips("10.255.0.1"), nil)},
		{"iface by address", Request{Families: both, Ifaces: []string{"192.168.7.50"}}, office,
			at(eth0, "--iface=192.168.7.50", ips("192.168.7.50", "fd77::1"), nil)},
		{"iface by IPv6 address", Request{Families: both, Ifaces: []string{"fd01::5"}}, office,
			at(eth1, "--iface=fd01::5", ips("10.1.0.5", "fd01::5"), nil)},
		{"second iface, as the first is not there", Request{Families: v4, Ifaces: []string{"wlan0", "eth1"}, InternalIPs: ips("192.168.7.1")}, office,
			at(eth1, "--iface=eth1", ips("10.1.0.5"), nil)},
		{"iface before regex", Request{Families: v4, Ifaces: []string{"eth1"}, IfaceRegex: []string{"eth0"}}, office,
			at(eth1, "--iface=eth1", ips("10.1.0.5"), nil)},
		{"regex on addresses before names", Request{Families: v4, IfaceRegex: []string{`^10\.1\.|^eth0`}}, office,
			at(eth1, `--iface-regex=^10\.1\.|^eth0`, ips("10.1.0.5"), nil)},
		{"regex on addresses of every family", Request{Families: both, IfaceRegex: []string{`^192\.168|^fd`}}, office,
			at(eth0, `--iface-regex=^192\.168|^fd`, ips("192.168.7.1", "fd77::1"), nil)},
		{"regex on names passes over what does not fit", Request{Families: both, IfaceRegex: []string{"ppp0|eth1"}}, office,
			at(eth1, "--iface-regex=ppp0|eth1", ips("10.1.0.5", "fd01::5"), nil)},
		{"regex before can-reach", Request{Families: v4, IfaceRegex: []string{"(", "eth1"}, CanReach: ip("8.8.8.8")}, office,
			at(eth1, "--iface-regex=eth1", ips("10.1.0.5"), nil)},
		{"can-reach takes the route's source", Request{Families: v4, CanReach: ip("192.168.7.9")}, func() Facts {
			f := office()
			f.Reach = Reach{Link: "eth0", Local: ip("192.168.7.50")}
			return f
		}, at(eth0, "--iface-can-reach=192.168.7.9", ips("192.168.7.50"), nil)},
		{"can-reach by IPv6", Request{Families: both, CanReach: ip("fd01::9")}, func() Facts {
			f := office()
			f.Reach = Reach{Link: "eth1", Local: ip("fd01::5")}
			return f
		}, at(eth1, "--iface-can-reach=fd01::9", ips("10.1.0.5", "fd01::5"), nil)},
		{"on-link is not all of the internet", Request{Families: v4, Ifaces: []string{"ppp0"}}, func() Facts {
			f := office()
			f.Routes = append(f.Routes, route("0.0.0.0/0", "ppp0", "", 0), route("100.64.0.1/32", "ppp0", "", 0))
			return f
		}, Choice{Link: "ppp0", MTU: 1492, Addrs: ips("100.64.0.2"), Public: ips("100.64.0.2"),
			OnLink: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}, Reason: "--iface=ppp0"}},
		{"the address that stays", Request{Families: []Family{IPv6}, Ifaces: []string{"eth0"}}, func() Facts {
			return oneLink(
				Addr{Prefix: netip.MustParsePrefix("fd77::1/64"), Permanent: true, Deprecated: true},
				Addr{Prefix: netip.MustParsePrefix("fd77::2/64"), Permanent: true, Tentative: true},
				Addr{Prefix: netip.MustParsePrefix("fd77::3/64"), Temporary: true},
				Addr{Prefix: netip.MustParsePrefix("fd77::4/64")},
				Addr{Prefix: netip.MustParsePrefix("fd77::5/64"), Permanent: true},
				Addr{Prefix: netip.MustParsePrefix("fd77::6/64"), Permanent: true})
		}, Choice{Link: "eth0", MTU: 1500, Addrs: ips("fd77::5"), Public: ips("fd77::5"), Reason: "--iface=eth0"}},
		{"not the temporary one", Request{Families: []Family{IPv6}, Ifaces: []string{"eth0"}}, func() Facts {
			return oneLink(Addr{Prefix: netip.MustParsePrefix("fd77::3/64"), Temporary: true}, Addr{Prefix: netip.MustParsePrefix("fd77::4/64")})
		}, Choice{Link: "eth0", MTU: 1500, Addrs: ips("fd77::4"), Public: ips("fd77::4"), Reason: "--iface=eth0"}},
		{"IPv4 link-local comes last", Request{Families: v4, Ifaces: []string{"eth0"}}, func() Facts {
			return oneLink(append(fixed("169.254.3.4/16"), Addr{Prefix: netip.MustParsePrefix("192.0.2.1/24")})...)
		}, Choice{Link: "eth0", MTU: 1500, Addrs: ips("192.0.2.1"), Public: ips("192.0.2.1"), Reason: "--iface=eth0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Choose(tt.request, tt.facts())
			if err != nil {
				t.Fatal(err)
			}
			if !got.Equal(tt.want) || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestChooseSaysWhatIsWrong(t *testing.T) {
	v4, both := []Family{IPv4}, []Family{IPv4, IPv6}
	tests := []struct {
		name    string
		request Request
		facts   func() Facts
		want    []string
	}{
		{"no family", Request{}, office, []string{"no address family is enabled"}},
		{"no such interface", Request{Families: v4, Ifaces: []string{"wlan0"}}, office,
			[]string{"--iface=wlan0: there is no such interface", "lo 127.0.0.1 ::1 10.255.0.1; eth0 192.168.7.1", "eth2 (down) 10.2.0.5"}},
		{"no such address", Request{Families: v4, Ifaces: []string{"10.9.9.9"}}, office, []string{"--iface=10.9.9.9: no interface that is up has this address"}},
		{"address of an interface that is down", Request{Families: v4, Ifaces: []string{"10.2.0.5"}}, office, []string{"--iface=10.2.0.5: no interface that is up"}},
		{"interface is down", Request{Families: v4, Ifaces: []string{"eth2"}}, office, []string{"--iface=eth2: eth2 is down: set it up"}},
		{"every named one fails", Request{Families: v4, Ifaces: []string{"eth2", "wlan0"}, IfaceRegex: []string{"^x"}}, office,
			[]string{"--iface=eth2", "--iface=wlan0", "--iface-regex=^x: matches no interface's addresses"}},
		{"bad expression", Request{Families: v4, IfaceRegex: []string{"("}}, office, []string{"--iface-regex=(", "missing closing )"}},
		{"no way to it", Request{Families: v4, CanReach: ip("8.8.8.8")}, func() Facts {
			f := office()
			f.Reach.Err = errors.New("network is unreachable")
			return f
		}, []string{"--iface-can-reach=8.8.8.8: network is unreachable: name an address"}},
		{"interface of the way is gone", Request{Families: v4, CanReach: ip("8.8.8.8")}, func() Facts {
			f := office()
			f.Reach.Link = "usb0"
			return f
		}, []string{`--iface-can-reach=8.8.8.8: the route's interface "usb0" is gone`}},
		{"family is missing", Request{Families: both, Ifaces: []string{"ppp0"}}, office, []string{"ppp0 has no IPv6 address that peers can send to: add one"}},
		{"only unfit addresses", Request{Families: []Family{IPv6}, Ifaces: []string{"eth0"}}, func() Facts {
			return oneLink(append(fixed("fe80::1/64"),
				Addr{Prefix: netip.MustParsePrefix("fd77::1/64"), Tentative: true}, Addr{Prefix: netip.MustParsePrefix("fd77::2/64"), Deprecated: true})...)
		}, []string{"(fe80::1 is local to the link, fd77::1 is tentative, fd77::2 is deprecated)"}},
		{"only loopback", Request{Families: v4, Ifaces: []string{"eth0"}}, func() Facts { return oneLink(fixed("127.0.0.1/8")...) },
			[]string{"(127.0.0.1 is loopback)"}},
		{"no MTU", Request{Families: v4, Ifaces: []string{"eth0"}}, func() Facts {
			return Facts{Links: []Link{{Name: "eth0", Up: true, Addrs: fixed("192.0.2.1/24")}}}
		}, []string{"eth0 has no MTU"}},
		{"no default route", Request{Families: both}, func() Facts {
			f := office()
			f.Routes = nil
			return f
		}, []string{"no default route for IPv4 and IPv6: name the interface with --iface"}},
		{"default routes differ", Request{Families: both}, func() Facts {
			f := office()
			f.Routes[5].Link = "eth1"
			return f
		}, []string{"default routes over eth0, eth1: name one with --iface"}},
		{"default route over several", Request{Families: v4}, func() Facts {
			f := office()
			f.Routes[1].Metric = 100
			return f
		}, []string{"default routes over eth0, eth1"}},
		{"interface of the default route is gone", Request{Families: v4}, func() Facts {
			f := office()
			f.Links = f.Links[:1]
			return f
		}, []string{`the default route's interface "eth0" is gone`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Choose(tt.request, tt.facts())
			if err == nil {
				t.Fatalf("chose %+v", got)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error:\n%v\nwant in it:\n%s", err, want)
				}
			}
		})
	}
}
