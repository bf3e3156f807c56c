package plan

import (
	"slices"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// TestConfine holds where nothing for a pod may take the host's default route,
// whether or not there is a peer.
func TestConfine(t *testing.T) {
	route4 := tunnel.Route{Prefix: prefix("10.244.0.0/16"), Blackhole: true}
	route6 := tunnel.Route{Prefix: prefix("fd00:10:244::/48"), Blackhole: true}
	always := encrypt(control.EncryptAlways)
	tests := []struct {
		name  string
		world world
		want  []tunnel.Route
	}{
		{name: "guests", world: golden().with(secret("a", "b")).with(encrypt(control.EncryptGuests))},
		{name: "always", world: golden().with(secret("a", "b")).with(always), want: []tunnel.Route{route4, route6}},
		{name: "backend wireguard", world: golden().with(backendOf("wireguard")).with(flannelKeys), want: []tunnel.Route{route4, route6}},
		{name: "nobody there", world: golden().with(always).with(func(w *world) { w.snapshot.Leases = nil }), want: []tunnel.Route{route4, route6}},
		{
			name:  "a family that does not work",
			world: golden().with(always).with(func(w *world) { w.self.Underlay.Addrs = w.self.Underlay.Addrs[:1] }),
			want:  []tunnel.Route{route4, route6},
		},
		{
			name: "the hosts are in the network themselves",
			world: golden().with(always).with(func(w *world) {
				w.self.Underlay.Addrs = slices.Clone(w.self.Underlay.Addrs)
				w.self.Underlay.Addrs[0] = addr("10.244.0.9")
			}),
			want: []tunnel.Route{route6},
		},
		{name: "no device", world: golden().with(always).with(func(w *world) { w.self.Engine, w.self.Device = tunnel.EngineUserspace, "" })},
		{name: "another system", world: golden().with(always)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.world.policy.Confine = tt.name != "another system"
			var got []tunnel.Route
			for _, o := range Plan(tt.world.snapshot, tt.world.self, tt.world.policy).Objects {
				if r, ok := o.(tunnel.Route); ok && r.Blackhole {
					got = append(got, r)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("blackholes %v, want %v", got, tt.want)
			}
		})
	}
}
