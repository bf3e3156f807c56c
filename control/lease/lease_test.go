package lease

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func mac(text string) tunnel.MAC {
	parsed, err := tunnel.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return parsed
}

func leg(subnet, publicIP, vtep string, vni uint32) control.Leg {
	l := control.Leg{PublicIP: netip.MustParseAddr(publicIP), VNI: vni}
	if subnet != "" {
		l.Subnet = netip.MustParsePrefix(subnet)
	}
	if vtep != "" {
		l.MAC = mac(vtep)
	}
	return l
}

const (
	mac4 = "c6:d2:32:6f:8f:44"
	mac6 = "52:b1:0a:c9:6a:41"
)

var (
	vxlan4  = leg("10.244.1.0/24", "192.168.64.3", mac4, 1)
	vxlan6  = leg("fd00:10:244:1::/64", "fd77::1", mac6, 1)
	direct4 = leg("10.244.1.0/24", "192.168.64.3", "", 0)
	direct6 = leg("fd00:10:244:1::/64", "fd77::1", "", 0)
)

// Two keys, as they are published.
const (
	keyText  = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
	keyText2 = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="
)

func key(text string) tunnel.PublicKey {
	parsed, err := tunnel.ParsePublicKey(text)
	if err != nil {
		panic(err)
	}
	return parsed
}

// guarded makes a leg one of the backend wireguard.
func guarded(l control.Leg, port uint16) control.Leg {
	l.Key, l.Port = key(keyText), port
	return l
}

var guarded4, guarded6 = guarded(direct4, 51820), guarded(direct6, 51821)

// wireGuardText are offers with everything in them.
const wireGuardText = `{"version":1,"vxlan":{"remoteChecksum":true,"off":true},` +
	`"wireguard":{"key":"` + keyText + `","other":"` + keyText2 + `","port":51820,"portV6":51821},"routed":false}`

var wireGuardOffers = control.Offers{
	VXLAN:     control.VXLANOffer{RemoteChecksum: true, Off: true},
	WireGuard: control.WireGuardOffer{Keys: tunnel.WireGuardKeys{key(keyText), key(keyText2)}, Ports: [2]uint16{51820, 51821}},
	NoDirect:  true,
}

// offersText are the offers of a host with the userspace engine.
const offersText = `{"version":1,"vxlan":{"remoteChecksum":true}}`

var offers = control.Offers{VXLAN: control.VXLANOffer{RemoteChecksum: true}}

// goldens are the claims a host can make and what flannel itself writes for
// each: the annotations without their prefix, the key and the value in etcd.
// Offers are the one thing that flannel would not write.
var goldens = []struct {
	name        string
	claim       control.Claim
	annotations map[string]string
	key, value  string
}{
	{
		"vxlan IPv4", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.64.3",
			"backend-data": `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`,
		},
		"subnets/10.244.1.0-24",
		`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}`,
	},
	{
		"vxlan IPv4 with offers", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4}, Offers: offers},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.64.3",
			"backend-data": `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`,
			"weft-offers":  `{"version":1,"vxlan":{"remoteChecksum":true}}`,
		},
		"subnets/10.244.1.0-24",
		`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},` +
			`"WeftOffers":{"version":1,"vxlan":{"remoteChecksum":true}}}`,
	},
	{
		"vxlan dual with offers", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4, vxlan6}, Offers: offers},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.64.3", "public-ipv6": "fd77::1",
			"backend-data":    `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`,
			"backend-v6-data": `{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"}`,
			"weft-offers":     `{"version":1,"vxlan":{"remoteChecksum":true}}`,
		},
		"subnets/10.244.1.0-24&fd00:10:244:1::-64",
		`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"vxlan",` +
			`"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"},` +
			`"WeftOffers":{"version":1,"vxlan":{"remoteChecksum":true}}}`,
	},
	{
		"vxlan dual", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4, vxlan6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.64.3", "public-ipv6": "fd77::1",
			"backend-data":    `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`,
			"backend-v6-data": `{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"}`,
		},
		"subnets/10.244.1.0-24&fd00:10:244:1::-64",
		`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"vxlan",` +
			`"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"}}`,
	},
	{
		"vxlan IPv6", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ipv6": "fd77::1",
			"backend-v6-data": `{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"}`,
		},
		"x-weft-subnets/fd00:10:244:1::-64",
		`{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"52:b1:0a:c9:6a:41"}}`,
	},
	{
		"host-gw IPv4", control.Claim{Backend: HostGW, Legs: []control.Leg{direct4}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "host-gw", "public-ip": "192.168.64.3", "backend-data": "null",
		},
		"subnets/10.244.1.0-24",
		`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}`,
	},
	{
		"host-gw dual", control.Claim{Backend: HostGW, Legs: []control.Leg{direct4, direct6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "host-gw", "public-ip": "192.168.64.3", "backend-data": "null",
			"public-ipv6": "fd77::1", "backend-v6-data": "null",
		},
		"subnets/10.244.1.0-24&fd00:10:244:1::-64",
		`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"host-gw"}`,
	},
	{
		"host-gw IPv6", control.Claim{Backend: HostGW, Legs: []control.Leg{direct6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "host-gw", "public-ip": "0.0.0.0", "backend-data": "null",
			"public-ipv6": "fd77::1", "backend-v6-data": "null",
		},
		"x-weft-subnets/fd00:10:244:1::-64",
		`{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"host-gw"}`,
	},
	{
		"wireguard IPv4", control.Claim{Backend: WireGuard, Legs: []control.Leg{guarded4}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "wireguard", "public-ip": "192.168.64.3",
			"backend-data": `{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51820}`,
		},
		"subnets/10.244.1.0-24",
		`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"wireguard",` +
			`"BackendData":{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51820}}`,
	},
	{
		"wireguard dual", control.Claim{Backend: WireGuard, Legs: []control.Leg{guarded4, guarded6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "wireguard", "public-ip": "192.168.64.3", "public-ipv6": "fd77::1",
			"backend-data":    `{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51820}`,
			"backend-v6-data": `{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51821}`,
		},
		"subnets/10.244.1.0-24&fd00:10:244:1::-64",
		`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"wireguard",` +
			`"BackendData":{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51820},` +
			`"BackendV6Data":{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51821}}`,
	},
	{
		"wireguard IPv6", control.Claim{Backend: WireGuard, Legs: []control.Leg{guarded6}},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "wireguard", "public-ip": "0.0.0.0", "backend-data": "null",
			"public-ipv6":     "fd77::1",
			"backend-v6-data": `{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51821}`,
		},
		"x-weft-subnets/fd00:10:244:1::-64",
		`{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","BackendType":"wireguard",` +
			`"BackendV6Data":{"PublicKey":"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=","Port":51821}}`,
	},
	{
		"vxlan IPv4 with everything on offer", control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4}, Offers: wireGuardOffers},
		map[string]string{
			"kube-subnet-manager": "true", "backend-type": "vxlan", "public-ip": "192.168.64.3",
			"backend-data": `{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`,
			"weft-offers":  wireGuardText,
		},
		"subnets/10.244.1.0-24",
		`{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},` +
			`"WeftOffers":` + wireGuardText + `}`,
	},
}

// What is published for a claim must be flannel's to the byte, and must read
// back as the claim.
func TestGoldenNode(t *testing.T) {
	for _, golden := range goldens {
		for _, prefix := range []Prefix{DefaultPrefix, "example.org/pods-"} {
			want := map[string]string{}
			for name, value := range golden.annotations {
				want[string(prefix)+name] = value
			}
			have, err := Annotations(golden.claim, prefix, nil)
			if err != nil || !reflect.DeepEqual(have, want) {
				t.Errorf("%s:\n have %v, %v\n want %v", golden.name, have, err, want)
				continue
			}
			lease, managed := FromNode(NodeData{"a", []string{"10.244.1.0/24", "fd00:10:244:1::/64"}, have, false}, prefix)
			wantLease := control.Lease{Host: "a", Backend: golden.claim.Backend, Legs: golden.claim.Legs, Offers: golden.claim.Offers}
			if !managed || !reflect.DeepEqual(lease, wantLease) {
				t.Errorf("%s: read back:\n have %+v\n want %+v", golden.name, lease, wantLease)
			}
		}
	}
}

func TestGoldenEtcd(t *testing.T) {
	for _, golden := range goldens {
		var subnets []netip.Prefix
		for _, l := range golden.claim.Legs {
			subnets = append(subnets, l.Subnet)
		}
		if key, err := FormatKey(subnets); err != nil || key != golden.key {
			t.Errorf("%s: have key %s, %v, want %s", golden.name, key, err, golden.key)
		}
		if parsed, err := ParseKey(golden.key); err != nil || !reflect.DeepEqual(parsed, subnets) {
			t.Errorf("%s: have subnets %v, %v, want %v", golden.name, parsed, err, subnets)
		}
		if value, err := FormatValue(golden.claim); err != nil || string(value) != golden.value {
			t.Errorf("%s:\n have %s, %v\n want %s", golden.name, value, err, golden.value)
		}
		value, err := ParseValue([]byte(golden.value))
		if err != nil {
			t.Errorf("%s: %v", golden.name, err)
			continue
		}
		want := control.Lease{Host: HostOfKey(golden.key), Backend: golden.claim.Backend, Legs: golden.claim.Legs, Offers: golden.claim.Offers}
		if have := value.Lease(HostOfKey(golden.key), subnets); !reflect.DeepEqual(have, want) {
			t.Errorf("%s: read back:\n have %+v\n want %+v", golden.name, have, want)
		}
	}
}

func TestClaimErrors(t *testing.T) {
	for _, test := range []struct {
		claim control.Claim
		want  string
	}{
		{control.Claim{Backend: VXLAN}, "no address family is enabled"},
		{control.Claim{Backend: "udp", Legs: []control.Leg{direct4}}, `backend type "udp": allowed: vxlan, host-gw, wireguard`},
		{control.Claim{Backend: VXLAN, Legs: []control.Leg{direct4}}, "IPv4: leg has no MAC"},
		{control.Claim{Backend: WireGuard, Legs: []control.Leg{direct4}}, "IPv4: leg has no WireGuard key"},
		{control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4}, Offers: control.Offers{WireGuard: control.WireGuardOffer{Ports: [2]uint16{1, 2}}}}, "offers: wireguard: key is missing"},
		{control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4, vxlan4}}, "two IPv4 legs"},
		{control.Claim{Backend: VXLAN, Legs: []control.Leg{{MAC: mac(mac4)}}}, "missing"},
		{control.Claim{Backend: HostGW, Legs: []control.Leg{leg("", "127.0.0.1", "", 0)}}, "127.0.0.1: loopback"},
		{control.Claim{Backend: HostGW, Legs: []control.Leg{leg("", "fe80::1%eth0", "", 0)}}, "zone"},
	} {
		if _, err := Annotations(test.claim, DefaultPrefix, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("annotations of %+v: have %v, want %q", test.claim, err, test.want)
		}
		if _, err := FormatValue(test.claim); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("value of %+v: have %v, want %q", test.claim, err, test.want)
		}
	}
}

func TestPublicIP(t *testing.T) {
	for _, good := range []string{"192.0.2.1", "10.0.0.1", "169.254.7.7", "100.64.0.1", "2001:db8::1", "fd00::1"} {
		addr := netip.MustParseAddr(good)
		if have, err := parsePublicIP(good, familyOf(addr)); err != nil || have != addr {
			t.Errorf("%s: have %v, %v", good, have, err)
		}
	}
	if have, err := parsePublicIP("::ffff:192.0.2.1", v4); err != nil || have != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("mapped address: have %v, %v", have, err)
	}
	for _, bad := range []struct {
		text   string
		family int
	}{
		{"", v4}, {"host", v4}, {"192.0.2.1/24", v4}, {"fd00::1", v4}, {"192.0.2.1", v6}, {"::ffff:192.0.2.1", v6},
		{"0.0.0.0", v4}, {"0.1.2.3", v4}, {"127.9.9.9", v4}, {"224.0.0.1", v4}, {"255.255.255.255", v4},
		{"::", v6}, {"::1", v6}, {"ff02::1", v6}, {"fe80::1", v6}, {"fd00::1%eth0", v6}, {"192.0.2.01", v4},
	} {
		if have, err := parsePublicIP(bad.text, bad.family); err == nil {
			t.Errorf("%s as %s: accepted as %v", bad.text, familyNames[bad.family], have)
		}
	}
}
