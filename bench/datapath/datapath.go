// Package datapath measures what a tunnel costs: two throw-away hosts joined in
// one of several ways, the same traffic over each, and every figure beside the
// one of kernel VXLAN in the same run. It must never touch the machine's own
// network, and never quote a figure without saying how far it scattered.
//
// A Path says how the hosts are joined, a Test what is sent, an Underlay what
// the link between the hosts leaves to them. Userspace ends of a tunnel run as
// processes of their own, so that what they use is known of each.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"time"

	"github.com/weft-net/weft/bench/lab"
)

// Config says what is measured and how often.
type Config struct {
	Sets     []Set
	Paths    []Path        // the same in all sets
	Rounds   int           // each figure is the median of so many
	Duration time.Duration // of one measurement; whole seconds, as iperf3 counts them
	Idle     Gate          // what the machine must be like before each
	// End is the command line that runs RunEnd in a process of its own, without
	// the kind of end.
	End []string
	// Agent is the weft program, to be measured at rest; empty: it is not.
	Agent string
	// Profile is a directory for Go CPU profiles of userspace ends; empty: none.
	Profile string
	// Progress is told what is being done, a line each.
	Progress func(line string)
	// Detail is told more of it, and what userspace ends say; nil: nobody.
	Detail func(line string)
}

// Set is what is measured over one underlay.
type Set struct {
	Underlay Underlay
	Tests    []Test
}

// ErrUnsupported is what this machine lacks to be measured on.
var ErrUnsupported = errors.New("this machine cannot measure")

func (c Config) check() error {
	empty := func(s Set) bool { return len(s.Tests) == 0 }
	switch {
	case len(c.Sets) == 0 || slices.ContainsFunc(c.Sets, empty) || len(c.Paths) == 0:
		return errors.New("nothing to measure: Sets, their Tests and Paths must name something each")
	case c.Rounds < 1:
		return fmt.Errorf("Rounds is %d, want 1 or more", c.Rounds)
	case c.Duration < time.Second || c.Duration%time.Second != 0:
		return fmt.Errorf("Duration is %s, want whole seconds, 1 or more", c.Duration)
	case c.total() == 0:
		return fmt.Errorf("nothing to measure: no path of Paths carries any of the Tests; only %s carries %s, and only TCP", pathNetstack, manyTCP)
	case len(c.End) == 0:
		return errors.New("End is missing: want the command that runs a userspace end")
	}
	if _, err := exec.LookPath(iperfProgram); err != nil {
		return fmt.Errorf("%w: %s is missing: as root, run: apt-get install --no-install-recommends iperf3", ErrUnsupported, iperfProgram)
	}
	return nil
}

// Run measures everything that config names. lab.Enter must have been called.
// What could not be measured is part of the Report, not an error.
func Run(ctx context.Context, config Config) (report Report, err error) {
	if err := config.check(); err != nil {
		return Report{}, fmt.Errorf("bench datapath: %w", err)
	}
	if config.Detail == nil {
		config.Detail = func(string) {}
	}
	world, err := lab.New(lab.Config{})
	if err != nil {
		return Report{}, fmt.Errorf("bench datapath: %w", err)
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	b := &bench{Config: config, world: world}
	if report.Machine, err = b.describeMachine(ctx); err != nil {
		return Report{}, fmt.Errorf("bench datapath: %w", err)
	}
	b.congestion = report.Machine.CongestionControl
	for _, set := range config.Sets {
		rows, problems, err := b.measureSet(ctx, set)
		if err != nil {
			return Report{}, fmt.Errorf("bench datapath: underlay %s: %w", set.Underlay.Name, err)
		}
		report.Rows = append(report.Rows, rows...)
		report.Problems = append(report.Problems, problems...)
	}
	measured := func(row Row) bool { return row.Median != nil }
	if !slices.ContainsFunc(report.Rows, measured) {
		return Report{}, fmt.Errorf("bench datapath: every measurement has failed, the first by: %s", report.Rows[0].Errors[0])
	}
	if config.Agent != "" {
		rows, err := b.measureAgent(ctx)
		if err != nil {
			return Report{}, fmt.Errorf("bench datapath: %w", err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	return report, nil
}

// total is how many measurements there will be.
func (c Config) total() (n int) {
	for _, set := range c.Sets {
		for _, t := range set.Tests {
			for _, p := range c.Paths {
				if t.over(p) != nil {
					n += c.Rounds
				}
			}
		}
	}
	return n
}

// bench is one Run.
type bench struct {
	Config
	world      *lab.Lab
	hosts      int    // made so far
	done       int    // measurements made so far
	congestion string // TCP's congestion control in every test
}
