package datapath

import (
	"context"
	"slices"
	"time"
)

// Test is traffic that is sent over every path.
type Test struct {
	Name    string
	About   string
	Figures []Figure
	run     runner // nil: paths that are entered through a proxy alone carry it
	proxied runner // over paths that are; nil: they cannot carry it
}

// runner sends the traffic of a test.
type runner func(context.Context, *bench, *way) (outcome, error)

// over is how the test is run over a path; nil: it cannot be.
func (t Test) over(p Path) runner {
	if p.proxied {
		return t.proxied
	}
	return t.run
}

// Figure is one thing that a Test tells; rows of a Report are named after it.
type Figure struct {
	Name  string
	Unit  string
	Lower bool // lower is better
	value func(sample) float64
}

// Units of figures.
const (
	unitRate    = "Gbit/s"
	unitCPU     = "cpu_us/packet"
	unitLatency = "us"
)

// Tests are those that there are.
var Tests = []Test{
	{bulkTCP, "one TCP stream", []Figure{{bulkTCP, unitRate, false, rate}}, iperf{streams: 1}.run, streams{count: 1}.run},
	{"tcp-4", "four TCP streams", []Figure{{"tcp-4", unitRate, false, rate}}, iperf{streams: 4}.run, streams{count: 4}.run},
	{manyTCP, "128 TCP streams, after a second to start; over paths that are entered through a proxy, and only when named",
		[]Figure{{manyTCP, unitRate, false, rate}}, nil, streams{count: 128, start: time.Second}.run},
	{"udp-64", "flood of 64 bytes; processor time of the machine per packet delivered",
		[]Figure{{"udp-64", unitCPU, true, cpuPerPacket}}, iperf{udp: 64}.run, nil},
	{"udp-1350", "flood of 1350 bytes; what is delivered",
		[]Figure{{"udp-1350", unitRate, false, rate}}, iperf{udp: 1350}.run, nil},
	{"ping-pong", "64 bytes to and fro; half the round trip",
		[]Figure{
			{"ping-pong-p50", unitLatency, true, func(s sample) float64 { return micros(s.half50) }},
			{"ping-pong-p99", unitLatency, true, func(s sample) float64 { return micros(s.half99) }},
		}, pingPong, nil},
}

// lowerIsBetter tells of a figure by its name.
func lowerIsBetter(figure string) bool {
	for _, t := range Tests {
		for _, f := range t.Figures {
			if f.Name == figure {
				return f.Lower
			}
		}
	}
	return false
}

func rate(s sample) float64 { return s.bits / s.seconds / 1e9 }

func cpuPerPacket(s sample) float64 { return micros(s.cpu) / s.packets }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// String is the test's name.
func (t Test) String() string { return t.Name }

// DefaultTests are those that need not be named.
func DefaultTests() (tests []Test) {
	for _, t := range Tests {
		if t.run != nil {
			tests = append(tests, t)
		}
	}
	return tests
}

// QuickTests are those that tell most in the shortest time.
func QuickTests(underlay Underlay) (quick []Test) {
	names := []string{bulkTCP}
	if underlay.Name == "A" {
		names = append(names, "udp-1350", "ping-pong")
	}
	for _, t := range Tests {
		if slices.Contains(names, t.Name) {
			quick = append(quick, t)
		}
	}
	return quick
}
