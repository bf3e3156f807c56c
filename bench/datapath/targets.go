package datapath

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// target is what weft wants to reach: the floor at least.
type target struct {
	what        string
	floor, goal float64
	lower       bool // lower is better
	measured    func(Report) *float64
}

// ratios are between medians of the same run; what is not a ratio is the worst
// over all underlays measured.
var targets = []target{
	{"TCP 1 stream, A", 0.45, 0.60, false, against(pathKernel, "A", "tcp-1")},
	{"TCP 1 stream, B", 0.85, 1.00, false, against(pathKernel, "B", "tcp-1")},
	{"TCP 1 stream, C", 0.65, 0.85, false, against(pathKernel, "C", "tcp-1")},
	{"UDP 1350 B delivered, A", 0.85, 1.00, false, against(pathKernel, "A", "udp-1350")},
	{"UDP 64 B, CPU per packet, A", 1.6, 1.2, true, against(pathKernel, "A", "udp-64")},
	{"ping-pong p50, A", 2.2, 1.6, true, against(pathKernel, "A", "ping-pong-p50")},
	{"rootless to weft-vxlan, TCP 1 stream, A", 0.95, 0.95, false, between(pathRootless, pathWeft, "A", bulkTCP)},
	{"rootless to slirp4netns, TCP 1 stream, A", 10, 10, false, between(pathRootless, pathSlirp, "A", bulkTCP)},
	{"netstack, TCP 1 stream, Gbit/s, A", 1.5, 1.5, false, medianOf(pathNetstack, "A", bulkTCP)},
	{"netstack to weft-vxlan, TCP 1 stream, A", noFloor, 0.5, false, between(pathNetstack, pathWeft, "A", bulkTCP)},
	{"netstack, 128 TCP streams to 1, A", 0.6, 0.6, false, manyToOne},
	{"TCP 1 stream against wireguard-go, A", 3.5, 5, false, against(pathWireGuard, "A", "tcp-1")},
	{"WireGuard: TCP 1 stream against wireguard-go, A", 1.5, 2.4, false, between(pathWeftWireGuard, pathWireGuard, "A", bulkTCP)},
	{"WireGuard: CPU per Gbit against wireguard-go, A", 0.65, 0.45, true, effort(pathWeftWireGuard, pathWireGuard, "A", bulkTCP)},
	{"WireGuard: ping-pong p50 against wireguard-go, A", 0.7, 0.5, true, between(pathWeftWireGuard, pathWireGuard, "A", "ping-pong-p50")},
	{"syscalls per 1000 segments, bulk TCP", 60, 50, true, worst(func(r Row) *float64 { return r.SyscallsPerKseg })},
	{"allocations per packet, bulk TCP", noAllocations, noAllocations, true, worst(func(r Row) *float64 { return r.AllocsPerPacket })},
	{"memory of an idle agent, MB RSS", 40, 25, true, agentFigure(rowIdleMemory)},
	{"goroutines more with 5000 peers", 0, 0, true, agentFigure(rowPeerGoroutines)},
	{"memory of an idle agent without a device, MB RSS", 35, 35, true, guestFigure(rowIdleMemory)},
	{"start of an agent without a device until a peer reaches it, s", 1, 1, true, guestFigure(rowReachable)},
}

// noFloor is less than anything measured.
const noFloor = -1

// noAllocations is what counts as none: asking for the counters allocates, and
// so does Go's runtime now and then.
const noAllocations = 0.001

// verdict says what a measured value is worth.
func (t target) verdict(measured *float64) string {
	reaches := func(mark float64) bool {
		if t.lower {
			return *measured <= mark
		}
		return *measured >= mark
	}
	switch {
	case measured == nil:
		return "not measured"
	case reaches(t.goal):
		return "met goal"
	case t.floor == noFloor:
		return "below goal"
	case reaches(t.floor):
		return "met floor"
	}
	return "below"
}

// against is the ratio of weft's engine to another path.
func against(path, underlay, test string) func(Report) *float64 {
	return between(pathWeft, path, underlay, test)
}

// between is the ratio of one path to another.
func between(path, base, underlay, test string) func(Report) *float64 {
	return func(r Report) *float64 {
		return ratio(r.row(underlay, path, test), r.row(underlay, base, test))
	}
}

// effort is the ratio of the processor time that two paths take for as much.
func effort(path, base, underlay, test string) func(Report) *float64 {
	return func(r Report) *float64 {
		row, to := r.row(underlay, path, test), r.row(underlay, base, test)
		if row == nil || to == nil || row.CPUMillisPerGbit == nil || to.CPUMillisPerGbit == nil || *to.CPUMillisPerGbit == 0 {
			return nil
		}
		return number(*row.CPUMillisPerGbit / *to.CPUMillisPerGbit)
	}
}

// medianOf is what was measured of a path, in the test's unit.
func medianOf(path, underlay, test string) func(Report) *float64 {
	return func(r Report) *float64 {
		if row := r.row(underlay, path, test); row != nil {
			return row.Median
		}
		return nil
	}
}

// manyToOne is what many streams without a device carry to what one carries.
func manyToOne(r Report) *float64 {
	return ratio(r.row("A", pathNetstack, manyTCP), r.row("A", pathNetstack, bulkTCP))
}

// worst is the largest value of weft's engine in bulk TCP.
func worst(value func(Row) *float64) func(Report) *float64 {
	return func(r Report) *float64 {
		var values []float64
		for _, row := range r.Rows {
			if v := value(row); row.Path == pathWeft && row.Test == bulkTCP && v != nil {
				values = append(values, *v)
			}
		}
		if values == nil {
			return nil
		}
		return number(slices.Max(values))
	}
}

// agentFigure is what was measured of the agent at rest.
func agentFigure(name string) func(Report) *float64 { return medianOf(agentPath, "", name) }

// guestFigure is what was measured of the agent without a device.
func guestFigure(name string) func(Report) *float64 { return medianOf(guestPath, "", name) }

// bulkTCP is the test that says most about a tunnel.
const bulkTCP = "tcp-1"

// manyTCP is as many streams as a busy host may have.
const manyTCP = "tcp-128"

// ratio of the medians of two rows; nil if either is missing.
func ratio(row, base *Row) *float64 {
	if row == nil || base == nil || row.Median == nil || base.Median == nil || *base.Median == 0 {
		return nil
	}
	return number(*row.Median / *base.Median)
}

// row finds a row; nil if there is none.
func (r Report) row(underlay, path, test string) *Row {
	i := slices.IndexFunc(r.Rows, func(row Row) bool {
		return row.Underlay == underlay && row.Path == path && row.Test == test
	})
	if i < 0 {
		return nil
	}
	return &r.Rows[i]
}

// What Check needs to have been measured.
const (
	CheckedPath    = pathWeft
	CheckedAgainst = pathKernel
	CheckedTest    = bulkTCP
)

// weftsOwn are the paths that have to work wherever they are measured.
var weftsOwn = []string{pathNetstack, pathRootless, pathWeftWireGuard}

// Limits that hold on noisy machines too.
const (
	mostSyscalls    = 100 // per 1000 segments
	mostAllocations = 0.01
)

// leastRatios are those of TCP to kernel VXLAN.
var leastRatios = []struct {
	underlay string
	ratio    float64
}{{"A", 0.3}, {"B", 0.5}}

// limits hold for what was measured, on noisy machines too.
var limits = []struct {
	what     string
	least    float64
	measured func(Report) *float64
}{
	{"rootless to weft-vxlan in TCP, 1 stream", 0.6, between(pathRootless, pathWeft, "A", bulkTCP)},
	{"rootless to slirp4netns in TCP, 1 stream", 5, between(pathRootless, pathSlirp, "A", bulkTCP)},
	{"netstack to weft-vxlan in TCP, 1 stream", 0.15, between(pathNetstack, pathWeft, "A", bulkTCP)},
	{"netstack, 128 TCP streams to 1", 0.3, manyToOne},
	{"weft-wireguard to wireguard-go in TCP, 1 stream", 1.2, between(pathWeftWireGuard, pathWireGuard, "A", bulkTCP)},
}

// Check compares bulk TCP over weft's engine with limits that are generous
// enough for a busy machine, and returns an error that names every one missed,
// or that too little was measured. Of other paths of weft's it looks at what was
// measured.
func (r Report) Check() error {
	var errs []error
	for _, limit := range leastRatios {
		underlay, least := limit.underlay, limit.ratio
		if r.row(underlay, pathWeft, bulkTCP) == nil {
			continue
		}
		got := against(pathKernel, underlay, bulkTCP)(r)
		if got == nil || *got < least {
			errs = append(errs, fmt.Errorf("underlay %s: %s is %s of %s in %s, want %v or more", underlay, pathWeft, cell(got), pathKernel, bulkTCP, least))
		}
	}
	bulk := 0
	for _, row := range r.Rows {
		if row.Path != pathWeft || row.Test != bulkTCP {
			continue
		}
		bulk++
		if v := row.SyscallsPerKseg; v == nil || *v > mostSyscalls {
			errs = append(errs, fmt.Errorf("underlay %s: %s system calls per 1000 segments, want at most %d", row.Underlay, cell(v), mostSyscalls))
		}
		if v := row.AllocsPerPacket; v == nil || *v >= mostAllocations {
			errs = append(errs, fmt.Errorf("underlay %s: %s allocations per packet, want less than %v", row.Underlay, allocations(v), mostAllocations))
		}
	}
	if bulk == 0 {
		errs = append(errs, fmt.Errorf("nothing to check: want paths %s and %s and test %s", pathKernel, pathWeft, bulkTCP))
	}
	for _, limit := range limits {
		if got := limit.measured(r); got != nil && *got < limit.least {
			errs = append(errs, fmt.Errorf("underlay A: %s is %s, want %v or more", limit.what, cell(got), limit.least))
		}
	}
	for _, row := range r.Rows {
		if row.Median == nil && slices.Contains(weftsOwn, row.Path) {
			errs = append(errs, fmt.Errorf("underlay %s: %s %s was not measured: %s", row.Underlay, row.Path, row.Test, strings.Join(row.Errors, "; ")))
		}
	}
	for _, problem := range r.Problems {
		errs = append(errs, errors.New(problem))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("check bench: %w", err)
	}
	return nil
}
