package netconf

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

const backend = `"Backend":{"Type":"vxlan"}`

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }
func addr(text string) netip.Addr     { return netip.MustParseAddr(text) }

// The worked values are what flannel derives for the same text.
func TestDerivedSubnets(t *testing.T) {
	for _, test := range []struct {
		text string
		want []Family
	}{
		{`{"Network":"10.0.0.0/8"}`, []Family{{prefix("10.0.0.0/8"), addr("10.0.1.0"), addr("10.255.255.0"), 24}}},
		{`{"Network":"10.244.0.0/16"}`, []Family{{prefix("10.244.0.0/16"), addr("10.244.1.0"), addr("10.244.255.0"), 24}}},
		{`{"Network":"10.1.0.0/22"}`, []Family{{prefix("10.1.0.0/22"), addr("10.1.1.0"), addr("10.1.3.0"), 24}}},
		{`{"Network":"10.1.0.0/23"}`, []Family{{prefix("10.1.0.0/23"), addr("10.1.0.128"), addr("10.1.1.128"), 25}}},
		{`{"Network":"10.1.0.0/28"}`, []Family{{prefix("10.1.0.0/28"), addr("10.1.0.4"), addr("10.1.0.12"), 30}}},
		{`{"Network":"10.3.7.9/16"}`, []Family{{prefix("10.3.0.0/16"), addr("10.3.1.0"), addr("10.3.255.0"), 24}}},
		{`{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}`,
			[]Family{{prefix("10.0.0.0/8"), addr("10.10.0.0"), addr("10.99.0.0"), 20}}},
		{`{"Network":"10.0.0.0/8","SubnetMin":"10.0.0.0"}`, []Family{{prefix("10.0.0.0/8"), addr("10.0.0.0"), addr("10.255.255.0"), 24}}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/56"}`,
			[]Family{{prefix("fd00:10:244::/56"), addr("fd00:10:244:1::"), addr("fd00:10:244:ff::"), 64}}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/63"}`,
			[]Family{{prefix("fd00::/63"), addr("fd00:0:0:0:8000::"), addr("fd00:0:0:1:8000::"), 65}}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/124"}`,
			[]Family{{prefix("fd00::/124"), addr("fd00::4"), addr("fd00::c"), 126}}},
		{`{"EnableIPv6":true,"Network":"10.244.0.0/16","IPv6Network":"fd00::/48","IPv6SubnetLen":80,"IPv6SubnetMin":"fd00::1:0:0:0"}`,
			[]Family{
				{prefix("10.244.0.0/16"), addr("10.244.1.0"), addr("10.244.255.0"), 24},
				{prefix("fd00::/48"), addr("fd00::1:0:0:0"), addr("fd00:0:0:ffff:ffff::"), 80},
			}},
	} {
		config, err := Parse([]byte(strings.TrimSuffix(test.text, "}") + "," + backend + "}"))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if !slices.Equal(config.Families, test.want) {
			t.Errorf("%s:\n have %v\n want %v", test.text, config.Families, test.want)
		}
	}
}

// k3s writes a network of length 0 for a family that is off.
func TestEmptyFamily(t *testing.T) {
	for _, test := range []struct {
		text string
		want []netip.Prefix
	}{
		{`{"Network":"10.42.0.0/16","EnableIPv6":false,"EnableIPv4":true,"IPv6Network":"::/0",` + backend + `}`, []netip.Prefix{prefix("10.42.0.0/16")}},
		{`{"Network":"0.0.0.0/0","EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"fd00:42::/56",` + backend + `}`, []netip.Prefix{prefix("fd00:42::/56")}},
		{`{"Network":"0.0.0.0/0","EnableIPv6":true,"IPv6Network":"fd00:42::/56",` + backend + `}`, []netip.Prefix{prefix("fd00:42::/56")}},
		{`{"EnableIPv6":true,"EnableIPv4":false,"IPv6Network":"fd00:42::/56",` + backend + `}`, []netip.Prefix{prefix("fd00:42::/56")}},
	} {
		config, err := Parse([]byte(test.text))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
		} else if !slices.Equal(config.Networks(), test.want) {
			t.Errorf("%s: have %v, want %v", test.text, config.Networks(), test.want)
		}
	}
}

// plain is a backend with nothing but defaults.
func plain(change Backend) Backend {
	change.Encrypt, change.ListenPorts = control.EncryptGuests, [2]uint16{51820, 51821}
	return change
}

func TestBackend(t *testing.T) {
	psk, err := tunnel.ParseSecretKey(pskText)
	if err != nil {
		t.Fatal(err)
	}
	order := []tunnel.Encap{tunnel.EncapWireGuard, tunnel.EncapDirect}
	for _, test := range []struct {
		text string
		want Backend
	}{
		{`{"Type":"vxlan"}`, plain(Backend{Type: VXLAN, VNI: 1, Port: 8472})},
		{`{"Type":"VXLAN","Port":0,"MacPrefix":"0E-2A","Unknown":[1]}`, plain(Backend{Type: VXLAN, VNI: 1, Port: 8472})},
		{`{"type":"vxlan","vni":4096,"PORT":4789,"mtu":1400,"learning":true,"gbp":true,"directrouting":true}`,
			plain(Backend{Type: VXLAN, VNI: 4096, Port: 4789, MTU: 1400, Learning: true, GBP: true, DirectRouting: true})},
		{`{"Type":"vxlan","VNI":0}`, plain(Backend{Type: VXLAN, VNI: 0, Port: 8472})},
		{`{"Type":"vxlan","VNI":16777215,"Port":65535,"MTU":65535}`, plain(Backend{Type: VXLAN, VNI: 16777215, Port: 65535, MTU: 65535})},
		{`{"Type":"Host-GW"}`, plain(Backend{Type: HostGW})},
		{`{"Type":"host-gw","Port":"not even looked at"}`, plain(Backend{Type: HostGW})},
		{`{"Type":"host-gw","Prefer":["direct","wireguard"]}`, plain(Backend{Type: HostGW, Prefer: []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapWireGuard}})},
		{`{"Type":"WireGuard"}`, plain(Backend{Type: WireGuard})},
		{`{"Type":"wireguard","Mode":"separate","MTU":656,"VNI":"of another type","PSK":""}`, plain(Backend{Type: WireGuard, MTU: 656})},
		{`{"Type":"wireguard","Encrypt":"never","Prefer":["wireguard"]}`,
			Backend{Type: WireGuard, Encrypt: control.EncryptNever, Prefer: order[:1], ListenPorts: [2]uint16{51820, 51821}}},
		{`{"Type":"wireguard","ListenPort":8472,"listenportv6":7,"PersistentKeepaliveInterval":25,"PSK":"` + pskText + `"}`,
			Backend{Type: WireGuard, Encrypt: control.EncryptGuests, ListenPorts: [2]uint16{8472, 7}, PersistentKeepalive: 25, PSK: psk}},
		{`{"Type":"vxlan","Mode":"auto","Prefer":["WireGuard","direct"],"Encrypt":"Always","DirectRouting":true,"ListenPort":1,"PersistentKeepaliveInterval":65535,"PSK":"` + pskText + `"}`,
			Backend{Type: VXLAN, VNI: 1, Port: 8472, DirectRouting: true, Prefer: order, Encrypt: control.EncryptAlways, ListenPorts: [2]uint16{1, 51821}, PersistentKeepalive: 65535, PSK: psk}},
		// The port of a family that is off is in nobody's way.
		{`{"Type":"vxlan","ListenPort":51821,"ListenPortV6":8472}`,
			Backend{Type: VXLAN, VNI: 1, Port: 8472, Encrypt: control.EncryptGuests, ListenPorts: [2]uint16{51821, 8472}}},
		// Without a word on it, guests are not encrypted where Prefer leaves no way to.
		{`{"Type":"vxlan","Prefer":["vxlan"]}`, plain(Backend{Type: VXLAN, VNI: 1, Port: 8472, Prefer: []tunnel.Encap{tunnel.EncapVXLAN}})},
	} {
		config, err := Parse([]byte(`{"Network":"10.244.0.0/16","Backend":` + test.text + `}`))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
		} else if !reflect.DeepEqual(config.Backend, test.want) {
			t.Errorf("%s:\n have %+v\n want %+v", test.text, config.Backend, test.want)
		}
	}
}

const pskText = "3H7Zb4v4MZ8vYYlyxmyP4oR0vRWKtQvOMb8b1KAq1mE="

// Every error names the keys and the cure, and none tells the secret.
func TestWireGuardErrors(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{`{"Type":"wireguard","Mode":"auto"}`, []string{`Backend.Mode is "auto"`, `set it to "separate", or leave it out`}},
		{`{"Type":"wireguard","Mode":"ipv4"}`, []string{`Backend.Mode is "ipv4"`, "separate"}},
		{`{"Type":"wireguard","Mode":"ipv6"}`, []string{`Backend.Mode is "ipv6"`, "separate"}},
		{`{"Type":"wireguard","Mode":"Separate"}`, []string{`Backend.Mode is "Separate"; allowed: separate`}},
		{`{"Type":"wireguard","Mode":1}`, []string{"Backend.Mode is a JSON number"}},
		{`{"Type":"wireguard","MTU":1359}`, []string{"Backend.MTU is 1359; allowed: 1360 to 65535"}},
		{`{"Type":"wireguard","ListenPort":65536}`, []string{"Backend.ListenPort is 65536; allowed: 1 to 65535, or 0 for 51820"}},
		{`{"Type":"wireguard","ListenPortV6":-1}`, []string{"Backend.ListenPortV6 is -1", "51821"}},
		{`{"Type":"wireguard","ListenPort":"51820"}`, []string{"Backend.ListenPort is a JSON string; allowed: a whole number"}},
		{`{"Type":"vxlan","ListenPort":7,"ListenPortV6":7}`, []string{"Backend.ListenPort and Backend.ListenPortV6 are both 7"}},
		{`{"Type":"vxlan","ListenPort":8472}`, []string{"Backend.ListenPort is 8472, and so is Backend.Port"}},
		{`{"Type":"vxlan","Port":51821}`, []string{"Backend.ListenPortV6 is 51821, and so is Backend.Port"}},
		{`{"Type":"host-gw","PersistentKeepaliveInterval":65536}`, []string{"Backend.PersistentKeepaliveInterval is 65536", "1 to 65535 seconds"}},
		{`{"Type":"host-gw","PersistentKeepaliveInterval":-5}`, []string{"Backend.PersistentKeepaliveInterval is -5"}},
		{`{"Type":"vxlan","PSK":"` + pskText[1:] + `"}`, []string{"Backend.PSK", "wg genpsk"}},
		{`{"Type":"vxlan","PSK":"` + strings.Repeat("A", 43) + `="}`, []string{"Backend.PSK", "zero"}},
		{`{"Type":"vxlan","PSK":7}`, []string{"Backend.PSK is a JSON number; allowed: a string"}},
		{`{"Type":"vxlan","Prefer":[]}`, []string{"Backend.Prefer is empty", "direct, vxlan, wireguard"}},
		{`{"Type":"vxlan","Prefer":["ipsec"]}`, []string{`Backend.Prefer has "ipsec"; allowed: direct, vxlan, wireguard`}},
		{`{"Type":"vxlan","Prefer":["vxlan","VXLAN"]}`, []string{"Backend.Prefer has vxlan twice"}},
		{`{"Type":"vxlan","Prefer":"vxlan"}`, []string{"Backend.Prefer is a JSON string"}},
		{`{"Type":"vxlan","Prefer":["vxlan"],"DirectRouting":true}`, []string{"Backend.DirectRouting is true, and Backend.Prefer is vxlan and lacks direct"}},
		{`{"Type":"vxlan","Encrypt":"maybe"}`, []string{`Backend.Encrypt is "maybe"; allowed: never, guests, always`}},
		{`{"Type":"vxlan","Encrypt":true}`, []string{"Backend.Encrypt is a JSON bool"}},
		{`{"Type":"vxlan","Encrypt":"always","Prefer":["direct","vxlan"]}`, []string{"Backend.Encrypt is always, and Backend.Prefer is direct, vxlan and lacks wireguard"}},
		{`{"Type":"vxlan","Encrypt":"guests","Prefer":["vxlan"]}`, []string{"Backend.Encrypt is guests, and Backend.Prefer is vxlan"}},
		{`{"Type":"host-gw","Encrypt":"always"}`, []string{"Backend.Encrypt is always", "host-gw", "in clear", "set Type to"}},
		{`{"Type":"host-gw","Prefer":["direct","vxlan"]}`, []string{"Backend.Prefer has vxlan", "host-gw"}},
		{`{"Type":"host-gw","Prefer":["wireguard"]}`, []string{"Backend.Prefer is wireguard and lacks direct"}},
		{`{"Type":"wireguard","Prefer":["direct","wireguard"]}`, []string{"Backend.Prefer is direct, wireguard", "leave Prefer out"}},
		{`{"Type":"wireguard","Prefer":["vxlan"]}`, []string{"Backend.Prefer is vxlan"}},
	} {
		_, err := Parse([]byte(`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/56","Backend":` + test.text + `}`))
		if err == nil {
			t.Errorf("%s: no error", test.text)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q does not say %q", test.text, err, want)
			}
		}
		if strings.Contains(err.Error(), pskText[1:40]) {
			t.Errorf("%s: the error tells the secret: %v", test.text, err)
		}
	}
}

func TestKeys(t *testing.T) {
	config, err := Parse([]byte("\n" + `{ "NETWORK": "10.244.0.0/16", "enablenftables": true, "Whatever": {"x": [null]},
		"backend": {"tYPE": "vxlan"} }` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !config.NFTables || config.Networks()[0] != prefix("10.244.0.0/16") {
		t.Errorf("have %+v", config)
	}
}

// Every error names the key and says what is allowed.
func TestErrors(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{``, []string{"the document is not a JSON object", "allowed"}},
		{`[]`, []string{"the document is not a JSON object", "allowed"}},
		{"{\n\"Network\": }", []string{"line 2"}},
		{`{"Network":"10.0.0.0/8",` + backend + `} trailing`, []string{"line 1"}},
		{`{` + backend + `}`, []string{"Network is missing", `"10.244.0.0/16"`, "EnableIPv4 to false"}},
		{`{"Network":"",` + backend + `}`, []string{`Network is ""`, "allowed: address/length"}},
		{`{"Network":"10.0.0.0",` + backend + `}`, []string{`Network is "10.0.0.0"`, "allowed"}},
		{`{"Network":5,` + backend + `}`, []string{"Network is a JSON number", "allowed: a string"}},
		{`{"Network":"10.0.0.0/8","EnableIPv6":"true",` + backend + `}`, []string{"EnableIPv6 is a JSON string", "true or false"}},
		{`{"Network":"10.0.0.0/8","SubnetLen":"24",` + backend + `}`, []string{"SubnetLen is a JSON string", "whole number"}},
		{`{"Network":"fd00::/56",` + backend + `}`, []string{`Network is "fd00::/56"`}},
		{`{"Network":"127.0.0.0/16",` + backend + `}`, []string{"Network is 127.0.0.0/16", "overlaps 127.0.0.0/8", "allowed: a unicast range"}},
		{`{"Network":"0.0.0.0/0","EnableIPv4":true,` + backend + `}`, []string{"Network is 0.0.0.0/0", "EnableIPv4 is true"}},
		{`{"Network":"0.0.0.0/0",` + backend + `}`, []string{"no address family is enabled"}},
		{`{"EnableIPv4":false,` + backend + `}`, []string{"no address family is enabled", "Network"}},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,` + backend + `}`, []string{"IPv6Network is missing", "EnableIPv6 to false"}},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"::/0",` + backend + `}`, []string{"IPv6Network is ::/0", "EnableIPv6 is true"}},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"::ffff:10.0.0.0/112",` + backend + `}`, []string{"IPv6Network is"}},
		{`{"Network":"10.0.0.0/8","IPv6Network":"",` + backend + `}`, []string{`IPv6Network is ""`}},
		{`{"Network":"10.0.0.0/29",` + backend + `}`, []string{"Network is 10.0.0.0/29", "too small", "/28 or larger"}},
		{`{"Network":"10.0.0.0/30","SubnetLen":30,` + backend + `}`, []string{"Network is 10.0.0.0/30", "too small", "/28"}},
		{`{"Network":"10.0.0.0/16","SubnetLen":31,` + backend + `}`, []string{"SubnetLen is 31", "18 to 30"}},
		{`{"Network":"10.0.0.0/16","SubnetLen":17,` + backend + `}`, []string{"SubnetLen is 17", "18 to 30"}},
		{`{"Network":"10.0.0.0/16","SubnetLen":-1,` + backend + `}`, []string{"SubnetLen is -1", "18 to 30"}},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0",` + backend + `}`, []string{`SubnetMin is "10.1.0.0"`, "10.0.0.0/16"}},
		{`{"Network":"10.0.0.0/16","SubnetMax":"",` + backend + `}`, []string{`SubnetMax is ""`, "10.0.0.0/16"}},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.1.1",` + backend + `}`, []string{"SubnetMin is 10.0.1.1", "start of a /24", "10.0.1.0"}},
		{`{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0",` + backend + `}`, []string{"SubnetMin is 10.0.9.0", "after SubnetMax 10.0.8.0"}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/125",` + backend + `}`, []string{"IPv6Network is fd00::/125", "/124 or larger"}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/56","IPv6SubnetLen":127,` + backend + `}`, []string{"IPv6SubnetLen is 127", "58 to 126"}},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/56","IPv6SubnetMin":"fd01::",` + backend + `}`, []string{"IPv6SubnetMin", "fd00::/56"}},
		{`{"Network":"10.0.0.0/8"}`, []string{"Backend.Type is missing; allowed: vxlan, host-gw"}},
		{`{"Network":"10.0.0.0/8","Backend":null}`, []string{"Backend.Type is missing; allowed: vxlan, host-gw"}},
		{`{"Network":"10.0.0.0/8","Backend":{}}`, []string{"Backend.Type is missing; allowed: vxlan, host-gw"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":""}}`, []string{"Backend.Type is missing; allowed: vxlan, host-gw"}},
		{`{"Network":"10.0.0.0/8","Backend":"vxlan"}`, []string{"Backend is not a JSON object"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":1}}`, []string{"Backend.Type is a JSON number"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}`, []string{`Backend.Type is "udp"; allowed: vxlan, host-gw`}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":16777216}}`, []string{"Backend.VNI is 16777216", "0 to 16777215"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":-1}}`, []string{"Backend.VNI is -1"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":1.5}}`, []string{"Backend.VNI is a JSON number 1.5", "whole number"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","Port":65536}}`, []string{"Backend.Port is 65536", "1 to 65535"}},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","MTU":625}}`, []string{"Backend.MTU is 625", "626 to 65535"}},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/56","Backend":{"Type":"vxlan","MTU":1349}}`, []string{"Backend.MTU is 1349", "1350 to 65535"}},
		{`{"Network":"` + strings.Repeat("x", 1000) + `",` + backend + `}`, []string{"Network is", "..."}},
		{`{"Network":"` + strings.Repeat("x", MaxSize) + `"}`, []string{"at most 1048576"}},
	} {
		_, err := Parse([]byte(test.text))
		if err == nil {
			t.Errorf("%.80s: no error", test.text)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%.80s: error %q does not say %q", test.text, err, want)
			}
		}
		if len(err.Error()) > 400 {
			t.Errorf("%.80s: the error has %d bytes", test.text, len(err.Error()))
		}
	}
}

func TestSubnets(t *testing.T) {
	family := Family{prefix("10.0.0.0/16"), addr("10.0.2.0"), addr("10.0.4.0"), 24}
	var all []string
	for subnet := family.First(); subnet.IsValid(); subnet = family.After(subnet) {
		all = append(all, subnet.String())
		if !family.Usable(subnet) {
			t.Errorf("%v is not usable", subnet)
		}
	}
	if have, want := strings.Join(all, " "), "10.0.2.0/24 10.0.3.0/24 10.0.4.0/24"; have != want {
		t.Errorf("have %s, want %s", have, want)
	}
	for _, test := range []struct{ past, want string }{
		{"10.0.2.0/23", "10.0.4.0/24"},
		{"10.0.2.4/30", "10.0.3.0/24"},
		{"10.0.4.0/24", "invalid Prefix"},
		{"0.0.0.0/0", "invalid Prefix"},
		{"255.255.255.255/32", "invalid Prefix"},
	} {
		if have := family.After(prefix(test.past)); have.String() != test.want {
			t.Errorf("after %s: have %v, want %s", test.past, have, test.want)
		}
	}
	for _, subnet := range []netip.Prefix{
		{}, prefix("10.0.1.0/24"), prefix("10.0.5.0/24"), prefix("10.0.2.0/25"), prefix("10.0.2.1/24"), prefix("fd00::/24"),
	} {
		if family.Usable(subnet) {
			t.Errorf("%v is usable", subnet)
		}
	}
}

// The last subnets of the address space must not wrap around.
func TestSubnetsEnd(t *testing.T) {
	config, err := Parse([]byte(`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/7",` + backend + `}`))
	if err != nil {
		t.Fatal(err)
	}
	family := config.Families[0]
	if last := netip.PrefixFrom(family.SubnetMax, 64); family.After(last).IsValid() || last.String() != "fdff:ffff:ffff:ffff::/64" {
		t.Errorf("after %v comes %v", last, family.After(last))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan","VNI":7}}`))
	f.Add([]byte(`{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"host-gw"}}`))
	f.Add([]byte(`{"EnableIPv4":false,"IPv6Network":"::/0","Backend":null}`))
	f.Add([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard","Mode":"separate","ListenPort":7,"PSK":"` + pskText + `"}}`))
	f.Add([]byte(`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","Prefer":["wireguard","direct"],"Encrypt":"always","ListenPortV6":9}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := Parse(data)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		checkBackend(t, config)
		if len(config.Families) == 0 || len(config.Families) > 2 {
			t.Fatalf("%d families", len(config.Families))
		}
		for _, family := range config.Families {
			for _, subnet := range []netip.Prefix{family.First(), netip.PrefixFrom(family.SubnetMax, family.SubnetLen)} {
				if !family.Usable(subnet) || !family.Network.Overlaps(subnet) || subnet.Bits() < family.Network.Bits() {
					t.Fatalf("%v in %+v", subnet, family)
				}
			}
			if next := family.After(family.First()); next.IsValid() && !family.Usable(next) {
				t.Fatalf("%v in %+v", next, family)
			}
		}
	})
}

// checkBackend holds for every configuration that is accepted.
func checkBackend(t *testing.T, config Config) {
	t.Helper()
	b := config.Backend
	if b.PSK != (tunnel.SecretKey{}) && strings.Contains(fmt.Sprintf("%v %+v %#v", b, b, b), b.PSK.Text()) {
		t.Fatal("the secret is printed")
	}
	for i, encap := range b.Prefer {
		if slices.Contains(b.Prefer[:i], encap) {
			t.Fatalf("%s is preferred twice", encap)
		}
	}
	if b.ListenPorts[0] == 0 || b.ListenPorts[1] == 0 || b.Prefer != nil && len(b.Prefer) == 0 {
		t.Fatalf("have %+v", b)
	}
	if b.Encrypt == control.EncryptAlways && (b.Type == HostGW || b.Prefer != nil && !slices.Contains(b.Prefer, tunnel.EncapWireGuard)) {
		t.Fatalf("nothing could be encrypted: %+v", b)
	}
	if !slices.Contains([]control.Encrypt{control.EncryptNever, control.EncryptGuests, control.EncryptAlways}, b.Encrypt) {
		t.Fatalf("encrypt %q", b.Encrypt)
	}
}
