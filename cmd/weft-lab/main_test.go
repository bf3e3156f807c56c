package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/datapath"
)

func TestExitCodes(t *testing.T) {
	lacking := errors.New("no namespaces here")
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, 0},
		{[]string{"--help"}, 0},
		{[]string{"demo", "--help"}, 0},
		{[]string{"demo"}, exitUnsupported},
		{[]string{"demo", "--in-process", "--keep"}, exitUsage},
		{[]string{"demo", "--nonsense"}, exitUsage},
		{[]string{"demo", "argument"}, exitUsage},
		{[]string{"nonsense"}, exitUsage},
		{[]string{"bench"}, 0},
		{[]string{"bench", "nonsense"}, exitUsage},
		{[]string{"bench", "datapath", "--help"}, 0},
		{[]string{"bench", "datapath"}, exitUnsupported},
		{[]string{"bench", "datapath", "argument"}, exitUsage},
		{[]string{"bench", "datapath", "--underlay=D"}, exitUsage},
		{[]string{"bench", "datapath", "--rounds=many"}, exitUsage},
		{[]string{"bench-end"}, exitUsage},
		{[]string{"bench-end", "weft"}, exitUsage},
		{[]string{"exec"}, exitUsage},
		{[]string{"exec", "--lab=x", "kernel1"}, exitUsage},
	} {
		if got := run(t.Context(), lacking, test.args); got != test.want {
			t.Errorf("%q: exit code %d, want %d", test.args, got, test.want)
		}
	}
}

// TestBenchFlags holds that a bad value names its flag and what can be given.
func TestBenchFlags(t *testing.T) {
	good := benchOptions{rounds: 1, seconds: 1}
	for name, test := range map[string]struct {
		change func(*benchOptions)
		want   string
	}{
		"underlay": {func(o *benchOptions) { o.underlays = []string{"A", "D"} }, `--underlay "D": want one or more of A, B, C`},
		"path":     {func(o *benchOptions) { o.paths = []string{"vxlan"} }, `--paths "vxlan": want one or more of veth, kernel-vxlan`},
		"test":     {func(o *benchOptions) { o.tests = []string{""} }, `--tests "": want one or more of tcp-1, tcp-4`},
		"twice":    {func(o *benchOptions) { o.paths = []string{"veth", "veth"} }, "--paths: veth is named twice"},
		"rounds":   {func(o *benchOptions) { o.rounds = 0 }, "--rounds 0: want 1 to 100"},
		"seconds":  {func(o *benchOptions) { o.seconds = 3601 }, "--seconds 3601: want 1 to 3600"},
		"profile":  {func(o *benchOptions) { o.profile = "/nowhere" }, "--profile /nowhere"},
		"check": {func(o *benchOptions) { o.check, o.paths = true, []string{"weft-vxlan"} },
			"--check: --paths must name kernel-vxlan"},
		"check without bulk": {func(o *benchOptions) { o.check, o.tests = true, []string{"udp-64"} },
			"--check: --tests must name tcp-1"},
	} {
		o := good
		test.change(&o)
		if _, err := o.config(io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, test.want)
		}
	}
}

// TestBenchPlan holds what is measured without flags, in a hurry, and by name.
func TestBenchPlan(t *testing.T) {
	for name, test := range map[string]struct {
		o        benchOptions
		tests    []int // of each underlay
		paths    int
		duration time.Duration
	}{
		"all":     {benchOptions{rounds: 3, seconds: 2}, []int{5, 5, 5}, len(datapath.Installed()), 2 * time.Second},
		"quick":   {benchOptions{rounds: 1, seconds: 1, quick: true}, []int{3, 1, 1}, len(datapath.Installed()), time.Second},
		"by name": {benchOptions{rounds: 1, seconds: 1, quick: true, underlays: []string{"B"}, tests: []string{"udp-64"}, paths: []string{"veth"}}, []int{1}, 1, time.Second},
	} {
		config, err := test.o.config(io.Discard)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var tests []int
		for _, set := range config.Sets {
			tests = append(tests, len(set.Tests))
		}
		if !slices.Equal(tests, test.tests) || len(config.Paths) != test.paths || config.Duration != test.duration || config.Rounds != test.o.rounds {
			t.Errorf("%s: %v tests of %d paths, %d rounds of %s", name, tests, len(config.Paths), config.Rounds, config.Duration)
		}
	}
}

// TestHurry holds that --quick leaves alone what is set by hand.
func TestHurry(t *testing.T) {
	o := benchOptions{rounds: 3, seconds: 2}
	o.hurry(func(flag string) bool { return flag == "rounds" })
	if o.rounds != 3 || o.seconds != 1 {
		t.Errorf("%d rounds of %d s", o.rounds, o.seconds)
	}
}
