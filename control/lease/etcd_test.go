package lease

import (
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func TestParseKeyErrors(t *testing.T) {
	for _, key := range []string{
		"", "subnets", "subnets/", "config", "subnets-meta/x", "subnets/x", "10.244.1.0-24", "x-weft-subnets/",
		"subnets/10.244.1.0", "subnets/10.244.1.0-", "subnets/10.244.1.0/24", "subnets/10.244.1.0-24/x", "subnets/x/10.244.1.0-24",
		"subnets/y10.244.1.0-24", "subnets/10.244.1.0-24&", "subnets/10.244.1.0-24&fd00::", "subnets/10.244.1.0-24&fd00::-64&fd01::-64",
		"subnets/10.244.1.0-24\n", "subnets/10.244.1.7-24", "subnets/010.244.1.0-24", "subnets/10.244.1.0-024", "subnets/10x244.1.0-24",
		"subnets/10.244.1.0-0", "subnets/0.0.0.0-0", "subnets/10.244.1.0-32", "subnets/10.244.1.0-33", "subnets/10.244.1.0-99999999999999999999",
		"subnets/10.244.1.0-24&fd00:0::-64", "subnets/10.244.1.0-24&FD00::-64", "subnets/10.244.1.0-24&fd00::-128", "subnets/10.244.1.0-24&fd00::1-64",
		"subnets/fd00::-64", "x-weft-subnets/10.244.1.0-24", "x-weft-subnets/10.244.1.0-24&fd00::-64", "x-weft-subnets/::ffff:a00:0-104",
		"subnets/0.0.0.0-0&fd00::-64", "subnets/256.0.0.0-24", "subnets/" + strings.Repeat("1", 1000),
	} {
		if subnets, err := ParseKey(key); err == nil {
			t.Errorf("%q: accepted as %v", key, subnets)
		} else if !strings.Contains(err.Error(), "parse lease key") || len(err.Error()) > 300 {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestFormatKeyErrors(t *testing.T) {
	p4, p6 := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00::/64")
	for _, subnets := range [][]netip.Prefix{
		nil, {}, {{}}, {p6, p4}, {p4, p4}, {p6, p6}, {p4, p6, p6},
		{netip.MustParsePrefix("10.244.1.1/24")}, {netip.MustParsePrefix("10.244.1.1/32")}, {netip.MustParsePrefix("0.0.0.0/0")},
		{netip.MustParsePrefix("::ffff:10.0.0.0/104")}, {p4, netip.MustParsePrefix("fd00::1/128")},
	} {
		if key, err := FormatKey(subnets); err == nil {
			t.Errorf("%v: have %s", subnets, key)
		}
	}
}

func TestDir(t *testing.T) {
	p4, p6 := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")
	for want, networks := range map[string][]netip.Prefix{SubnetsDir: {p4, p6}, Subnets6Dir: {p6}} {
		if have := Dir(networks); have != want {
			t.Errorf("%v: have %s, want %s", networks, have, want)
		}
	}
}

func TestParseValue(t *testing.T) {
	both := []netip.Prefix{vxlan4.Subnet, vxlan6.Subnet}
	for name, test := range map[string]struct {
		value    string
		subnets  []netip.Prefix
		want     control.Lease
		problems []string
	}{
		"a reservation by hand": {` {"PublicIP": "192.168.64.3"} `, both[:1],
			control.Lease{Legs: []control.Leg{direct4}}, nil},
		"further fields": {`{"PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac4 + `"},"More":[1]}`, both[:1],
			control.Lease{Backend: VXLAN, Legs: []control.Leg{vxlan4}}, nil},
		"an IPv4 host under a dual key": {`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}`, both,
			control.Lease{Backend: HostGW, Legs: []control.Leg{direct4}}, nil},
		"an IPv6 host under a dual key": {`{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"host-gw"}`, both,
			control.Lease{Backend: HostGW, Legs: []control.Leg{direct6}}, nil},
		"one bad leg": {`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendData":5,"BackendV6Data":` + data6 + `}`, both,
			control.Lease{Backend: VXLAN, Legs: []control.Leg{vxlan6}}, []string{"IPv4: backend data"}},
		"data as a string": {`{"PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":"{\"VNI\":1}"}`, both[:1],
			control.Lease{Backend: VXLAN}, []string{"IPv4: backend data"}},
		"bad address": {`{"PublicIP":"here","BackendType":"host-gw"}`, both[:1],
			control.Lease{Backend: HostGW}, []string{`IPv4: public IP "here"`}},
	} {
		value, err := ParseValue([]byte(test.value))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		have := value.Lease("", test.subnets)
		for i, problem := range have.Problems {
			if i >= len(test.problems) || !strings.Contains(problem, test.problems[i]) {
				t.Errorf("%s: problem %q", name, problem)
			}
		}
		if len(have.Problems) != len(test.problems) {
			t.Errorf("%s: have problems %q, want %q", name, have.Problems, test.problems)
		}
		if have.Problems = nil; !reflect.DeepEqual(have, test.want) {
			t.Errorf("%s: have %+v, want %+v", name, have, test.want)
		}
	}
	for _, bad := range []string{"", "junk", "[]", "null", "{}", `{"PublicIP":5}`, `{"PublicIPv6":7}`, `{"PublicIP":"192.168.64.3"} x`,
		`{"PublicIP":"192.168.64.3","BackendType":7}`, `{"PublicIP":"` + strings.Repeat("1", maxValue) + `"}`} {
		if _, err := ParseValue([]byte(bad)); err == nil || len(err.Error()) > 500 {
			t.Errorf("%.40s: have %v", bad, err)
		}
	}
}

// The address tells whose lease it is even where the rest is unusable.
func TestValuePublicIPs(t *testing.T) {
	value, err := ParseValue([]byte(`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendData":"junk"}`))
	if err != nil {
		t.Fatal(err)
	}
	if have, want := value.PublicIPs(), []netip.Addr{vxlan4.PublicIP, vxlan6.PublicIP}; !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, want %v", have, want)
	}
	if have := value.MACs(); !reflect.DeepEqual(have, make([]tunnel.MAC, 2)) {
		t.Errorf("have MACs %v", have)
	}
}

func FuzzParseKey(f *testing.F) {
	for _, golden := range goldens {
		f.Add(golden.key)
	}
	f.Add("subnets/10.244.1.0-24&fd00:0::-064")
	f.Add("subnets-meta/x")
	// What flannel's own pattern takes; a key that it cannot read harms it.
	flannel := regexp.MustCompile(`(\d+\.\d+.\d+.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`)
	f.Fuzz(func(t *testing.T, key string) {
		subnets, err := ParseKey(key)
		if err != nil {
			return
		}
		if again, err := FormatKey(subnets); err != nil || again != key {
			t.Fatalf("%q reads as %v and is written %q, %v", key, subnets, again, err)
		}
		if strings.HasPrefix(key, "subnets") && !flannel.MatchString(key) {
			t.Fatalf("%q would harm a flanneld", key)
		}
	})
}

func FuzzParseValue(f *testing.F) {
	for _, golden := range goldens {
		f.Add([]byte(golden.value))
	}
	f.Add([]byte(`{"PublicIP":"","PublicIPv6":"::1","BackendData":null,"BackendV6Data":[]}`))
	f.Add([]byte(`{"PublicIP":"192.168.64.3","BackendType":"host-gw","WeftOffers":{"version":2}}`))
	f.Add([]byte(`{"PublicIP":"192.168.64.3","BackendType":"wireguard","BackendData":{"PublicKey":"` + keyText + `"},"WeftOffers":` + wireGuardText + `}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		value, err := ParseValue(data)
		if err != nil {
			return
		}
		lease := value.Lease("a", []netip.Prefix{vxlan4.Subnet, vxlan6.Subnet})
		checkLease(t, lease)
		value.MACs()
		for _, addr := range value.PublicIPs() {
			if checkPublicIP(addr) != nil {
				t.Fatalf("public IP %v", addr)
			}
		}
		if lease.Backend != VXLAN && lease.Backend != HostGW && lease.Backend != WireGuard || len(lease.Legs) == 0 {
			return
		}
		// What was believed can be published, and says the same again.
		again, err := FormatValue(control.Claim{Backend: lease.Backend, Legs: lease.Legs, Offers: lease.Offers})
		if err != nil {
			t.Fatal(err)
		}
		value, err = ParseValue(again)
		if err != nil {
			t.Fatal(err)
		}
		have := value.Lease("a", []netip.Prefix{vxlan4.Subnet, vxlan6.Subnet})
		if lease.Problems = nil; !reflect.DeepEqual(have, lease) {
			t.Fatalf("have %+v, want %+v", have, lease)
		}
	})
}
