//go:build !freebsd

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
		Add: answer(p.add), Del: answer(p.del), Check: answer(p.check), GC: answer(p.gc), Status: answer(p.status),
	}, version.All, about())
}

// answer takes the arguments that skel has read and checked.
func answer(verb func(request) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		return verb(request{
			ContainerID: args.ContainerID, Netns: args.Netns, IfName: args.IfName,
			Args: args.Args, Path: args.Path, StdinData: args.StdinData,
		})
	}
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
