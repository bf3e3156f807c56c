package router

import (
	"net"
	"net/netip"
	"testing"
)

// TestLookHere: the loopback has its address, and what is not there is no error.
func TestLookHere(t *testing.T) {
	system, err := newSystem()
	if err != nil {
		t.Fatal(err)
	}
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, i := range all {
		state, err := system.Look(t.Context(), i.Name)
		if err != nil || !state.Exists || state.MTU != i.MTU {
			t.Errorf("Look(%s) = %+v, %v", i.Name, state, err)
		}
		for _, a := range state.Addresses {
			found = found || a.Addr() == netip.MustParseAddr("127.0.0.1")
		}
	}
	if !found {
		t.Error("no link has 127.0.0.1")
	}
	if state, err := system.Look(t.Context(), "weft-none"); err != nil || state.Exists {
		t.Errorf("Look at nothing = %+v, %v", state, err)
	}
}

func TestAddresses(t *testing.T) {
	for _, text := range []string{"10.244.3.0", "fd00:3::"} {
		var raw [28]byte
		writeAddr(&raw, netip.MustParseAddr(text))
		if got := readAddr(&raw); got.String() != text {
			t.Errorf("%s is read as %v", text, got)
		}
	}
	if got := readAddr(&[28]byte{}); got.IsValid() {
		t.Errorf("nothing is read as %v", got)
	}
}
