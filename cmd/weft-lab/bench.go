package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/bench/datapath"
)

// endCommand names the hidden command that is a userspace end of a tunnel.
const endCommand = "bench-end"

func benchCommand(lacking error) *cobra.Command {
	command := &cobra.Command{
		Use:   "bench",
		Short: "Measure on throw-away hosts on this machine",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	command.AddCommand(benchDatapathCommand(lacking))
	return command
}

func noArguments(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func benchEndCommand() *cobra.Command {
	return &cobra.Command{
		Use:    endCommand + " KIND HOST",
		Short:  "Be a userspace end of a tunnel; started by bench",
		Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("%d arguments, want KIND HOST", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return datapath.RunEnd(cmd.Context(), args[0], cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// benchOptions are the flags of bench datapath.
type benchOptions struct {
	underlays, paths, tests []string
	rounds, seconds         int
	quick, json, check      bool
	verbose                 bool
	svg, profile, weft      string
}

func benchDatapathCommand(lacking error) *cobra.Command {
	var o benchOptions
	command := &cobra.Command{
		Use:   "datapath",
		Short: "Compare tunnels: throughput, processor time, latency",
		Long:  benchText(),
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.quick {
				o.hurry(cmd.Flags().Changed)
			}
			config, err := o.config(cmd.ErrOrStderr())
			if err != nil {
				return usageError{err}
			}
			if lacking != nil {
				return unsupportedError{fmt.Errorf("the bench cannot run on this machine: %w", lacking)}
			}
			if len(o.tests) == 0 {
				if config.Agent, err = findWeft(o.weft, filepath.Dir(config.End[0])); err != nil {
					return err
				}
			}
			return o.run(cmd.Context(), config, cmd.OutOrStdout())
		},
	}
	f := command.Flags()
	f.SortFlags = false
	f.StringSliceVar(&o.underlays, "underlay", nil, "underlays, separated by commas (default all)")
	f.StringSliceVar(&o.paths, "paths", nil, "paths (default all whose programs are installed)")
	f.StringSliceVar(&o.tests, "tests", nil, "tests (default all but tcp-128)")
	f.IntVar(&o.rounds, "rounds", 3, "measurements of each, interleaved; the median counts")
	f.IntVar(&o.seconds, "seconds", 2, "length of one measurement")
	f.BoolVar(&o.quick, "quick", false, "under two minutes: one round of one second, tcp-1 everywhere, udp-1350 and ping-pong on underlay A")
	f.BoolVar(&o.json, "json", false, "print one JSON document on standard output in place of tables")
	f.StringVar(&o.svg, "svg", "", "draw a bar chart into this file")
	f.BoolVar(&o.check, "check", false, "fail where weft's engine misses limits that hold on busy machines too")
	f.StringVar(&o.weft, "weft", "", "the weft program, measured at rest unless --tests is given (default $WEFT_BIN, else beside weft-lab)")
	f.BoolVar(&o.verbose, "verbose", false, "say more on standard error: what userspace ends log, and how to find them")
	f.StringVar(&o.profile, "profile", "", "write Go CPU profiles of userspace ends into this directory")
	return command
}

// benchText explains what there is to choose from.
func benchText() string {
	var text strings.Builder
	text.WriteString("Joins two throw-away hosts in several ways and sends the same traffic over each, round by round, and compares all\n" +
		"with kernel VXLAN. Needs iperf3, no root. All of it takes half an hour.\n")
	list := func(title string, lines func(line func(name, about string))) {
		fmt.Fprintf(&text, "\n%s:\n", title)
		lines(func(name, about string) { fmt.Fprintf(&text, "  %-18s %s\n", name, about) })
	}
	list("Underlays", func(line func(name, about string)) {
		for _, u := range datapath.Underlays {
			line(u.Name, u.About)
		}
	})
	list("Paths, the first of two ends sends", func(line func(name, about string)) {
		for _, p := range datapath.Paths {
			line(p.Name, p.About)
		}
	})
	list("Tests", func(line func(name, about string)) {
		for _, t := range datapath.Tests {
			line(t.Name, t.About)
		}
	})
	text.WriteString("\nOver netstack, which iperf3 cannot enter, weft-lab itself dials by SOCKS5 and counts what the far side reads.\n" +
		"gVisor as it comes, without weft's own endpoint, is measured by: go test -run '^$' -bench 'Stock|Loopback' ./netstack\n")
	text.WriteString("\nExit code 0: it has measured; 1: it has not, or --check has failed; 2: wrong usage; 3: this machine cannot do it.")
	return text.String()
}

// hurry changes what has not been set by hand.
func (o *benchOptions) hurry(set func(flag string) bool) {
	if !set("rounds") {
		o.rounds = 1
	}
	if !set("seconds") {
		o.seconds = 1
	}
}

// config is what the flags mean.
func (o benchOptions) config(stderr io.Writer) (config datapath.Config, err error) {
	if err := o.plan(&config); err != nil {
		return config, err
	}
	switch {
	case o.rounds < 1 || o.rounds > 100:
		return config, fmt.Errorf("--rounds %d: want 1 to 100", o.rounds)
	case o.seconds < 1 || o.seconds > 3600:
		return config, fmt.Errorf("--seconds %d: want 1 to 3600", o.seconds)
	}
	config.Rounds, config.Duration = o.rounds, time.Duration(o.seconds)*time.Second
	config.Idle = datapath.Gate{Window: 2 * time.Second, Patience: 20 * time.Second}
	if o.quick {
		config.Idle = datapath.Gate{Window: 200 * time.Millisecond, Patience: 500 * time.Millisecond}
	}
	self, err := os.Executable()
	if err != nil {
		return config, fmt.Errorf("find this program: %w", err)
	}
	config.End = []string{self, endCommand}
	if o.profile != "" {
		if info, err := os.Stat(o.profile); err != nil || !info.IsDir() {
			return config, fmt.Errorf("--profile %s: want a directory that is there", o.profile)
		}
		if config.Profile, err = filepath.Abs(o.profile); err != nil {
			return config, fmt.Errorf("--profile %s: %w", o.profile, err)
		}
	}
	config.Progress = progress(stderr)
	if o.verbose {
		config.Detail = config.Progress
	}
	return config, nil
}

// plan chooses underlays, paths and tests.
func (o benchOptions) plan(config *datapath.Config) (err error) {
	underlays, err := choose("underlay", datapath.Underlays, o.underlays)
	if err != nil {
		return err
	}
	if config.Paths, err = choose("paths", datapath.Paths, o.paths); err != nil {
		return err
	}
	if len(o.paths) == 0 {
		config.Paths = datapath.Installed()
	}
	tests, err := choose("tests", datapath.Tests, o.tests)
	if err != nil {
		return err
	}
	if len(o.tests) == 0 {
		tests = datapath.DefaultTests()
	}
	if o.check {
		for _, need := range []struct {
			flag, name string
			of         []string
		}{
			{"paths", datapath.CheckedPath, o.paths}, {"paths", datapath.CheckedAgainst, o.paths}, {"tests", datapath.CheckedTest, o.tests},
		} {
			if len(need.of) > 0 && !slices.Contains(need.of, need.name) {
				return fmt.Errorf("--check: --%s must name %s", need.flag, need.name)
			}
		}
	}
	for _, underlay := range underlays {
		if o.quick && len(o.tests) == 0 {
			tests = datapath.QuickTests(underlay)
		}
		config.Sets = append(config.Sets, datapath.Set{Underlay: underlay, Tests: tests})
	}
	return nil
}

// named is what a flag can choose by name.
type named interface{ String() string }

func names[T named](all []T) string {
	var list []string
	for _, one := range all {
		list = append(list, one.String())
	}
	return strings.Join(list, ", ")
}

// choose picks by name; no names are all.
func choose[T named](flag string, all []T, wanted []string) (chosen []T, err error) {
	if len(wanted) == 0 {
		return all, nil
	}
	for _, name := range wanted {
		called := func(one T) bool { return one.String() == name }
		i := slices.IndexFunc(all, called)
		switch {
		case i < 0:
			return nil, fmt.Errorf("--%s %q: want one or more of %s", flag, name, names(all))
		case slices.ContainsFunc(chosen, called):
			return nil, fmt.Errorf("--%s: %s is named twice", flag, name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (o benchOptions) run(ctx context.Context, config datapath.Config, stdout io.Writer) (err error) {
	var chart *os.File
	if o.svg != "" {
		// Better to fail now than at the end of a long measurement.
		if chart, err = os.Create(o.svg); err != nil {
			return fmt.Errorf("--svg: %w", err)
		}
		defer func() { err = errors.Join(err, chart.Close()) }()
	}
	report, err := datapath.Run(ctx, config)
	if errors.Is(err, datapath.ErrUnsupported) {
		return unsupportedError{err}
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	if o.json {
		err = report.WriteJSON(stdout)
	} else {
		err = report.WriteText(stdout)
	}
	if err == nil && chart != nil {
		err = report.WriteSVG(chart)
	}
	if err == nil && o.check {
		err = report.Check()
	}
	return err
}
