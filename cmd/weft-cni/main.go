// Command weft-cni is the CNI plugin of a node: it puts the lease that the
// agent wrote to subnet.env into the configuration of a delegate, by default
// bridge with host-local, and calls that. It may be installed as "flannel" and
// takes the same configuration. It must never touch the network itself, and
// never forget an attachment that its delegate still holds.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	p := plugin{
		exec:   &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}},
		stdout: os.Stdout,
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status,
	}, version.All, about())
}

// about is the line shown to who starts the plugin by hand.
func about() string {
	release, commit := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		release = info.Main.Version
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				commit = setting.Value
			}
		}
	}
	return fmt.Sprintf("CNI Plugin weft-cni version %s (%s/%s) commit %s", release, runtime.GOOS, runtime.GOARCH, commit)
}
