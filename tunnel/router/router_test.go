package router

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

func routeTo(prefix string) tunnel.Route {
	return tunnel.Route{Prefix: netip.MustParsePrefix(prefix), Link: "weft0"}
}

func addressOf(prefix string) tunnel.Address {
	return tunnel.Address{Link: "weft0", Prefix: netip.MustParsePrefix(prefix)}
}

var link = tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1430}

// bare is the TUN as the engine opens it.
var bare = State{Exists: true, MTU: 1500}

func TestPlan(t *testing.T) {
	tests := []struct {
		name string
		want tunnel.Object
		have State
		done []Step
		err  string
	}{
		{"MTU", link, bare, []Step{{Action: SetMTU, MTU: 1430}}, ""},
		{"MTU in place", link, State{Exists: true, MTU: 1430}, nil, ""},
		{"no TUN", link, State{}, nil, "not open yet"},
		{"no TUN for an address", addressOf("10.244.3.0/32"), State{}, nil, "not open yet"},
		{"no TUN for a route", routeTo("10.244.4.0/24"), State{}, nil, "not open yet"},
		{"address", addressOf("10.244.3.0/32"), bare, []Step{{Action: AddAddress, Prefix: prefixes("10.244.3.0/32")[0]}}, ""},
		{"address in place", addressOf("fd00::/128"), State{Exists: true, Addresses: prefixes("fe80::1/64", "fd00::/128")}, nil, ""},
		{"address of another length", addressOf("10.244.3.0/32"), State{Exists: true, Addresses: prefixes("10.244.3.0/8")}, []Step{
			{Action: RemoveAddress, Prefix: prefixes("10.244.3.0/8")[0]}, {Action: AddAddress, Prefix: prefixes("10.244.3.0/32")[0]}}, ""},
		{"route", routeTo("fd00:1::/64"), bare, []Step{{Action: AddRoute, Prefix: prefixes("fd00:1::/64")[0]}}, ""},
		{"route in place", routeTo("10.244.4.0/24"), State{Exists: true, Routes: prefixes("10.244.4.0/24")}, nil, ""},
		{"kernel VXLAN", tunnel.Link{Name: "flannel.1", Type: tunnel.LinkVXLAN}, bare, nil, "unsupported"},
		{"other link's address", tunnel.Address{Link: "en0", Prefix: prefixes("10.0.0.1/32")[0]}, bare, nil, "unsupported"},
		{"direct route", tunnel.Route{Prefix: prefixes("10.244.4.0/24")[0], Link: "en0", Via: netip.MustParseAddr("192.0.2.1")}, bare, nil, "unsupported"},
		{"blackhole", tunnel.Route{Prefix: prefixes("10.244.4.0/24")[0], Blackhole: true}, bare, nil, "unsupported"},
		{"firewall", tunnel.Firewall{Network: prefixes("10.244.0.0/16")[0]}, bare, nil, "unsupported"},
	}
	for _, tt := range tests {
		got, err := Plan("weft0", tt.want, tt.have)
		if !slices.Equal(got, tt.done) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, %v, want %v, %q", tt.name, got, err, tt.done, tt.err)
		}
	}
}

func TestPlanRemoval(t *testing.T) {
	full := State{Exists: true, MTU: 1430, Addresses: prefixes("10.244.3.0/32"), Routes: prefixes("10.244.4.0/24")}
	tests := []struct {
		name string
		gone tunnel.Object
		have State
		done []Step
	}{
		{"TUN", link, full, nil},
		{"address", addressOf("10.244.3.0/32"), full, []Step{{Action: RemoveAddress, Prefix: prefixes("10.244.3.0/32")[0]}}},
		{"address that is gone", addressOf("10.244.9.0/32"), full, nil},
		{"route", routeTo("10.244.4.0/24"), full, []Step{{Action: RemoveRoute, Prefix: prefixes("10.244.4.0/24")[0]}}},
		{"route with the TUN", routeTo("10.244.4.0/24"), State{}, nil},
		{"other link's route", tunnel.Route{Prefix: prefixes("10.244.4.0/24")[0], Link: "en0"}, full, nil},
	}
	for _, tt := range tests {
		if got, err := PlanRemoval("weft0", tt.gone, tt.have); err != nil || !slices.Equal(got, tt.done) {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.done)
		}
	}
	if _, err := PlanRemoval("weft0", tunnel.Firewall{}, full); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("firewall: %v", err)
	}
}

// TestObjects: what the system makes by itself is not weft's to delete.
func TestObjects(t *testing.T) {
	got := Objects("weft0", State{
		Exists: true, MTU: 1430,
		Addresses: prefixes("10.244.3.0/32", "fd00:3::/128", "fe80::7/64"),
		Routes: prefixes("10.244.3.0/32", "fd00:3::/128", "fe80::/64", "fe80::7/128", "224.0.0.0/4", "ff00::/8", "255.255.255.255/32",
			"10.244.4.0/24", "fd00:4::/64", "10.244.5.0/32"),
	})
	want := []tunnel.Object{link, addressOf("10.244.3.0/32"), addressOf("fd00:3::/128"), routeTo("10.244.4.0/24"), routeTo("fd00:4::/64"), routeTo("10.244.5.0/32")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := Objects("weft0", State{}); got != nil {
		t.Errorf("without the TUN: %v", got)
	}
}

// fake is a system with one link.
type fake struct {
	state State
	steps []Step
	fail  error
}

func (f *fake) Look(context.Context, string) (State, error) {
	s := f.state
	s.Addresses, s.Routes = slices.Clone(s.Addresses), slices.Clone(s.Routes)
	return s, nil
}

func (f *fake) Do(_ context.Context, _ string, step Step) error {
	if f.fail != nil {
		return f.fail
	}
	f.steps = append(f.steps, step)
	is := func(p netip.Prefix) bool { return p == step.Prefix }
	switch step.Action {
	case SetMTU:
		f.state.MTU = step.MTU
	case AddAddress:
		f.state.Addresses = append(f.state.Addresses, step.Prefix)
	case RemoveAddress:
		f.state.Addresses = slices.DeleteFunc(f.state.Addresses, is)
	case AddRoute:
		f.state.Routes = append(f.state.Routes, step.Prefix)
	case RemoveRoute:
		f.state.Routes = slices.DeleteFunc(f.state.Routes, is)
	}
	return nil
}

// TestDriver: what was applied is observed, applying it again takes no step,
// and deleting all leaves the link as it was.
func TestDriver(t *testing.T) {
	system := &fake{state: bare}
	d, err := Open(Config{Device: "weft0", System: system})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := map[tunnel.Key]tunnel.Object{}
	for _, object := range []tunnel.Object{link, addressOf("10.244.3.0/32"), addressOf("fd00:3::/128"), routeTo("10.244.4.0/24"), routeTo("fd00:4::/64")} {
		want[object.Key()] = object
	}
	for range 2 {
		for _, object := range want {
			if err := d.Apply(t.Context(), object); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(system.steps) != len(want) {
		t.Errorf("%d steps for %d objects: %v", len(system.steps), len(want), system.steps)
	}
	if have, err := d.Observe(t.Context()); err != nil || !reflect.DeepEqual(have, want) {
		t.Errorf("Observe = %v, %v, want %v", have, err, want)
	}
	system.fail = errors.New("denied")
	if err := d.Delete(t.Context(), routeTo("10.244.4.0/24")); err == nil || err.Error() != "delete route 10.244.4.0/24: remove route: denied" {
		t.Errorf("Delete refused by the system: %v", err)
	}
	system.fail = nil
	for _, object := range want {
		if err := d.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	if left := system.state; len(left.Addresses)+len(left.Routes) != 0 {
		t.Errorf("left behind: %+v", left)
	}
	if _, err := Open(Config{System: system}); err == nil {
		t.Error("opened without a device")
	}
}

func TestCommand(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.244.3.0/32"), netip.MustParsePrefix("fd00:3::/64")
	for _, tt := range []struct {
		step Step
		want string
	}{
		{Step{Action: SetMTU, MTU: 1430}, "ifconfig utun7 mtu 1430"},
		{Step{Action: AddAddress, Prefix: v4}, "ifconfig utun7 inet 10.244.3.0/32 10.244.3.0 alias"},
		{Step{Action: AddAddress, Prefix: v6}, "ifconfig utun7 inet6 fd00:3::/64 alias"},
		{Step{Action: RemoveAddress, Prefix: v4}, "ifconfig utun7 inet 10.244.3.0 -alias"},
		{Step{Action: RemoveAddress, Prefix: v6}, "ifconfig utun7 inet6 fd00:3:: -alias"},
		{Step{Action: AddRoute, Prefix: v4}, "route -q -n add -inet 10.244.3.0/32 -interface utun7"},
		{Step{Action: RemoveRoute, Prefix: v6}, "route -q -n delete -inet6 fd00:3::/64 -interface utun7"},
		{Step{}, ""},
	} {
		if got := strings.Join(Command("utun7", tt.step), " "); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.step, got, tt.want)
		}
	}
}
