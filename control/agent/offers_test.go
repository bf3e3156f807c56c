package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// TestOffersAreTheEngines: the kernel's device is flannel's, and so is the
// lease; the userspace engine can do more, wherever it carries anything.
func TestOffersAreTheEngines(t *testing.T) {
	checksums := control.Offers{VXLAN: control.VXLANOffer{RemoteChecksum: true}}
	for name, test := range map[string]struct {
		backend string
		engine  tunnel.Engine
		keep    bool
		device  string
		want    control.Offers
	}{
		"kernel":             {"vxlan", tunnel.EngineKernel, false, "weft0", control.Offers{}},
		"userspace":          {"vxlan", tunnel.EngineUserspace, false, "weft0", checksums},
		"switched off":       {"vxlan", tunnel.EngineUserspace, true, "weft0", control.Offers{}},
		"userspace, host-gw": {"host-gw", tunnel.EngineUserspace, false, "weft0", control.Offers{}},
		"no device":          {"vxlan", tunnel.EngineUserspace, false, "", control.Offers{VXLAN: checksums.VXLAN, NoDirect: true}},
	} {
		a := quietAgent()
		a.Device = test.device
		a.Host, a.policy = newFakeHost(), control.Policy{Networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Backend: test.backend, VNI: 1, KeepChecksums: test.keep}
		outer, err := a.Host.Underlay(t.Context(), control.Recall{}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		claim, err := a.claim(control.Self{Host: "a", Engine: test.engine, Underlay: outer.Underlay}, outer)
		if err != nil || claim.Offers != test.want {
			t.Errorf("%s: offers %+v, %v, want %+v", name, claim.Offers, err, test.want)
		}
	}
}

// TestNobodyReachesThisHost: a host that is told to terminate no VXLAN, where
// net-conf has nobody use WireGuard, says so instead of calling itself up.
func TestNobodyReachesThisHost(t *testing.T) {
	for name, test := range map[string]struct {
		policy control.Policy
		want   string
	}{
		"vxlan alone":       {control.Policy{Backend: "vxlan", Prefer: []tunnel.Encap{tunnel.EncapVXLAN}}, "nobody could reach this host: --vxlan=false, and no WireGuard: net-conf has nobody use it"},
		"routed where near": {control.Policy{Backend: "vxlan", Prefer: []tunnel.Encap{tunnel.EncapDirect, tunnel.EncapVXLAN}}, ""},
		"host-gw":           {control.Policy{Backend: "host-gw", Encrypt: control.EncryptNever}, ""},
	} {
		a := quietAgent()
		a.Engine, a.Device, a.Host, a.NoVXLAN, a.policy = "auto", "weft0", newFakeHost(), true, test.policy
		a.WireGuard = &WireGuard{Engine: "auto", KeyFile: filepath.Join(t.TempDir(), "key")}
		_, err := a.equip(t.Context(), &control.Self{})
		if got := fmt.Sprint(err); (err != nil || test.want != "") && got != test.want {
			t.Errorf("%s: %s, want %q", name, got, test.want)
		}
	}
}

// TestChecksumOffloadInStatus: status tells what is used of a peer's offers
// and why, and a change of that is one.
func TestChecksumOffloadInStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(r *rig, _ *Config) { r.host.vxlan = errors.New("operation not supported") })
		offering := peerLease("b", 2)
		offering.Offers.VXLAN.RemoteChecksum = true
		bad := peerLease("d", 4)
		bad.Problems = []string{"offers: version is missing"}
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{offering, peerLease("c", 3), bad}}
		status := r.settle()
		for i, want := range []struct {
			features []string
			reason   string
		}{
			{[]string{"checksum offload"}, "the network uses vxlan; checksum offload: the peer offers it"},
			{[]string{}, "the network uses vxlan; no checksum offload: the peer does not offer it"},
			{[]string{}, "the network uses vxlan; no checksum offload: the peer does not offer it; offers: version is missing"},
		} {
			peer := status.Peers[i]
			if peer.State != StateUp || !slices.Equal(peer.Features, want.features) || peer.Reason != want.reason {
				t.Errorf("have %+v, want %+v", peer, want)
			}
		}
		text, err := json.Marshal(status.Peers)
		if err != nil || !strings.Contains(string(text), `"features":["checksum offload"]`) || !strings.Contains(string(text), `"features":[]`) {
			t.Errorf("%s, %v", text, err)
		}
		since := status.Peers[0].LastChange
		offering.Offers = control.Offers{}
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{offering}}
		if peer := r.settle().Peers[0]; len(peer.Features) != 0 || !peer.LastChange.After(since) {
			t.Errorf("have %+v after the offer is gone", peer)
		}
		r.end(t)
	})
}

// TestDualStackFeature: a feature and its reason are named once per host, and
// neither where nothing can be chosen.
func TestDualStackFeature(t *testing.T) {
	way := control.Way{Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineUserspace, RemoteChecksum: true, Reason: "the network uses vxlan"}
	peer := peerStatus(control.HostPlan{Host: "b", Ways: []control.Way{way, way}}, nil)
	if !slices.Equal(peer.Features, []string{"checksum offload"}) || strings.Count(peer.Reason, "checksum") != 1 {
		t.Errorf("have %+v", peer)
	}
	way.RemoteChecksum, way.KeepChecksums = false, true
	peer = peerStatus(control.HostPlan{Host: "b", Ways: []control.Way{way}}, nil)
	if len(peer.Features) != 0 || !strings.HasSuffix(peer.Reason, "no checksum offload: switched off") {
		t.Errorf("have %+v", peer)
	}
	for _, other := range []control.Way{
		{Encap: tunnel.EncapVXLAN, Engine: tunnel.EngineKernel, Reason: "the network uses vxlan"},
		{Encap: tunnel.EncapDirect, Engine: tunnel.EngineKernel, Reason: "on-link"},
	} {
		if peer := peerStatus(control.HostPlan{Host: "b", Ways: []control.Way{other}}, nil); len(peer.Features) != 0 || peer.Reason != other.Reason {
			t.Errorf("have %+v", peer)
		}
	}
}
