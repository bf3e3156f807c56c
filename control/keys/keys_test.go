package keys

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

var start = time.Date(2026, 11, 29, 1, 12, 31, 0, time.UTC)

// later is a moment after a number of steps.
func later(steps int) time.Time { return start.Add(time.Duration(steps) * time.Hour) }

func TestRotation(t *testing.T) {
	first := New(start)
	if first.Public() != (tunnel.WireGuardKeys{first.Current.Public()}) || first.Current == (tunnel.SecretKey{}) {
		t.Fatalf("have %v", first.Public())
	}
	announced, err := first.Announce(later(1))
	if err != nil || announced.Current != first.Current || announced.Other == first.Current || announced.Phase != Announced || announced.Since != later(1) {
		t.Fatalf("have %v, %v", announced.Public(), err)
	}
	switched, err := announced.Switch(later(2))
	if err != nil || switched.Current != announced.Other || switched.Other != first.Current || switched.Phase != Switched || switched.Since != later(2) {
		t.Fatalf("have %v, %v", switched.Public(), err)
	}
	// At every moment each end may use a key that the other knows.
	if a, s := announced.Public(), switched.Public(); a[0] != s[1] || a[1] != s[0] {
		t.Errorf("have %v, then %v", a, s)
	}
	dropped, err := switched.Drop(later(3))
	if err != nil || dropped != (Keys{Current: announced.Other, Since: later(3)}) {
		t.Fatalf("have %v, %v", dropped.Public(), err)
	}
	for name, step := range map[string]func() (Keys, error){
		"announce again": func() (Keys, error) { return announced.Announce(start) },
		"announce early": func() (Keys, error) { return switched.Announce(start) },
		"switch early":   func() (Keys, error) { return first.Switch(start) },
		"switch again":   func() (Keys, error) { return switched.Switch(start) },
		"drop early":     func() (Keys, error) { return announced.Drop(start) },
		"drop again":     func() (Keys, error) { return dropped.Drop(start) },
	} {
		if _, err := step(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	keys, _ := New(start).Announce(start)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		text := fmt.Sprintf(verb, keys)
		if strings.Contains(text, keys.Current.Text()) || strings.Contains(text, fmt.Sprintf("%x", keys.Current[:8])) {
			t.Errorf("%s tells the key", verb)
		}
	}
}
