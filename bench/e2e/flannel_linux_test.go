//go:build e2e

package e2e

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab/script"
)

// TestFlannel has real flanneld hosts in the network.
func TestFlannel(t *testing.T) {
	testscript.Run(t, script.Params(script.Config{
		Dir: "testdata/flannel",
		Setup: func(env *testscript.Env) error {
			binary := os.Getenv("FLANNELD_BIN")
			if binary == "" {
				return errors.New("FLANNELD_BIN is not set: run 'make e2e', or name a flanneld")
			}
			env.Setenv("FLANNELD_BIN", binary)
			return nil
		},
	}))
}
