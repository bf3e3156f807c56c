package lease

import (
	"bytes"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func TestParseOffers(t *testing.T) {
	for name, test := range map[string]struct {
		text    string
		want    control.Offers
		problem string // in the error; empty: none
	}{
		"none":                      {"", control.Offers{}, ""},
		"as written":                {offersText, offers, ""},
		"in another form":           {` { "vxlan" : { "remoteChecksum" : true } , "version" : 1 } `, offers, ""},
		"version alone":             {`{"version":1}`, control.Offers{}, ""},
		"not remote checksums":      {`{"version":1,"vxlan":{"remoteChecksum":false}}`, control.Offers{}, ""},
		"an offer without features": {`{"version":1,"vxlan":{}}`, control.Offers{}, ""},
		"a later weft": {`{"version":1,"quic":{"publicKey":"7Zd9","port":51820},"direct":[],"vxlan":{"remoteChecksum":true,"gbp":1}}`,
			offers, ""},
		"everything":                   {wireGuardText, wireGuardOffers, ""},
		"a later WireGuard":            {`{"version":1,"wireguard":{"port":1,"psk":true,"Key":"x","key":"` + keyText + `"}}`, onlyPort(1, 0), ""},
		"WireGuard over IPv6":          {`{"version":1,"wireguard":{"key":"` + keyText + `","portV6":65535}}`, onlyPort(0, 65535), ""},
		"no VXLAN":                     {`{"version":1,"vxlan":{"off":true}}`, control.Offers{VXLAN: control.VXLANOffer{Off: true}}, ""},
		"an unclear off":               {`{"version":1,"vxlan":{"remoteChecksum":true,"off":"true"}}`, control.Offers{}, "vxlan: off:"},
		"WireGuard as a word":          {`{"version":1,"vxlan":{"remoteChecksum":true},"wireguard":true}`, control.Offers{}, `wireguard: "true": want a JSON object`},
		"WireGuard that is null":       {`{"version":1,"wireguard":null}`, control.Offers{}, `wireguard: "null"`},
		"WireGuard without a key":      {`{"version":1,"wireguard":{}}`, control.Offers{}, "wireguard: key is missing"},
		"other without a key":          {`{"version":1,"vxlan":{"remoteChecksum":true},"wireguard":{"other":"` + keyText + `","port":1}}`, control.Offers{}, "wireguard: key is missing"},
		"other equal to key":           {`{"version":1,"wireguard":{"key":"` + keyText + `","other":"` + keyText + `","port":1}}`, control.Offers{}, "wireguard: other is the same as key"},
		"an empty key":                 {`{"version":1,"wireguard":{"key":"","port":1}}`, control.Offers{}, `wireguard: key "": parse public key`},
		"a short key":                  {`{"version":1,"wireguard":{"key":"` + keyText[4:] + `","port":1}}`, control.Offers{}, "wireguard: key"},
		"a key of another form":        {`{"version":1,"wireguard":{"key":"` + keyText[:43] + `","port":1}}`, control.Offers{}, "wireguard: key"},
		"a zero key":                   {`{"version":1,"wireguard":{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","port":1}}`, control.Offers{}, "all 32 bytes are zero"},
		"a zero other":                 {`{"version":1,"wireguard":{"key":"` + keyText + `","other":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","port":1}}`, control.Offers{}, "all 32 bytes are zero"},
		"a null other":                 {`{"version":1,"wireguard":{"key":"` + keyText + `","other":null,"port":1}}`, control.Offers{}, `wireguard: other: "null"`},
		"a number for a key":           {`{"version":1,"wireguard":{"key":7,"port":1}}`, control.Offers{}, `wireguard: key: "7": want a public key`},
		"a very long key":              {`{"version":1,"wireguard":{"key":"` + strings.Repeat("A", 3000) + `","port":1}}`, control.Offers{}, "wireguard: key"},
		"no port":                      {`{"version":1,"wireguard":{"key":"` + keyText + `"}}`, control.Offers{}, "port and portV6 are both missing"},
		"port 0":                       {`{"version":1,"wireguard":{"key":"` + keyText + `","port":0,"portV6":1}}`, control.Offers{}, "port: 0: want a port"},
		"port beyond":                  {`{"version":1,"wireguard":{"key":"` + keyText + `","port":65536}}`, control.Offers{}, `port: "65536": want a port`},
		"a negative port":              {`{"version":1,"wireguard":{"key":"` + keyText + `","portV6":-1}}`, control.Offers{}, `portV6: "-1": want a port`},
		"a port as text":               {`{"version":1,"wireguard":{"key":"` + keyText + `","port":"51820"}}`, control.Offers{}, "want a port"},
		"half a port":                  {`{"version":1,"wireguard":{"key":"` + keyText + `","port":1.5}}`, control.Offers{}, "want a port"},
		"names in other case":          {`{"version":1,"Version":2,"VXLAN":{"remoteChecksum":true},"vxlan":{"RemoteChecksum":true}}`, control.Offers{}, ""},
		"as long as may be":            {offersText + strings.Repeat(" ", maxOffers-len(offersText)), offers, ""},
		"too long":                     {offersText + strings.Repeat(" ", maxOffers-len(offersText)+1), control.Offers{}, "have 4097 bytes, at most 4096"},
		"unknown version":              {`{"version":2,"vxlan":{"remoteChecksum":true}}`, control.Offers{}, "version is 2 and only 1 is known here"},
		"negative version":             {`{"version":-1}`, control.Offers{}, "version is -1"},
		"no direct way":                {`{"version":1,"vxlan":{"remoteChecksum":true},"routed":false}`, control.Offers{VXLAN: control.VXLANOffer{RemoteChecksum: true}, NoDirect: true}, ""},
		"a direct way":                 {`{"version":1,"routed":true}`, control.Offers{}, ""},
		"an unclear direct way":        {`{"version":1,"routed":1}`, control.Offers{}, `routed: "1": want true or false`},
		"no version":                   {`{"vxlan":{"remoteChecksum":true}}`, control.Offers{}, "version is missing"},
		"null version":                 {`{"version":null}`, control.Offers{}, `version: "null": want a number`},
		"version as text":              {`{"version":"1"}`, control.Offers{}, `version: "\"1\"": want a number`},
		"half a version":               {`{"version":1.5}`, control.Offers{}, "want a number"},
		"version beyond":               {`{"version":99999999999999999999}`, control.Offers{}, "want a number"},
		"no JSON":                      {`{"version":1`, control.Offers{}, "want a JSON object"},
		"more than JSON":               {offersText + "x", control.Offers{}, "want a JSON object"},
		"null":                         {"null", control.Offers{}, `offers: "null": want a JSON object`},
		"array":                        {`[{"version":1}]`, control.Offers{}, "want a JSON object"},
		"an offer of another type":     {`{"version":1,"vxlan":true}`, control.Offers{}, `vxlan: "true": want a JSON object`},
		"an offer that is null":        {`{"version":1,"vxlan":null}`, control.Offers{}, `vxlan: "null"`},
		"a feature of another type":    {`{"version":1,"vxlan":{"remoteChecksum":"true"}}`, control.Offers{}, "vxlan: remoteChecksum:"},
		"a feature that is null":       {`{"version":1,"vxlan":{"remoteChecksum":null}}`, control.Offers{}, "want true or false"},
		"terminal tricks":              {"\x1b[2J", control.Offers{}, `offers: "\x1b[2J"`},
		"deeper than a decoder can go": {strings.Repeat("[", maxOffers), control.Offers{}, "want a JSON object"},
	} {
		have, err := parseOffers([]byte(test.text))
		if have != test.want {
			t.Errorf("%s: have %+v, want %+v", name, have, test.want)
		}
		if test.problem == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem) || len(err.Error()) > 200) {
			t.Errorf("%s: have %v, want %q", name, err, test.problem)
		}
	}
}

// onlyPort are offers of WireGuard and nothing else.
func onlyPort(port, portV6 uint16) control.Offers {
	return control.Offers{WireGuard: control.WireGuardOffer{Keys: tunnel.WireGuardKeys{key(keyText)}, Ports: [2]uint16{port, portV6}}}
}

// Bad offers are named, and take nothing else away from the lease.
func TestBadOffersHarmNothingElse(t *testing.T) {
	check := func(source, bad string, lease control.Lease) {
		t.Helper()
		if !reflect.DeepEqual(lease.Legs, []control.Leg{vxlan4, vxlan6}) || lease.Offers != (control.Offers{}) {
			t.Errorf("%s, %.20s: have %+v", source, bad, lease)
		}
		if len(lease.Problems) != 1 || !strings.HasPrefix(lease.Problems[0], "offers") {
			t.Errorf("%s, %.20s: have problems %q", source, bad, lease.Problems)
		}
	}
	both := []netip.Prefix{vxlan4.Subnet, vxlan6.Subnet}
	for _, bad := range []string{`{"version":7}`, `"text"`, "null", strings.Repeat("9", maxOffers+1)} {
		annotations := annotate(BackendType, VXLAN, BackendData, data4, PublicIP, "192.168.64.3", BackendV6Data, data6, PublicIPv6, "fd77::1", WeftOffers, bad)
		lease, _ := FromNode(NodeData{"a", []string{both[0].String(), both[1].String()}, annotations, false}, DefaultPrefix)
		check("Node", bad, lease)
		value, err := ParseValue([]byte(`{"PublicIP":"192.168.64.3","PublicIPv6":"fd77::1","BackendType":"vxlan",` +
			`"BackendData":` + data4 + `,"BackendV6Data":` + data6 + `,"WeftOffers":` + bad + `}`))
		if err != nil {
			t.Errorf("%.20s: %v", bad, err)
			continue
		}
		check("etcd", bad, value.Lease("a", both))
	}
}

// An offer that a host does not make any more must go: peers would put off
// checksums that nobody finishes.
func TestStaleOffersGo(t *testing.T) {
	name := DefaultPrefix.Name(WeftOffers)
	claim := control.Claim{Backend: VXLAN, Legs: []control.Leg{vxlan4}}
	for have, want := range map[string]struct {
		offers control.Offers
		value  string
	}{
		offersText:      {control.Offers{}, ""},
		"":              {control.Offers{}, ""},
		`{"version":2}`: {offers, offersText},
	} {
		claim.Offers = want.offers
		set, err := Annotations(claim, DefaultPrefix, map[string]string{name: have})
		if value, named := set[name]; err != nil || !named || value != want.value {
			t.Errorf("%q: have %v, %v, want %q", have, set, err, want.value)
		}
	}
}

func FuzzParseOffers(f *testing.F) {
	f.Add([]byte(offersText))
	f.Add([]byte(`{"version":1,"vxlan":{"remoteChecksum":null},"wireguard":{"port":51820}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte("null"))
	f.Add([]byte(wireGuardText))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		parsed, err := parseOffers(data)
		if !bytes.Equal(data, before) {
			t.Fatal("the data were changed")
		}
		if err != nil {
			checkLease(t, control.Lease{Problems: []string{err.Error()}})
			if parsed != (control.Offers{}) {
				t.Fatalf("have %+v with %v", parsed, err)
			}
			return
		}
		if len(data) > maxOffers {
			t.Fatalf("%d bytes were read", len(data))
		}
		// What was believed can be published, in one form, and says the same again.
		text, err := formatOffers(parsed)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseOffers(text); err != nil || again != parsed {
			t.Fatalf("%s: have %+v, %v, want %+v", text, again, err, parsed)
		}
		again, err := formatOffers(parsed)
		if err != nil || !bytes.Equal(text, again) || len(text) > maxOffers {
			t.Fatalf("have %s, then %s, %v", text, again, err)
		}
	})
}
