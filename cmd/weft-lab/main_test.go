package main

import (
	"errors"
	"testing"
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
		{[]string{"demo", "--nonsense"}, exitUsage},
		{[]string{"demo", "argument"}, exitUsage},
		{[]string{"nonsense"}, exitUsage},
		{[]string{"exec"}, exitUsage},
		{[]string{"exec", "--lab=x", "kernel1"}, exitUsage},
	} {
		if got := run(t.Context(), lacking, test.args); got != test.want {
			t.Errorf("%q: exit code %d, want %d", test.args, got, test.want)
		}
	}
}
