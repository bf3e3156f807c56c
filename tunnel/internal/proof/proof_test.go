package proof

import (
	"net/netip"
	"testing"
)

func TestOf(t *testing.T) {
	p, a, b := New(), netip.MustParseAddr("10.244.1.0"), netip.MustParseAddr("10.244.2.0")
	proof := p.Of(1, a)
	if p.Of(1, a) != proof {
		t.Error("not the same for the same")
	}
	for what, other := range map[string]uint32{"token": p.Of(2, a), "address": p.Of(1, b), "secret": New().Of(1, a)} {
		if proof == other { // once in four billion runs
			t.Errorf("the same for another %s", what)
		}
	}
	if n := testing.AllocsPerRun(100, func() { p.Of(1, a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
