package underlay

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/windows"
)

func TestReach(t *testing.T) {
	facts := Facts{
		Links: []Link{
			{Name: "lan", Index: 7, Up: true, Addrs: []Addr{{Prefix: netip.MustParsePrefix("192.0.2.7/24"), Permanent: true}}},
			{Name: "vpn", Index: 9, Up: true, Addrs: []Addr{{Prefix: netip.MustParsePrefix("10.8.0.2/24"), Permanent: true}}},
		},
		Routes: []Route{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "vpn", Metric: 50},
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "lan", Via: netip.MustParseAddr("192.0.2.1"), Metric: 25},
			{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Link: "vpn", Metric: 70},
			{Prefix: netip.MustParsePrefix("::/0"), Link: "lan"},
		},
	}
	for to, want := range map[string]string{"203.0.113.1": "lan 192.0.2.7", "10.1.2.3": "vpn 10.8.0.2", "2001:db8::1": ""} {
		got := facts.reach(netip.MustParseAddr(to))
		if text := got.Link + " " + got.Local.String(); want != "" && text != want || (got.Err != nil) != (want == "") {
			t.Errorf("reach(%s) = %+v, want %q", to, got, want)
		}
	}
	if got := (Facts{}).reach(netip.MustParseAddr("203.0.113.1")); got.Err == nil {
		t.Errorf("reach without routes = %+v", got)
	}
}

// TestObserveHere: what this system says can be read, and an interface that is
// up has a route to its own addresses.
func TestObserveHere(t *testing.T) {
	facts, err := Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", facts)
	for _, r := range facts.Routes {
		if _, ok := facts.link(r.Link); !ok || !r.Prefix.IsValid() || r.Via.IsValid() && r.Via.Is4() != r.Prefix.Addr().Is4() {
			t.Errorf("route %+v", r)
		}
	}
}

func TestReadAddr(t *testing.T) {
	v4 := windows.RawSockaddrInet{Family: windows.AF_INET}
	v4.Data[0] = 0x070200c0 // little-endian
	if got := readAddr(&v4); got != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("IPv4: %v", got)
	}
	v6 := windows.RawSockaddrInet{Family: windows.AF_INET6}
	v6.Data[1], v6.Data[4] = 0xb80d0120, 0x07000000
	if got := readAddr(&v6); got != netip.MustParseAddr("2001:db8::7") {
		t.Errorf("IPv6: %v", got)
	}
	if got := readAddr(&windows.RawSockaddrInet{}); got.IsValid() {
		t.Errorf("neither: %v", got)
	}
}
