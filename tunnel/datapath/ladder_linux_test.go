package datapath_test

import (
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

// TestLadderOnKernel: whatever the kernel no longer does for the engine, on its
// TUN or on the way out, everything still gets through between engines, and to
// and from kernel VXLAN.
func TestLadderOnKernel(t *testing.T) {
	for _, test := range []struct {
		device   string
		features string
		supers   bool // the TUN still hands super-packets over
	}{
		{"weft0", "tx-tcp-segmentation off tx-tcp6-segmentation off tx-udp-segmentation off", false},
		{"weft0", "tx-checksum-ip-generic off", false},
		{"weft0", "sg off", true},
		{"eth0", "gro off", true},
		{"eth0", "tx-udp-segmentation off", true},
		{"eth0", "generic-segmentation-offload off", true},
		{"eth0", "tx-checksum-ip-generic off", true},
		{"eth0", "sg off", true},
	} {
		t.Run(strings.Fields(test.features)[0]+" of "+test.device, func(t *testing.T) {
			sites := makeSites(t, sitesConfig{outerFamily: 4, link: lab.OffloadFull, remote: true}, false, true, false)
			user, kernel, second := sites[0], sites[1], sites[2]
			for _, s := range sites {
				if s.kernel && test.device != "eth0" {
					continue
				}
				s.run("ethtool -K %s %s", test.device, test.features)
			}
			exchange(t, user, second)
			exchange(t, user, kernel)
			exchange(t, kernel, user)
			noDrops(t, sites)
			stats := user.engine.Stats()
			if (stats.Value(engine.TxSuperPackets) > 0) != test.supers {
				t.Errorf("%v is %d", engine.TxSuperPackets, stats.Value(engine.TxSuperPackets))
			}
			t.Logf("%q, %+v", user.engine.Fallbacks(), stats)
		})
	}
}

// TestLadderByHand: each switch leaves everything working, and what it switches
// off is not used.
func TestLadderByHand(t *testing.T) {
	off := tunnel.Off
	for name, test := range map[string]struct {
		offloads datapath.Offloads
		why      string
		used     func(engine.Stats) bool
	}{
		"TSO":  {datapath.Offloads{TSO: off}, "no TCP super-packets: switched off", func(s engine.Stats) bool { return s.Value(engine.TxSuperPackets) > 0 }},
		"USO":  {datapath.Offloads{USO: off}, "no UDP super-packets: switched off", func(engine.Stats) bool { return false }},
		"GSO":  {datapath.Offloads{GSO: off}, "single datagrams: switched off", func(s engine.Stats) bool { return s.Value(engine.TxRuns) < s.Value(engine.TxDatagrams) }},
		"ring": {datapath.Offloads{Ring: off}, "no io_uring: switched off", func(s engine.Stats) bool { return s.Value(engine.DeviceCalls) == 0 }},
		"GRO":  {datapath.Offloads{GRO: off}, "one by one: switched off", func(s engine.Stats) bool { return s.Value(engine.RxRuns) < s.Value(engine.RxDatagrams) }},
	} {
		t.Run(name, func(t *testing.T) {
			sites := makeSites(t, sitesConfig{outerFamily: 4, link: lab.OffloadNone, remote: true, offloads: test.offloads}, false, true, false)
			exchange(t, sites[0], sites[2])
			exchange(t, sites[0], sites[1])
			noDrops(t, sites)
			if why := strings.Join(sites[0].why, "; "); !strings.Contains(why, test.why) {
				t.Errorf("it is said to do without %q, want %q", why, test.why)
			}
			if stats := sites[0].engine.Stats(); test.used(stats) {
				t.Errorf("it is used: %+v", stats)
			}
		})
	}
}

// TestLadderRunsLost: where a part of every run is lost without a word, runs
// are given up for that peer, and single datagrams carry everything.
func TestLadderRunsLost(t *testing.T) {
	sites := makeSites(t, sitesConfig{outerFamily: 4, link: lab.OffloadNone, remote: true}, false, false)
	from, to := sites[0], sites[1]
	to.run("ethtool -K eth0 gro off") // what is joined is not looked at in parts
	to.run("nft add table netdev cut")
	to.run("nft add chain netdev cut in { type filter hook ingress device eth0 priority 0 ; }")
	// The last of the run that is the test: an echo request of that length.
	to.run("nft add rule netdev cut in udp dport %d udp length 330 @th,312,8 1 @th,400,8 8 drop", interopPort)
	a, b := from.ends(true)["host"], to.ends(true)["host"]
	for deadline := time.Now().Add(30 * time.Second); ; {
		transfer(t, a, b)
		if from.engine.Stats().Value(engine.RunTestsFailed) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("runs are still sent: %q", from.engine.Fallbacks())
		}
	}
	before := from.engine.Stats()
	exchange(t, from, to)
	after := from.engine.Stats()
	if runs, datagrams := after.Value(engine.TxRuns)-before.Value(engine.TxRuns), after.Value(engine.TxDatagrams)-before.Value(engine.TxDatagrams); runs < datagrams/2 {
		t.Errorf("%d datagrams in %d runs", datagrams, runs)
	}
	if notes := from.engine.Fallbacks(); len(notes) == 0 || !strings.Contains(notes[0], "never arrived") {
		t.Errorf("fallbacks %q", notes)
	}
}
