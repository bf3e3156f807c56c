//go:build e2e

package e2e

import (
	"errors"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab/script"
)

// TestWireGuard has hosts in the network that run stock WireGuard: wireguard-go,
// which scripts find as $WIREGUARD_GO_BIN, set up by wg.
func TestWireGuard(t *testing.T) {
	commands := new(wiretap).commands()
	commands["recover"] = recoverAgain
	testscript.Run(t, script.Params(script.Config{
		Dir: "testdata/wireguard", Commands: commands,
		Setup: func(env *testscript.Env) error {
			binary := os.Getenv("WIREGUARD_GO_BIN")
			if binary == "" {
				return errors.New("WIREGUARD_GO_BIN is not set: run 'make e2e', or name a wireguard-go")
			}
			env.Setenv("WIREGUARD_GO_BIN", binary)
			return nil
		},
	}))
}
