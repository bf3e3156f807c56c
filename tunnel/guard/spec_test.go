package guard

import (
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

func TestSpecFits(t *testing.T) {
	longest := tunnel.Firewall{
		Network:     netip.MustParsePrefix("fd00:1111:2222:3333:4444:5555:6666:7700/120"),
		Subnet:      netip.MustParsePrefix("fd00:1111:2222:3333:4444:5555:6666:7777/128"),
		Masquerade:  true,
		RandomFully: true,
		Forward:     true,
	}
	text := formatSpec(longest)
	if len(text) > 127 { // nft's bound, less the final zero
		t.Errorf("spec is %d bytes long", len(text))
	}
	if got, err := parseSpec(text); got != longest || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseSpecRefuses(t *testing.T) {
	for _, text := range []string{
		"", " ", "10.0.0.0/8", "10.0.0.0/8 x", "x 10.0.0.0/8", "10.0.0.0/8 10.0.0.0/9 nonsense",
		"10.0.0.0/8 10.0.0.0/9 forward masquerade", "10.0.0.0/8  10.0.0.0/9", "10.0.0.0/8 10.0.0.0/9 masquerade " + "masquerade",
	} {
		if fw, err := parseSpec(text); err == nil || fw != (tunnel.Firewall{}) {
			t.Errorf("parseSpec(%q) = %+v, %v, want an error", text, fw, err)
		}
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add("10.244.0.0/16 10.244.1.0/24 masquerade random-fully forward")
	f.Add("fd00::/48 fd00::/64")
	f.Add("nonsense")
	f.Fuzz(func(t *testing.T, text string) {
		fw, err := parseSpec(text)
		if err == nil && formatSpec(fw) != text {
			t.Errorf("%q is read as %+v, which is written %q", text, fw, formatSpec(fw))
		}
	})
}
