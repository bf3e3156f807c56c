package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
		found := slices.ContainsFunc(dirs, func(dir string) bool {
			info, err := os.Stat(filepath.Join(dir, name))
			return err == nil && info.Mode().IsRegular()
		})
		if !found {
			return plugins{}, fmt.Errorf("look for CNI plugin %s in %s: not there; run: make build cni", name, strings.Join(dirs, ", "))
		}
	}
	list, err := libcni.NetworkConfFromBytes([]byte(cniConfig))
	if err != nil {
		return plugins{}, fmt.Errorf("read CNI configuration: %w", err)
	}
	return plugins{dirs: dirs, list: list}, nil
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
		for _, ip := range result.IPs {
			addr, ok := netip.AddrFromSlice(ip.Address.IP)
			if !ok {
				return fmt.Errorf("plugin answered with address %q", ip.Address.IP)
			}
			pod.Addresses = append(pod.Addresses, addr.Unmap())
		}
		if len(pod.Addresses) != len(networks) {
			return errors.New("plugin answered with addresses " + fmt.Sprint(pod.Addresses) + ", want one per family")
		}
		return nil
	})
	if err != nil {
		return Pod{}, fmt.Errorf("attach pod %s: %w", pod.Name, err)
	}
	slices.SortFunc(pod.Addresses, netip.Addr.Compare) // IPv4 first
	return pod, nil
}
