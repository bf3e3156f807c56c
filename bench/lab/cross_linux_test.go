package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestCross(t *testing.T) {
	world := newLab(t)
	for i, offload := range []Offload{"", OffloadFull, OffloadChecksum, OffloadNone} {
		a := newHost(t, world, HostConfig{Name: fmt.Sprintf("a%d", i)})
		b := newHost(t, world, HostConfig{Name: fmt.Sprintf("b%d", i)})
		addresses := [2]netip.Prefix{netip.MustParsePrefix("172.31.0.1/24"), netip.MustParsePrefix("172.31.0.2/24")}
		if err := a.Cross(b, CrossConfig{Device: "cross0", Addresses: addresses, Offload: offload}); err != nil {
			t.Fatal(err)
		}
		for from, to := range map[*Host]netip.Addr{a: addresses[1].Addr(), b: addresses[0].Addr()} {
			if _, err := from.Ping(t.Context(), Probe{To: to, PayloadBytes: 1472, DontFragment: true}); err != nil {
				t.Errorf("offload %q: %v", offload, err)
			}
			if _, err := from.Ping(t.Context(), Probe{To: to, PayloadBytes: 1473, DontFragment: true}); err == nil {
				t.Errorf("offload %q: a packet of 1501 bytes passed", offload)
			}
		}
		gbps, err := Throughput(t.Context(), a.Namespace, b.Namespace, addresses[1].Addr(), 300*time.Millisecond)
		if err != nil || gbps <= 0 {
			t.Errorf("offload %q: %.4f Gbit/s: %v", offload, gbps, err)
		}
	}
	a, b := world.Hosts()[0], world.Hosts()[1]
	for want, config := range map[string]CrossConfig{
		`Offload "half"`: {Device: "cross1", Offload: "half"},
		"MTU 67":         {Device: "cross1", MTU: 67},
		"add veth pair":  {Device: "cross0"},
	} {
		if err := a.Cross(b, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error with %q", config, err, want)
		}
	}
}
