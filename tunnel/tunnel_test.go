package tunnel

import (
	"net/netip"
	"slices"
	"testing"
)

func TestParseMAC(t *testing.T) {
	for text, ok := range map[string]bool{
		"c6:d2:32:6f:8f:44": true, "02:00:5E:00:53:01": true, "02-00-5e-00-53-01": true,
		"": false, "junk": false, "00:00:00:00:00:00": false, "01:00:5e:00:00:01": false, "ff:ff:ff:ff:ff:ff": false,
		"02:00:5e:00:53": false, "02:00:5e:10:00:00:00:01": false,
	} {
		mac, err := ParseMAC(text)
		if (err == nil) != ok {
			t.Errorf("ParseMAC(%q) = %v, %v", text, mac, err)
		}
	}
	var mac MAC
	if err := mac.UnmarshalText([]byte("C6:d2:32:6f:8f:44")); err != nil || mac.String() != "c6:d2:32:6f:8f:44" {
		t.Errorf("%v, %v", mac, err)
	}
}

func FuzzParseMAC(f *testing.F) {
	f.Add("c6:d2:32:6f:8f:44")
	f.Fuzz(func(t *testing.T, text string) {
		mac, err := ParseMAC(text)
		if err != nil {
			return
		}
		if again, err := ParseMAC(mac.String()); err != nil || again != mac {
			t.Errorf("%q: %v, then %v, %v", text, mac, again, err)
		}
	})
}

// TestOrderOfObjects: what others stand on is made before them.
func TestOrderOfObjects(t *testing.T) {
	prefix, addr := netip.MustParsePrefix("10.244.2.0/24"), netip.MustParseAddr("10.244.2.0")
	want := []Object{
		Link{Name: "flannel.1"},
		Address{Link: "flannel.1", Prefix: prefix},
		Neighbor{Link: "flannel.1", IP: addr},
		FDBEntry{Link: "flannel.1", MAC: MAC{2}},
		Firewall{Network: prefix},
		Firewall{Network: netip.MustParsePrefix("fd00::/64")},
		Route{Prefix: prefix},
		Route{Prefix: netip.MustParsePrefix("10.244.3.0/24")},
		Route{Prefix: prefix, Blackhole: true},
	}
	have := slices.Clone(want)
	slices.Reverse(have)
	slices.SortFunc(have, func(a, b Object) int { return a.Key().Compare(b.Key()) })
	if !slices.Equal(have, want) {
		t.Errorf("order %v", have)
	}
	seen := map[string]bool{}
	for _, object := range want {
		if text := object.Key().String(); seen[text] {
			t.Errorf("two objects are %q", text)
		} else {
			seen[text] = true
		}
	}
}
