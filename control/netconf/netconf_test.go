package netconf

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
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

func TestBackend(t *testing.T) {
	for _, test := range []struct {
		text string
		want Backend
	}{
		{`{"Type":"vxlan"}`, Backend{Type: VXLAN, VNI: 1, Port: 8472}},
		{`{"Type":"VXLAN","Port":0,"MacPrefix":"0E-2A","Unknown":[1]}`, Backend{Type: VXLAN, VNI: 1, Port: 8472}},
		{`{"type":"vxlan","vni":4096,"PORT":4789,"mtu":1400,"learning":true,"gbp":true,"directrouting":true}`,
			Backend{Type: VXLAN, VNI: 4096, Port: 4789, MTU: 1400, Learning: true, GBP: true, DirectRouting: true}},
		{`{"Type":"vxlan","VNI":0}`, Backend{Type: VXLAN, VNI: 0, Port: 8472}},
		{`{"Type":"vxlan","VNI":16777215,"Port":65535,"MTU":65535}`, Backend{Type: VXLAN, VNI: 16777215, Port: 65535, MTU: 65535}},
		{`{"Type":"Host-GW"}`, Backend{Type: HostGW}},
		{`{"Type":"host-gw","Port":"not even looked at"}`, Backend{Type: HostGW}},
	} {
		config, err := Parse([]byte(`{"Network":"10.244.0.0/16","Backend":` + test.text + `}`))
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
		} else if config.Backend != test.want {
			t.Errorf("%s:\n have %+v\n want %+v", test.text, config.Backend, test.want)
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
	f.Fuzz(func(t *testing.T, data []byte) {
		config, err := Parse(data)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			return
		}
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
