package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-net/weft/bench/lab"
)

// pluginsVersion is that of the real plugins the tests call.
const pluginsVersion = "v1.9.1"

// pluginsEnv tells the processes inside the lab where the real plugins are.
const pluginsEnv = "WEFT_CNI_TEST_PLUGINS"

var realPlugins = []string{"main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"}

// TestMain also is the plugins that the tests start: the test binary under
// another name is weft-cni, or a delegate made for the tests.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "weft-cni", "flannel":
		main()
	case "slow":
		slow()
	default:
		// The lab has no way to a module proxy, so this comes first.
		if err := findPlugins(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		lab.Main(m)
	}
}

// findPlugins holds that CNI_PATH has the real plugins. Where it is not set
// they are built once into the user's cache.
func findPlugins() error {
	if os.Getenv(pluginsEnv) != "" {
		return nil
	}
	dir := os.Getenv("CNI_PATH")
	build := dir == ""
	if build {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("CNI_PATH is not set, and there is no place to build the plugins in: %w", err)
		}
		dir = filepath.Join(cache, "weft", "cni-"+pluginsVersion)
	}
	for _, plugin := range realPlugins {
		if _, err := os.Stat(filepath.Join(dir, filepath.Base(plugin))); err == nil {
			continue
		}
		if !build {
			return fmt.Errorf("CNI_PATH is %s, which has no %s: run make cni, or unset it to have the plugins built", dir, filepath.Base(plugin))
		}
		install := exec.Command("go", "install", "github.com/containernetworking/plugins/plugins/"+plugin+"@"+pluginsVersion)
		install.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := install.CombinedOutput(); err != nil {
			return fmt.Errorf("build CNI plugin %s: %w: %s", plugin, err, out)
		}
	}
	// A race detector waits a second when a process ends, and there are many.
	return errors.Join(os.Setenv(pluginsEnv, dir), os.Setenv("GORACE", "atexit_sleep_ms=0"))
}

// slow is a delegate that does what bridge does and then, in ADD, does not
// return: the moment to be killed in. It leaves a mark that it has come so far.
func slow() {
	delegate := func(verb string) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			path, err := invoke.FindInPath("bridge", filepath.SplitList(args.Path))
			if err != nil {
				return err
			}
			run := exec.Command(path)
			run.Stdin, run.Stderr = bytes.NewReader(args.StdinData), os.Stderr
			out, err := run.Output()
			if err != nil {
				return errors.Join(err, errors.New(string(out)))
			}
			if verb == "ADD" {
				if err := os.WriteFile("/run/slow", nil, 0o600); err != nil {
					return err
				}
				<-context.Background().Done()
			}
			return nil
		}
	}
	go func() {
		time.Sleep(time.Minute) // nobody kills it where the test has failed
		os.Exit(1)
	}()
	skel.PluginMainFuncs(skel.CNIFuncs{Add: delegate("ADD"), Del: delegate("DEL")}, version.All, "")
}
