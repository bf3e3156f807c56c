package lease

import (
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]Prefix{
		"flannel.alpha.coreos.com":       DefaultPrefix,
		"flannel.alpha.coreos.com/":      DefaultPrefix,
		"flannel.alpha.coreos.com/net1":  "flannel.alpha.coreos.com/net1-",
		"flannel.alpha.coreos.com/net1-": "flannel.alpha.coreos.com/net1-",
		"a.b":                            "a.b/",
		"my_net.example.org/b-c_d":       "my_net.example.org/b-c_d-",
	} {
		if have, err := ParsePrefix(text); err != nil || have != want {
			t.Errorf("%s: have %s, %v, want %s", text, have, err, want)
		}
	}
	for text, want := range map[string]string{
		"":         "want a domain name",
		"nodots":   "want a domain name",
		"a.b/c/d":  "at most one slash",
		"A.b.c":    "want a domain name",
		"a.b/C":    "want a domain name",
		" a.b":     "want a domain name",
		"a..b":     "want a domain name",
		"a.b/\n":   "want a domain name",
		"x y.a.b/": "want a domain name", // flannel takes it, Kubernetes does not
	} {
		if have, err := ParsePrefix(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: have %q, %v, want %q", text, have, err, want)
		}
	}
}

func annotate(pairs ...string) map[string]string {
	annotations := map[string]string{DefaultPrefix.Name(KubeSubnetManager): "true"}
	for i := 0; i < len(pairs); i += 2 {
		annotations[DefaultPrefix.Name(pairs[i])] = pairs[i+1]
	}
	return annotations
}

const data4 = `{"VNI":1,"VtepMAC":"` + mac4 + `"}`
const data6 = `{"VNI":1,"VtepMAC":"` + mac6 + `"}`

// One bad field costs one leg, and is named.
func TestFromNode(t *testing.T) {
	both := []string{"10.244.1.0/24", "fd00:10:244:1::/64"}
	long := strings.Repeat("x", maxData)
	for name, test := range map[string]struct {
		cidrs       []string
		annotations map[string]string
		backend     string
		legs        []control.Leg
		problems    []string // parts of them, in order
	}{
		"IPv4 host in a dual cluster": {both, annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "192.168.64.3"),
			"vxlan", []control.Leg{vxlan4}, nil},
		"written by hand for a load balancer": {both[:1],
			annotate(BackendType, "vxlan", BackendData, ` { "vtepmac" : "C6-D2-32-6F-8F-44", "More": "x" } `, PublicIP, "192.168.64.3"),
			"vxlan", []control.Leg{leg("10.244.1.0/24", "192.168.64.3", mac4, 0)}, nil},
		"type in capitals": {both[:1], annotate(BackendType, "VXLAN", BackendData, data4, PublicIP, "192.168.64.3"),
			"VXLAN", []control.Leg{vxlan4}, nil},
		"left-over of a family": {both[:1], annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "192.168.64.3", BackendV6Data, data6, PublicIPv6, "fd77::1"),
			"vxlan", []control.Leg{vxlan4}, nil},
		"bad IPv4 data": {both, annotate(BackendType, "vxlan", BackendData, "{", PublicIP, "192.168.64.3", BackendV6Data, data6, PublicIPv6, "fd77::1"),
			"vxlan", []control.Leg{vxlan6}, []string{`IPv4: backend data "{": want`}},
		"bad IPv6 address": {both, annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "192.168.64.3", BackendV6Data, data6, PublicIPv6, "ff02::1"),
			"vxlan", []control.Leg{vxlan4}, []string{`IPv6: public IP "ff02::1": not a unicast`}},
		"no data":         {both, annotate(BackendType, "vxlan", PublicIP, "192.168.64.3"), "vxlan", nil, []string{"IPv4: backend data is missing"}},
		"null data":       {both, annotate(BackendType, "vxlan", BackendData, "null", PublicIP, "192.168.64.3"), "vxlan", nil, []string{"IPv4: backend data is missing"}},
		"array":           {both, annotate(BackendType, "vxlan", BackendData, "[1]", PublicIP, "192.168.64.3"), "vxlan", nil, []string{"want {"}},
		"empty MAC":       {both, annotate(BackendType, "vxlan", BackendData, `{"VNI":4096,"VtepMAC":""}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"VtepMAC is missing"}},
		"multicast MAC":   {both, annotate(BackendType, "vxlan", BackendData, `{"VtepMAC":"01:00:5e:00:00:01"}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"not a unicast"}},
		"long MAC":        {both, annotate(BackendType, "vxlan", BackendData, `{"VtepMAC":"00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01"}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"VtepMAC"}},
		"VNI too large":   {both, annotate(BackendType, "vxlan", BackendData, `{"VNI":16777216,"VtepMAC":"`+mac4+`"}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"VNI is 16777216"}},
		"negative VNI":    {both, annotate(BackendType, "vxlan", BackendData, `{"VNI":-1,"VtepMAC":"`+mac4+`"}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"want {"}},
		"far too long":    {both, annotate(BackendType, "vxlan", BackendData, `{"VNI":1,"VtepMAC":"`+long+`"}`, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"backend data has"}},
		"long address":    {both, annotate(BackendType, "vxlan", BackendData, data4, PublicIP, long), "vxlan", nil, []string{`IPv4: public IP "xxx`}},
		"terminal tricks": {both, annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "\x1b[2J"), "vxlan", nil, []string{`public IP "\x1b[2J": not an IP`}},
		"bad type":        {both, annotate(BackendType, "vx\nlan", BackendData, data4, PublicIP, "192.168.64.3"), "", nil, []string{`backend type "vx\nlan"`}},
		"long type":       {both, annotate(BackendType, long, PublicIP, "192.168.64.3"), "", nil, []string{"longer than 32"}},
		"other type":      {both, annotate(BackendType, "ipip", BackendData, "junk", PublicIP, "192.168.64.3"), "ipip", []control.Leg{direct4}, nil},
		"wireguard of an old flannel": {both, annotate(BackendType, "WireGuard", BackendData, `{"PublicKey":"`+keyText+`"}`, PublicIP, "192.168.64.3"),
			"WireGuard", []control.Leg{guarded(direct4, 0)}, nil},
		"wireguard junk":        {both, annotate(BackendType, "wireguard", BackendData, "junk", PublicIP, "192.168.64.3"), "wireguard", nil, []string{`IPv4: backend data "junk": want {"PublicKey"`}},
		"wireguard, other data": {both, annotate(BackendType, "wireguard", BackendData, data4, PublicIP, "192.168.64.3"), "wireguard", nil, []string{"PublicKey is missing"}},
		"wireguard, null":       {both, annotate(BackendType, "wireguard", BackendData, "null", PublicIP, "192.168.64.3"), "wireguard", nil, []string{"backend data is missing"}},
		"wireguard, zero key":   {both, annotate(BackendType, "wireguard", BackendData, `{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, PublicIP, "192.168.64.3"), "wireguard", nil, []string{"all 32 bytes are zero"}},
		"wireguard, short key":  {both, annotate(BackendType, "wireguard", BackendData, `{"PublicKey":"AAA="}`, PublicIP, "192.168.64.3"), "wireguard", nil, []string{`PublicKey "AAA=": parse public key`}},
		"wireguard, large port": {both, annotate(BackendType, "wireguard", BackendData, `{"PublicKey":"`+keyText+`","Port":65536}`, PublicIP, "192.168.64.3"), "wireguard", nil, []string{"IPv4: backend data"}},
		"wireguard IPv6 of two": {both, annotate(BackendType, "wireguard", BackendData, "null", PublicIP, "0.0.0.0", BackendV6Data, `{"PublicKey":"`+keyText+`","Port":51821}`, PublicIPv6, "fd77::1"), "wireguard", []control.Leg{guarded6}, nil},
		"no address":            {both, annotate(BackendType, "vxlan", BackendData, data4), "vxlan", nil, []string{"no public IP"}},
		"no CIDR":               {nil, annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "192.168.64.3"), "vxlan", nil, []string{"no pod CIDR is assigned"}},
		"bad CIDR":              {[]string{"10.244.1.0", both[1]}, annotate(BackendType, "host-gw", PublicIP, "192.168.64.3", PublicIPv6, "fd77::1"), "host-gw", []control.Leg{direct6}, []string{`pod CIDR: subnet "10.244.1.0"`}},
		"everything CIDR":       {[]string{"0.0.0.0/0"}, annotate(BackendType, "host-gw", PublicIP, "192.168.64.3"), "host-gw", nil, []string{`subnet "0.0.0.0/0"`}},
		"host bits":             {[]string{"10.244.1.7/24"}, annotate(BackendType, "host-gw", PublicIP, "192.168.64.3"), "host-gw", []control.Leg{direct4}, nil},
		"two of a family":       {[]string{both[0], "10.9.0.0/24"}, annotate(BackendType, "host-gw", PublicIP, "192.168.64.3"), "host-gw", []control.Leg{direct4}, []string{"10.9.0.0/24: a second one"}},
		"many CIDRs":            {append(both, "10.9.0.0/24", "10.10.0.0/24"), annotate(BackendType, "host-gw", PublicIP, "192.168.64.3"), "host-gw", []control.Leg{direct4}, []string{"4 pod CIDRs"}},
	} {
		have, managed := FromNode(NodeData{"a", test.cidrs, test.annotations, false}, DefaultPrefix)
		if !managed || have.Host != "a" || have.Backend != test.backend || !reflect.DeepEqual(have.Legs, test.legs) {
			t.Errorf("%s: have %+v, want %v %v", name, have, test.backend, test.legs)
		}
		if len(have.Problems) != len(test.problems) {
			t.Errorf("%s: have problems %q, want %q", name, have.Problems, test.problems)
			continue
		}
		for i, problem := range have.Problems {
			if !strings.Contains(problem, test.problems[i]) || len(problem) > 200 {
				t.Errorf("%s: have problem %q, want %q", name, problem, test.problems[i])
			}
		}
	}
}

func TestFromNodeUnmanaged(t *testing.T) {
	for _, value := range []string{"", "false", "True"} {
		annotations := annotate(BackendType, "vxlan", BackendData, data4, PublicIP, "192.168.64.3", KubeSubnetManager, value)
		if have, managed := FromNode(NodeData{"a", []string{"10.244.1.0/24"}, annotations, false}, DefaultPrefix); managed {
			t.Errorf("%q: managed: %+v", value, have)
		}
	}
	if _, managed := FromNode(NodeData{}, DefaultPrefix); managed {
		t.Error("an empty node is managed")
	}
}

func TestOverwrite(t *testing.T) {
	claim := control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4, vxlan6}}
	node := annotate(PublicIPOverwrite, "203.0.113.9", PublicIPv6Overwrite, "2001:db8::9", PublicIP, "198.51.100.1")
	before := maps.Clone(node)
	set, err := Annotations(claim, DefaultPrefix, node)
	if err != nil {
		t.Fatal(err)
	}
	if set[DefaultPrefix.Name(PublicIP)] != "203.0.113.9" || set[DefaultPrefix.Name(PublicIPv6)] != "2001:db8::9" {
		t.Errorf("have %v", set)
	}
	if _, ok := set[DefaultPrefix.Name(PublicIPOverwrite)]; ok || !maps.Equal(node, before) {
		t.Error("the user's annotations were touched")
	}
	// Without the annotation our own address is back.
	set, err = Annotations(claim, DefaultPrefix, annotate(PublicIP, "203.0.113.9"))
	if err != nil || set[DefaultPrefix.Name(PublicIP)] != "192.168.64.3" {
		t.Errorf("have %v, %v", set, err)
	}
	// An overwrite of a family that vxlan does not publish publishes nothing.
	set, err = Annotations(control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan6}}, DefaultPrefix, annotate(PublicIPOverwrite, "203.0.113.9"))
	if _, ok := set[DefaultPrefix.Name(PublicIP)]; ok || err != nil {
		t.Errorf("have %v, %v", set, err)
	}
	_, err = Annotations(claim, DefaultPrefix, annotate(PublicIPOverwrite, "example.org"))
	if err == nil || !strings.Contains(err.Error(), "flannel.alpha.coreos.com/public-ip-overwrite") || !strings.Contains(err.Error(), "example.org") {
		t.Errorf("have %v", err)
	}
}

func TestNodePublicIPs(t *testing.T) {
	have, err := NodePublicIPs(annotate(NodePublicIP, "192.0.2.7", NodePublicIPv6, "2001:db8::7"), DefaultPrefix)
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}; err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, %v, want %v", have, err, want)
	}
	if have, err := NodePublicIPs(nil, DefaultPrefix); err != nil || have != nil {
		t.Errorf("have %v, %v", have, err)
	}
	if _, err := NodePublicIPs(annotate(NodePublicIPv6, "192.0.2.7"), DefaultPrefix); err == nil || !strings.Contains(err.Error(), "node-public-ipv6") {
		t.Errorf("have %v", err)
	}
}

func TestNodeSubnets(t *testing.T) {
	have, err := NodeSubnets([]string{"fd00:10:244:1::/64", "10.244.1.0/24"})
	if want := []netip.Prefix{vxlan4.Subnet, vxlan6.Subnet}; err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("have %v, %v, want %v", have, err, want)
	}
	for _, bad := range [][]string{nil, {"10.244.1.0"}, {"10.244.1.0/24", "10.244.2.0/24"}} {
		if have, err := NodeSubnets(bad); err == nil {
			t.Errorf("%v: have %v", bad, have)
		}
	}
}

// Bug 15 of flannel: the MAC is read back by position, which fails for a prefix
// with a word after the slash and for data with further fields.
func TestBug15MACRecall(t *testing.T) {
	for _, prefix := range []Prefix{DefaultPrefix, "example.org/pods-"} {
		have := NodeMACs(map[string]string{
			prefix.Name(BackendData):   `{"VNI":1,"Name":"a:b","VtepMAC":"` + mac4 + `","Later":1}`,
			prefix.Name(BackendV6Data): data6,
		}, prefix)
		if want := []tunnel.MAC{mac(mac4), mac(mac6)}; !reflect.DeepEqual(have, want) {
			t.Errorf("%s: have %v, want %v", prefix, have, want)
		}
	}
	for _, data := range []string{"", "null", "{}", "junk", `{"VtepMAC":"00:00:00:00:00:00"}`} {
		have := NodeMACs(annotate(BackendData, data, BackendV6Data, data6), DefaultPrefix)
		if want := []tunnel.MAC{{}, mac(mac6)}; !reflect.DeepEqual(have, want) {
			t.Errorf("%s: have %v, want %v", data, have, want)
		}
	}
}

// The key file is compared with what peers know.
func TestRecallKeys(t *testing.T) {
	data := `{"PublicKey":"` + keyText2 + `","Port":51820}`
	for name, test := range map[string]struct {
		data, data6, offers string
		want                tunnel.WireGuardKeys
	}{
		"none":           {"", "", "", tunnel.WireGuardKeys{}},
		"of the backend": {data, "null", "", tunnel.WireGuardKeys{key(keyText2)}},
		"IPv6 alone":     {"null", data, "", tunnel.WireGuardKeys{key(keyText2)}},
		"of the offers":  {data, "", wireGuardText, wireGuardOffers.WireGuard.Keys},
		"bad offers":     {data, "", `{"version":9}`, tunnel.WireGuardKeys{key(keyText2)}},
		"other offers":   {data4, data6, offersText, tunnel.WireGuardKeys{}},
	} {
		have := NodeKeys(annotate(BackendData, test.data, BackendV6Data, test.data6, WeftOffers, test.offers), DefaultPrefix)
		if have != test.want {
			t.Errorf("%s: Node: have %v, want %v", name, have, test.want)
		}
	}
	value, err := ParseValue([]byte(`{"PublicIP":"192.168.64.3","BackendType":"wireguard","BackendData":` + data + `}`))
	if have := value.Keys(); err != nil || have != (tunnel.WireGuardKeys{key(keyText2)}) {
		t.Errorf("etcd: have %v, %v", have, err)
	}
}

// Guests are told by the Node, and never by what they write themselves.
func TestGuest(t *testing.T) {
	node := NodeData{Name: "a", PodCIDRs: []string{"10.244.1.0/24"}, Annotations: annotate(BackendType, "host-gw", PublicIP, "192.168.64.3")}
	for _, node.Guest = range []bool{true, false} {
		if lease, _ := FromNode(node, DefaultPrefix); lease.Guest != node.Guest || len(lease.Legs) != 1 {
			t.Errorf("have %+v, guest: %t", lease, node.Guest)
		}
	}
}

func FuzzFromNode(f *testing.F) {
	f.Add("10.244.1.0/24", "fd00::/64", "vxlan", data4, "192.168.64.3", data6, "fd77::1", offersText)
	f.Add("10.244.1.7/24", "", "host-gw", "null", "0.0.0.0", "null", "::1", "")
	f.Add("10.244.1.0/24", "fd00::/64", "wireguard", `{"PublicKey":"`+keyText+`","Port":7}`, "192.168.64.3", "null", "fd77::1", wireGuardText)
	f.Add("", "0.0.0.0/0", "", `{"VtepMAC":1}`, "junk", "[[[", "fe80::1%x", "null")
	f.Fuzz(func(t *testing.T, cidr, cidr2, backend, data, ip, data6, ip6, offers string) {
		annotations := annotate(BackendType, backend, BackendData, data, PublicIP, ip, BackendV6Data, data6, PublicIPv6, ip6, WeftOffers, offers)
		lease, managed := FromNode(NodeData{"a", []string{cidr, cidr2}, annotations, false}, DefaultPrefix)
		if !managed {
			t.Fatal("not managed")
		}
		checkLease(t, lease)
		if len(lease.Legs) == 0 && len(lease.Problems) == 0 {
			t.Fatal("no leg and no reason")
		}
		again, _ := FromNode(NodeData{"a", []string{cidr, cidr2}, annotations, false}, DefaultPrefix)
		if !reflect.DeepEqual(again, lease) {
			t.Fatalf("have %+v, then %+v", lease, again)
		}
		// What was believed can be published, and says the same again.
		if lease.Backend != VXLAN && lease.Backend != WireGuard || len(lease.Legs) == 0 {
			return
		}
		set, err := Annotations(control.Claim{Backend: lease.Backend, Legs: lease.Legs, Offers: lease.Offers}, DefaultPrefix, nil)
		if err != nil {
			t.Fatal(err)
		}
		var cidrs []string
		for _, l := range lease.Legs {
			cidrs = append(cidrs, l.Subnet.String())
		}
		again, _ = FromNode(NodeData{"a", cidrs, set, false}, DefaultPrefix)
		lease.Problems = nil
		if !reflect.DeepEqual(again, lease) {
			t.Fatalf("have %+v, want %+v", again, lease)
		}
	})
}

// checkLease holds for every lease that comes out of this package.
func checkLease(t *testing.T, lease control.Lease) {
	t.Helper()
	last := -1
	for _, l := range lease.Legs {
		family := familyOf(l.Subnet.Addr())
		if family <= last || familyOf(l.PublicIP) != family {
			t.Fatalf("families are out of order: %+v", lease)
		}
		last = family
		if l.Subnet != l.Subnet.Masked() || l.Subnet.Bits() == 0 || checkPublicIP(l.PublicIP) != nil || l.VNI > maxVNI {
			t.Fatalf("a leg that cannot be: %+v", l)
		}
		if (l.Key != tunnel.PublicKey{}) != strings.EqualFold(lease.Backend, WireGuard) {
			t.Fatalf("a key that cannot be: %+v", lease)
		}
		if (l.MAC != tunnel.MAC{}) != strings.EqualFold(lease.Backend, VXLAN) || l.MAC[0]&1 != 0 {
			t.Fatalf("a MAC that cannot be: %+v", lease)
		}
	}
	for _, problem := range lease.Problems {
		if len(problem) > 500 {
			t.Fatalf("a problem of %d bytes", len(problem))
		}
		for _, r := range problem {
			if r < ' ' {
				t.Fatalf("a problem that tricks terminals: %q", problem)
			}
		}
	}
}
