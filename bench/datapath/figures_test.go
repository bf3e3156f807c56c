package datapath

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{100, 1, 2, 3, 4}, 3}, // what stands out does not count
	} {
		if got := median(test.values); got == nil || *got != test.want {
			t.Errorf("%v: %v, want %v", test.values, got, test.want)
		}
	}
	if got := median(nil); got != nil {
		t.Errorf("of nothing: %v", *got)
	}
}

func TestRatio(t *testing.T) {
	row := func(median float64) *Row { return &Row{Median: &median} }
	if got := ratio(row(1), row(4)); got == nil || *got != 0.25 {
		t.Errorf("1 to 4: %v", got)
	}
	for name, pair := range map[string][2]*Row{
		"no row": {nil, row(1)}, "no base": {row(1), nil}, "base failed": {row(1), {}}, "failed": {{}, row(1)}, "base is 0": {row(1), row(0)},
	} {
		if got := ratio(pair[0], pair[1]); got != nil {
			t.Errorf("%s: %v", name, *got)
		}
	}
}

func TestVerdict(t *testing.T) {
	higher := target{floor: 0.5, goal: 1}
	lower := target{floor: 2, goal: 1, lower: true}
	for _, test := range []struct {
		target   target
		measured float64
		want     string
	}{
		{higher, 1.2, "met goal"}, {higher, 1, "met goal"}, {higher, 0.7, "met floor"}, {higher, 0.5, "met floor"}, {higher, 0.49, "below"},
		{lower, 0.9, "met goal"}, {lower, 1, "met goal"}, {lower, 1.5, "met floor"}, {lower, 2, "met floor"}, {lower, 2.01, "below"},
	} {
		if got := test.target.verdict(&test.measured); got != test.want {
			t.Errorf("%v of floor %v and goal %v: %s, want %s", test.measured, test.target.floor, test.target.goal, got, test.want)
		}
	}
	if got := (target{floor: noFloor, goal: 1}).verdict(number(0.9)); got != "below goal" {
		t.Errorf("below a goal that has no floor: %s", got)
	}
	if got := higher.verdict(nil); got != "not measured" {
		t.Errorf("nothing: %s", got)
	}
}

// TestCheck breaks one limit after the other.
func TestCheck(t *testing.T) {
	good := func() Report {
		r := sampleReport()
		r.Problems = nil
		return r
	}
	if err := good().Check(); err != nil {
		t.Errorf("all is well: %v", err)
	}
	set := func(underlay string, change func(*Row)) func(*Report) {
		return func(r *Report) { change(r.row(underlay, pathWeft, bulkTCP)) }
	}
	for name, test := range map[string]struct {
		change func(*Report)
		want   string
	}{
		"slow":                   {set("A", func(r *Row) { r.Median = number(3) }), "underlay A: weft-vxlan is 0.27 of kernel-vxlan"},
		"slow where it is cut":   {set("B", func(r *Row) { r.Median = number(2) }), "underlay B"},
		"failed":                 {set("A", func(r *Row) { r.Median = nil }), "is . of"},
		"many calls":             {set("A", func(r *Row) { r.SyscallsPerKseg = number(101) }), "101 system calls"},
		"calls not known":        {set("A", func(r *Row) { r.SyscallsPerKseg = nil }), ". system calls"},
		"allocations":            {set("B", func(r *Row) { r.AllocsPerPacket = number(0.01) }), "0.010 allocations"},
		"problem":                {func(r *Report) { r.Problems = []string{"it was killed"} }, "it was killed"},
		"nothing":                {func(r *Report) { r.Rows = nil }, "nothing to check"},
		"slow without a device":  {set("A", func(r *Row) { r.Median = number(30) }), "netstack to weft-vxlan in TCP, 1 stream is 0.09"},
		"slow with many streams": {func(r *Report) { r.row("A", pathNetstack, manyTCP).Median = number(0.5) }, "128 TCP streams to 1 is 0.19"},
		"failed without a device": {func(r *Report) {
			*r.row("A", pathNetstack, bulkTCP) = Row{Underlay: "A", Path: pathNetstack, Test: bulkTCP, Errors: []string{"it broke"}}
		}, "netstack tcp-1 was not measured: it broke"},
		"slow without rights":      {func(r *Report) { r.row("A", pathRootless, bulkTCP).Median = number(2.6) }, "rootless to weft-vxlan in TCP, 1 stream is 0.50"},
		"hardly better than slirp": {func(r *Report) { r.row("A", pathSlirp, bulkTCP).Median = number(2) }, "rootless to slirp4netns in TCP, 1 stream is 2.62"},
		"slow WireGuard":           {func(r *Report) { r.row("A", pathWeftWireGuard, bulkTCP).Median = number(2.2) }, "weft-wireguard to wireguard-go in TCP, 1 stream is 1.1"},
		"failed WireGuard": {func(r *Report) {
			*r.row("A", pathWeftWireGuard, bulkTCP) = Row{Underlay: "A", Path: pathWeftWireGuard, Test: bulkTCP, Errors: []string{"no keys"}}
		}, "weft-wireguard tcp-1 was not measured: no keys"},
		"nothing to compare with": {func(r *Report) {
			r.row("A", pathKernel, bulkTCP).Path = "other"
		}, "is . of kernel-vxlan"},
	} {
		r := good()
		test.change(&r)
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

func TestParseClock(t *testing.T) {
	c, err := parseClock([]byte("cpu  10 20 30 400 50 6 7 8 9 0\ncpu0 1 2 3 4\n"))
	want := clock{busy: 730 * time.Millisecond, idle: 4500 * time.Millisecond, steal: 80 * time.Millisecond}
	if err != nil || c != want {
		t.Errorf("%+v, %v, want %+v", c, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e f g h", "cpu 1 2 3 -4 5 6 7 8"} {
		if c, err := parseClock([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
	later := clock{busy: want.busy + 5*time.Second, idle: want.idle + 95*time.Second, steal: want.steal}
	if share := later.since(want).idleShare(); math.Abs(share-0.95) > 1e-9 {
		t.Errorf("idle share is %v, want 0.95", share)
	}
	if share := (clock{}).idleShare(); share != 0 {
		t.Errorf("idle share of no time is %v", share)
	}
}

func TestParseUsage(t *testing.T) {
	// Each field has its number in the manual page for a value.
	const stat = "7 (weft) lab) 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25\n"
	u, err := parseUsage(stat)
	want := usage{cpu: (14 + 15) * tick, memory: 24 * os.Getpagesize()}
	if err != nil || u != want {
		t.Errorf("%+v, %v, want %+v", u, err, want)
	}
	for _, bad := range []string{"", "7 (x) S 1 2 3", strings.Replace(stat, "14", "x", 1)} {
		if u, err := parseUsage(bad); err == nil {
			t.Errorf("%q: %+v", bad, u)
		}
	}
}

// TestSegments holds that a datagram which is a whole super-packet counts as
// what it would be cut into.
func TestSegments(t *testing.T) {
	for _, test := range []struct {
		counters map[string]uint64
		want     float64
	}{
		{map[string]uint64{"tx_datagrams": 40, "tx_bytes": 40 * 1398, "rx_datagrams": 2, "rx_bytes": 104}, 42},
		{map[string]uint64{"rx_datagrams": 1, "rx_bytes": 58_000}, 40},
		{nil, 0},
	} {
		if got := (endSample{counters: test.counters}).segments(); got != test.want {
			t.Errorf("%v: %v, want %v", test.counters, got, test.want)
		}
	}
	if _, ok := (endSample{counters: map[string]uint64{"tx_bytes": 1}}).calls(); ok {
		t.Error("an end without counters of calls has calls")
	}
}

func TestParseMetrics(t *testing.T) {
	got := parseMetrics("# HELP x y\nweft_ready 1\nweft_peers{state=\"up\"} 5000\nprocess_resident_memory_bytes 3.01e+07\nbroken\nx NaNny\n")
	if len(got) != 3 || got[metricReady] != 1 || got[metricPeersUp] != 5000 || got[metricMemory] != 30_100_000 {
		t.Errorf("%v", got)
	}
}

func TestProcessorName(t *testing.T) {
	if got := processorName([]byte("processor\t: 0\nmodel name\t: Example 9000 @ 2 GHz\n")); got != "Example 9000 @ 2 GHz" {
		t.Errorf("%q", got)
	}
	if got := processorName([]byte("processor\t: 0\n")); got == "" {
		t.Error("a processor without a name has none")
	}
}

// TestQuickTests holds that bulk TCP is measured everywhere.
func TestQuickTests(t *testing.T) {
	for i, want := range []int{3, 1, 1} {
		quick := QuickTests(Underlays[i])
		if len(quick) != want || quick[0].Name != bulkTCP {
			t.Errorf("underlay %s: %v", Underlays[i], quick)
		}
	}
}

// TestNames holds that what is chosen by name can be, and that every path is
// compared with one that there is.
func TestNames(t *testing.T) {
	paths := map[string]bool{}
	for _, p := range Paths {
		if paths[p.Name] {
			t.Errorf("there are two paths %s", p)
		}
		paths[p.Name] = true
	}
	for _, p := range Paths {
		if !paths[p.Baseline] {
			t.Errorf("path %s is compared with %q", p, p.Baseline)
		}
	}
}

func TestCryptoFloor(t *testing.T) {
	if floor, err := cryptoFloor(); err != nil || !(floor > 0) {
		t.Errorf("%v ms/Gbit, %v", floor, err)
	}
}
