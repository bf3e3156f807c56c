package demo

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-net/weft/bench/lab"
)

// Pod is a network namespace that CNI has attached to a host.
type Pod struct {
	Name      string // HOST/NAME
	Addresses []netip.Addr
	ns        *lab.Namespace
}

// cniConfig is what weft's manifest installs, without port mappings.
const cniConfig = `{
  "name": "weft",
  "cniVersion": "1.1.0",
  "plugins": [{"type": "weft-cni", "delegate": {"isDefaultGateway": true, "hairpinMode": true}}]
}`

// plugins attaches pods as a container runtime does.
type plugins struct {
	dirs []string
	list *libcni.NetworkConfigList
}

// newPlugins checks that every plugin is in one of the directories.
func newPlugins(dirs []string) (plugins, error) {
	for _, name := range []string{"weft-cni", "bridge", "host-local"} {
		if _, err := findPlugin(name, dirs); err != nil {
			return plugins{}, err
		}
	}
	list, err := libcni.NetworkConfFromBytes([]byte(cniConfig))
	if err != nil {
		return plugins{}, fmt.Errorf("read CNI configuration: %w", err)
	}
	return plugins{dirs: dirs, list: list}, nil
}

func findPlugin(name string, dirs []string) (path string, err error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("look for CNI plugin %s in %s: not there; run: make build cni", name, strings.Join(dirs, ", "))
}

// attach makes a pod on a host.
func (p plugins) attach(ctx context.Context, host *lab.Host, name string) (Pod, error) {
	ns, err := host.NewNamespace(name)
	if err != nil {
		return Pod{}, err
	}
	pod := Pod{Name: host.Name() + "/" + name, ns: ns}
	// Plugins run in the namespaces of the goroutine that starts them, and the
	// record of attachments is the host's.
	err = host.Do(func() error {
		runtime := &libcni.RuntimeConf{ContainerID: host.Name() + "-" + name, NetNS: ns.Path(), IfName: "eth0"}
		answer, err := libcni.NewCNIConfig(p.dirs, nil).AddNetworkList(ctx, p.list, runtime)
		if err != nil {
			return err
		}
		result, err := current.NewResultFromResult(answer)
		if err != nil {
			return err
		}
		pod.Addresses, err = addressesOf(result)
		return err
	})
	if err != nil {
		return Pod{}, fmt.Errorf("attach pod %s: %w", pod.Name, err)
	}
	return pod, nil
}
