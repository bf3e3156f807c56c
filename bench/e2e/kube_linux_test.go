//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/cluster"
	"github.com/weft-net/weft/bench/lab/script"
)

// The names in deploy/weft.yaml.
const (
	manifestNamespace = "kube-weft"
	manifestConfig    = "weft"
	manifestAccount   = "weft"
)

// kubePatience bounds every single step of the control plane.
const kubePatience = 2 * time.Minute

// TestKubernetes runs agents against a real kube-apiserver, whose
// kube-controller-manager hands out the podCIDRs.
func TestKubernetes(t *testing.T) {
	rig := kubeRig{controls: map[*script.Run]*cluster.Cluster{}}
	commands := new(steady).commands()
	commands["kube"] = rig.start
	for name, command := range map[string]kubeCommand{
		"kube-apply": applyManifest, "kube-node": addNode, "kube-bare-node": addBareNode, "kube-delete": deleteNode, "kube-get": getObject,
		"kube-patch": patchObject, "kube-api": switchAPI, "kube-account": makeAccount,
	} {
		commands[name] = rig.command(command)
	}
	testscript.Run(t, script.Params(script.Config{
		Dir: "testdata/kube", Commands: commands,
		Setup: func(env *testscript.Env) error {
			deploy, err := filepath.Abs("../../deploy")
			env.Setenv("DEPLOY", deploy)
			env.Setenv("MANIFEST", filepath.Join(deploy, "weft.yaml"))
			return err
		},
	}))
}

// kubeRig knows the control plane of every running script.
type kubeRig struct {
	mu       sync.Mutex
	controls map[*script.Run]*cluster.Cluster
}

// kubeCommand is a script command that needs the control plane.
type kubeCommand func(ctx context.Context, run *script.Run, control *cluster.Cluster, args []string) error

func (k *kubeRig) command(f kubeCommand) script.Command {
	return func(run *script.Run, args []string) error {
		k.mu.Lock()
		control := k.controls[run]
		k.mu.Unlock()
		if control == nil {
			return errors.New("there is no control plane: start it with kube")
		}
		ctx, cancel := context.WithTimeout(context.Background(), kubePatience)
		defer cancel()
		return f(ctx, run, control, args)
	}
}

// start starts the control plane outside: kube NETWORK...
func (k *kubeRig) start(run *script.Run, args []string) error {
	binary := os.Getenv("WEFT_KUBE_BIN")
	if binary == "" {
		return errors.New("WEFT_KUBE_BIN is not set: run 'make e2e', or name the program that bench/kube/build.sh builds")
	}
	config := cluster.Config{
		Dir: filepath.Join(run.Getenv("WORK"), "kube"), Binary: binary,
		Network: run.Lab.Outside(), Bind: run.Lab.Switches()[0].Router(4),
	}
	for _, arg := range args {
		network, err := netip.ParsePrefix(arg)
		if err != nil {
			return err
		}
		config.ClusterCIDRs = append(config.ClusterCIDRs, network)
	}
	ctx, cancel := context.WithTimeout(context.Background(), kubePatience)
	defer cancel()
	control, err := cluster.Start(ctx, config)
	if err != nil {
		return err
	}
	run.Defer(control.Stop)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.controls[run] = control
	return nil
}

// applyManifest applies a file: kube-apply FILE
func applyManifest(ctx context.Context, _ *script.Run, control *cluster.Cluster, args []string) error {
	manifest, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	return control.Apply(ctx, manifest)
}

// addNode makes a Node for a host: kube-node HOST...
func addNode(ctx context.Context, run *script.Run, control *cluster.Cluster, args []string) error {
	for _, name := range args {
		host, err := run.Host(name)
		if err != nil {
			return err
		}
		if err := control.AddNode(ctx, name, host.Addr(4), host.Addr(6)); err != nil {
			return err
		}
	}
	return nil
}

// addBareNode makes Nodes for which there is no host: kube-bare-node NAME...
func addBareNode(ctx context.Context, _ *script.Run, control *cluster.Cluster, args []string) error {
	for _, name := range args {
		if err := control.AddNode(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func deleteNode(ctx context.Context, _ *script.Run, control *cluster.Cluster, args []string) error {
	return control.DeleteNode(ctx, args[0])
}

// getObject prints an object: kube-get /api/v1/nodes/a
func getObject(ctx context.Context, run *script.Run, control *cluster.Cluster, args []string) error {
	var object any
	if err := control.Request(ctx, http.MethodGet, args[0], nil, &object); err != nil {
		return err
	}
	return json.NewEncoder(run.Stdout).Encode(object)
}

// patchObject merges JSON into an object: kube-patch /api/v1/nodes/a/status '{...}'
func patchObject(ctx context.Context, _ *script.Run, control *cluster.Cluster, args []string) error {
	return control.Request(ctx, http.MethodPatch, args[0], json.RawMessage(args[1]), nil)
}

// switchAPI stops or starts the API server alone: kube-api stop|start
func switchAPI(ctx context.Context, _ *script.Run, control *cluster.Cluster, args []string) error {
	switch args[0] {
	case "stop":
		return control.StopAPIServer()
	case "start":
		return control.StartAPIServer(ctx)
	}
	return fmt.Errorf("kube-api %s: want stop or start", args[0])
}

// makeAccount writes the kubeconfig of a ServiceAccount bound to a host's Node,
// and net-conf.json from the manifest's ConfigMap, to the places where the
// DaemonSet's pod would have them: kube-account HOST...
func makeAccount(ctx context.Context, run *script.Run, control *cluster.Cluster, args []string) error {
	files, err := control.ConfigMap(ctx, manifestNamespace, manifestConfig)
	if err != nil {
		return err
	}
	for _, name := range args {
		host, err := run.Host(name)
		if err != nil {
			return err
		}
		account := cluster.Account{Namespace: manifestNamespace, Name: manifestAccount, Node: name}
		path := filepath.Join(run.Getenv("WORK"), name+".kubeconfig")
		if err := control.AccountKubeconfig(ctx, account, path); err != nil {
			return err
		}
		err = host.Do(func() error {
			for file, text := range files {
				path := filepath.Join("/etc/kube-flannel", file)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("write configuration of %s: %w", name, err)
		}
	}
	return nil
}
