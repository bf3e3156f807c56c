// Package e2e proves whole programs: the agent, its command line and the CNI
// plugin, on throw-away hosts with real kernels and a real etcd. The cases are
// text files in testdata/script; what needs a kube-apiserver or a second kernel
// is behind the build tag e2e. It holds nothing but tests.
package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/script"
)

func TestMain(m *testing.M) {
	runGuest()
	if err := findPrograms(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.Main(m)
}

// programs are what the scripts run, by the variable that names each one.
var programs = map[string]string{
	"WEFT_BIN":     "bin/weft",
	"WEFT_CNI_BIN": "bin/weft-cni",
	"CNI_PATH":     ".cache/cni",
}

// findPrograms fills in what the Makefile has built where nothing else is named.
func findPrograms() error {
	for variable, path := range programs {
		if os.Getenv(variable) != "" {
			continue
		}
		absolute, err := filepath.Abs(filepath.Join("..", "..", path))
		if err != nil {
			return fmt.Errorf("find %s: %w", path, err)
		}
		if _, err := os.Stat(absolute); err != nil {
			return fmt.Errorf("%s is missing: run 'make build cni', or name it in %s", path, variable)
		}
		if err := os.Setenv(variable, absolute); err != nil {
			return fmt.Errorf("set %s: %w", variable, err)
		}
	}
	return nil
}

func TestScripts(t *testing.T) {
	testscript.Run(t, script.Params(script.Config{Dir: "testdata/script", Commands: new(steady).commands()}))
}
