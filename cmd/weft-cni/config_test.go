package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-net/weft/control/state"
)

var (
	env4 = state.SubnetEnv{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		MTU:      1450, IPMasq: true,
	}
	env46 = state.SubnetEnv{
		Networks: append(env4.Networks[:1:1], netip.MustParsePrefix("fd00:10:244::/56")),
		Subnets:  append(env4.Subnets[:1:1], netip.MustParsePrefix("fd00:10:244:1::/64")),
		MTU:      1430,
	}
)

// TestCompose holds what the delegate gets, byte for byte as flannel's plugin
// gives it.
func TestCompose(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		env          state.SubnetEnv
		want         string
	}{
		{
			"as in kube-flannel.yml",
			`{"name":"cbr0","cniVersion":"0.3.1","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}`,
			env4,
			`{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}`,
		},
		{
			"nothing given, dual stack, the agent does not masquerade",
			`{"name":"n"}`,
			env46,
			`{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:10:244:1::/64"}]],"routes":[{"dst":"10.244.0.0/16"},{"dst":"fd00:10:244::/56"}],"type":"host-local"},"isGateway":true,"mtu":1430,"name":"n","type":"bridge"}`,
		},
		{
			"what is given stays as it is",
			`{"name":"n","cniVersion":"1.1.0","delegate":{"mtu":1.40e3,"ipMasq":null,"isGateway":false,"bridge":"br<7>","vlan":9007199254740993,"cniVersion":"0.1.0"}}`,
			env4,
			`{"bridge":"br\u003c7\u003e","cniVersion":"1.1.0","ipMasq":null,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":false,"mtu":1.40e3,"name":"n","type":"bridge","vlan":9007199254740993}`,
		},
		{
			"another delegate is no gateway",
			`{"name":"n","delegate":{"type":"ipvlan","master":"eth0"}}`,
			env4,
			`{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"master":"eth0","mtu":1450,"name":"n","type":"ipvlan"}`,
		},
		{
			"ipam: own routes come first, own ranges do not count",
			`{"name":"n","ipam":{"type":"other-ipam","dataDir":"/x","ranges":[[{"subnet":"192.0.2.0/24"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]}}`,
			env4,
			`{"ipMasq":false,"ipam":{"dataDir":"/x","ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"},{"dst":"10.244.0.0/16"}],"type":"other-ipam"},"isGateway":true,"mtu":1450,"name":"n","type":"bridge"}`,
		},
		{
			"runtimeConfig is passed on",
			`{"name":"n","runtimeConfig":{"mac":"02:00:00:00:00:01"}}`,
			env4,
			`{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":"n","runtimeConfig":{"mac":"02:00:00:00:00:01"},"type":"bridge"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseConfig([]byte(tt.config))
			if err != nil {
				t.Fatal(err)
			}
			given := fmt.Sprint(c.delegate, c.ipam)
			for range 2 { // the second time as the first
				d, err := c.compose(tt.env)
				if err != nil {
					t.Fatal(err)
				}
				if string(d.stdin) != tt.want {
					t.Errorf("the delegate gets\n%s, want\n%s", d.stdin, tt.want)
				}
				if again, network, err := decodeSaved(d.stdin); err != nil || again.plugin != d.plugin || network != c.name {
					t.Errorf("read back as %s on %s: %v", again.plugin, network, err)
				}
			}
			if after := fmt.Sprint(c.delegate, c.ipam); after != given {
				t.Errorf("the configuration was changed from %s to %s", given, after)
			}
		})
	}
}

func TestConfigErrorsNameTheKey(t *testing.T) {
	for config, want := range map[string]string{
		``:                                 "configuration is not a JSON object",
		`[]`:                               "configuration is not a JSON object",
		`{"name":7}`:                       "name: want a string, got 7",
		`{"cniVersion":[]}`:                "cniVersion: want a string",
		`{"subnetFile":{}}`:                "subnetFile: want a string",
		`{"subnetFile":"run/x"}`:           `subnetFile: want an absolute path, got "run/x"`,
		`{"dataDir":"x"}`:                  `dataDir: want an absolute path, got "x"`,
		`{"delegate":"bridge"}`:            `delegate: want an object, got "bridge"`,
		`{"delegate":{"name":"x"}}`:        `delegate.name: must not be set`,
		`{"delegate":{"ipam":{}}}`:         `delegate.ipam: must not be set`,
		`{"delegate":{"type":7}}`:          `delegate.type: want the bare name of a plugin, got 7`,
		`{"delegate":{"type":""}}`:         `delegate.type: want the bare name`,
		`{"delegate":{"type":"../x"}}`:     `delegate.type: want the bare name of a plugin, got "../x"`,
		`{"delegate":{"type":"/bin/sh"}}`:  `delegate.type: want the bare name`,
		`{"delegate":{"type":"a\\b"}}`:     `delegate.type: want the bare name`,
		`{"delegate":{"type":"..","x":1}}`: `delegate.type: want the bare name`,
		`{"ipam":{"type":"../../x"}}`:      `ipam.type: want the bare name of a plugin, got "../../x"`,
		`{"ipam":[]}`:                      `ipam: want an object`,
		`{"ipam":{"routes":{}}}`:           `ipam.routes: want a list, got {}`,
		`{"runtimeConfig":1}`:              `runtimeConfig: want an object`,
		`{"cni.dev/valid-attachments":[{"containerID":1}]}`:       `cni.dev/valid-attachments: want a list`,
		`{"cni.dev/attachments":true}`:                            `cni.dev/attachments: want a list`,
		`{"dataDir":"` + strings.Repeat("x", 300) + `"}`:          `dataDir: want an absolute path, got "xxx`,
		`{"delegate":{"type":"` + strings.Repeat("/", 300) + `"}`: "configuration is not a JSON object",
	} {
		c, err := parseConfig([]byte(config))
		if err == nil {
			_, err = c.compose(env4)
		}
		var typed *types.Error
		if !errors.As(err, &typed) || !strings.HasPrefix(typed.Msg, want) || len(typed.Msg) > 200 {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
}

func TestAttachmentFile(t *testing.T) {
	for _, a := range []attachment{
		{"cbr0", "0123abcd", "eth0"},
		{"a.b-c_d", "x-y", "net@1"},
	} {
		if got, ok := parseFile(a.file()); !ok || got != a {
			t.Errorf("%+v is read back as %+v, %t", a, got, ok)
		}
	}
	for _, name := range []string{"0123abcd", "a@b", ".cbr0@x@eth0.123"} {
		if got, ok := parseFile(name); ok {
			t.Errorf("%q is read as %+v", name, got)
		}
	}
}

// FuzzConfig feeds the configuration, which comes from files that many may write.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		`{"name":"cbr0","cniVersion":"0.3.1","delegate":{"hairpinMode":true}}`,
		`{"name":"n","delegate":{"type":"ipvlan"},"ipam":{"type":"x","routes":[{"dst":"0.0.0.0/0"}]},"runtimeConfig":{}}`,
		`{"name":"n","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"prevResult":{}}`,
		`{"delegate":{"type":"../x"}}`, `{"delegate":null,"ipam":null}`, `null`, `{`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, err := parseConfig(stdin)
		if err != nil {
			return
		}
		d, err := c.compose(env46)
		if err != nil {
			return
		}
		if strings.ContainsAny(d.plugin, `/\`) || strings.HasPrefix(d.plugin, ".") {
			t.Errorf("the delegate is %q", d.plugin)
		}
		var out struct {
			Name string
			Type string
			IPAM struct {
				Type   string
				Ranges [][]struct{ Subnet netip.Prefix }
			}
		}
		if err := json.Unmarshal(d.stdin, &out); err != nil {
			t.Fatalf("the delegate gets %s: %v", d.stdin, err)
		}
		if out.Type != d.plugin || len(out.IPAM.Ranges) != 2 || out.IPAM.Ranges[0][0].Subnet != env46.Subnets[0] {
			t.Errorf("the delegate gets %s", d.stdin)
		}
		if again, _, err := decodeSaved(d.stdin); err != nil || again.plugin != d.plugin {
			t.Errorf("read back as %q: %v", again.plugin, err)
		}
	})
}
