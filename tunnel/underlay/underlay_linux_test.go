package underlay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// newHost makes a host with two interfaces, and a way to run ip(8) on it.
func newHost(t *testing.T) (host *lab.Host, ip func(args string)) {
	t.Helper()
	host = labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "a", Addresses: []netip.Prefix{
		netip.MustParsePrefix("192.168.64.1/24"), netip.MustParsePrefix("fd64::1/64")}})
	return host, func(args string) {
		t.Helper()
		in(t, host, func() error {
			if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w\n%s", args, err, out)
			}
			return nil
		})
	}
}

func in(t *testing.T, host *lab.Host, do func() error) {
	t.Helper()
	if err := host.Do(do); err != nil {
		t.Fatal(err)
	}
}

func observe(t *testing.T, host *lab.Host) (facts Facts) {
	t.Helper()
	in(t, host, func() (err error) {
		facts, err = Observe(t.Context())
		return err
	})
	return facts
}

func TestObserve(t *testing.T) {
	host, ip := newHost(t)
	for _, args := range []string{
		"addr add 192.168.64.50/24 dev eth0 valid_lft 3600 preferred_lft 1800",
		"addr add fd64::50/64 dev eth0 nodad preferred_lft 0",
		"link add down0 type veth peer name down1",
		"link set down0 mtu 1400",
		"addr add 10.9.0.1 peer 10.9.0.2/32 dev eth0",
		"route add 10.1.0.0/16 via 192.168.64.9",
		"route add 10.2.0.0/16 nexthop via 192.168.64.9 nexthop via 192.168.64.10",
		"route add 10.3.0.0/16 via inet6 fd64::9 dev eth0",
		"route add blackhole 10.4.0.0/16",
		"-6 route add blackhole fd99::/64",
		"route add 10.5.0.0/16 via 192.168.64.9 table 7",
	} {
		ip(args)
	}
	facts := observe(t, host)
	eth0, ok := facts.link("eth0")
	if !ok || !eth0.Up || eth0.MTU != 1500 || eth0.Index == 0 {
		t.Fatalf("eth0: %+v", eth0)
	}
	if down, ok := facts.link("down0"); !ok || down.Up || down.MTU != 1400 {
		t.Errorf("down0: %+v", down)
	}
	wantAddrs := []Addr{
		{Prefix: netip.MustParsePrefix("192.168.64.1/24"), Permanent: true},
		{Prefix: netip.MustParsePrefix("192.168.64.50/24")},
		{Prefix: netip.MustParsePrefix("10.9.0.1/32"), Permanent: true},
		{Prefix: netip.MustParsePrefix("fd64::1/64"), Permanent: true},
		{Prefix: netip.MustParsePrefix("fd64::50/64"), Permanent: true, Deprecated: true},
	}
	for _, want := range wantAddrs {
		if !slices.Contains(eth0.Addrs, want) {
			t.Errorf("addresses %+v\nwant among them %+v", eth0.Addrs, want)
		}
	}
	wantRoutes := []Route{
		route("0.0.0.0/0", "eth0", "192.168.64.254", 0),
		route("::/0", "eth0", "fd64::fe", 1024),
		route("192.168.64.0/24", "eth0", "", 0),
		route("fd64::/64", "eth0", "", 256),
		route("10.9.0.2/32", "eth0", "", 0),
		route("10.1.0.0/16", "eth0", "192.168.64.9", 0),
		route("10.2.0.0/16", "eth0", "192.168.64.9", 0),
		route("10.2.0.0/16", "eth0", "192.168.64.10", 0),
		route("10.3.0.0/16", "eth0", "fd64::9", 0),
	}
	for _, want := range wantRoutes {
		if !slices.Contains(facts.Routes, want) {
			t.Errorf("routes %+v\nwant among them %+v", facts.Routes, want)
		}
	}
	for _, r := range facts.Routes {
		if p := r.Prefix.String(); p == "10.4.0.0/16" || p == "fd99::/64" || p == "10.5.0.0/16" || r.Prefix.Addr().IsLoopback() {
			t.Errorf("%+v is no unicast route of the main table", r)
		}
	}
}

func TestFind(t *testing.T) {
	host, ip := newHost(t)
	ip("link add eth9 mtu 1400 type veth peer name far9")
	ip("addr add 172.16.0.1/24 dev eth9")
	ip("link set eth9 up")
	ip("link set far9 up")
	tests := []struct {
		request Request
		want    Choice
	}{
		{Request{Families: []Family{IPv4, IPv6}}, Choice{Link: "eth0", MTU: 1500, Addrs: ips("192.168.64.1", "fd64::1"), Public: ips("192.168.64.1", "fd64::1"),
			OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.64.0/24"), netip.MustParsePrefix("fd64::/64")}, Reason: "default route"}},
		{Request{Families: []Family{IPv4}, CanReach: netip.MustParseAddr("172.16.0.9")}, Choice{Link: "eth9", MTU: 1400,
			Addrs: ips("172.16.0.1"), Public: ips("172.16.0.1"), OnLink: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/24")}, Reason: "--iface-can-reach=172.16.0.9"}},
		{Request{Families: []Family{IPv6}, CanReach: netip.MustParseAddr("2001:db8::1")}, Choice{Link: "eth0", MTU: 1500,
			Addrs: ips("fd64::1"), Public: ips("fd64::1"), OnLink: []netip.Prefix{netip.MustParsePrefix("192.168.64.0/24"), netip.MustParsePrefix("fd64::/64")},
			Reason: "--iface-can-reach=2001:db8::1"}},
	}
	for _, tt := range tests {
		in(t, host, func() error {
			got, err := Find(t.Context(), tt.request)
			if err != nil {
				return err
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			return nil
		})
	}
	ip("route del default")
	in(t, host, func() error {
		_, err := Find(t.Context(), Request{Families: []Family{IPv4}, CanReach: netip.MustParseAddr("8.8.8.8")})
		if err == nil || !strings.Contains(err.Error(), "--iface-can-reach=8.8.8.8: look up route to 8.8.8.8: network is unreachable") {
			t.Errorf("can-reach without a route: %v", err)
		}
		return nil
	})
}

func TestWatch(t *testing.T) {
	host, ip := newHost(t)
	var changes <-chan struct{}
	in(t, host, func() error {
		changes = Watch(t.Context(), slog.New(slog.DiscardHandler))
		return nil
	})
	for _, args := range []string{
		"link set eth0 mtu 1400",
		"addr add 192.168.64.50/24 dev eth0",
		"addr add fd64::50/64 dev eth0 nodad",
		"route del default",
		"route add 10.1.0.0/16 dev eth0",
	} {
		ip(args)
		select {
		case <-changes:
		case <-time.After(10 * time.Second):
			t.Fatalf("no token after ip %s", args)
		}
	}
}

func TestRelevant(t *testing.T) {
	message := func(kind uint16, length, table byte, attribute ...byte) syscall.NetlinkMessage {
		data := make([]byte, unix.SizeofRtMsg)
		data[1], data[4] = length, table
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: append(data, attribute...)}
	}
	gateway := []byte{8, 0, unix.RTA_GATEWAY, 0, 192, 168, 7, 2}
	via := []byte{8, 0, unix.RTA_VIA, 0, 10, 0, 0, 0}
	tests := []struct {
		name    string
		message syscall.NetlinkMessage
		want    bool
	}{
		{"link", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWLINK}}, true},
		{"address", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELADDR}}, true},
		{"default route", message(unix.RTM_NEWROUTE, 0, unix.RT_TABLE_MAIN, gateway...), true},
		{"on-link route", message(unix.RTM_DELROUTE, 24, unix.RT_TABLE_MAIN), true},
		{"route of a peer", message(unix.RTM_NEWROUTE, 24, unix.RT_TABLE_MAIN, gateway...), false},
		{"route over the other family", message(unix.RTM_NEWROUTE, 24, unix.RT_TABLE_MAIN, via...), false},
		{"other table", message(unix.RTM_NEWROUTE, 24, unix.RT_TABLE_LOCAL), false},
		{"short", syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}}, false},
	}
	for _, tt := range tests {
		if got := relevant(tt.message); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}
