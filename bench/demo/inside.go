package demo

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-net/weft/bench/lab"
)

// podInside makes a pod as a container runtime does that an ordinary user runs,
// in the namespace of that user's agent. It says the number of a process in the
// pod, then what the plugin answers.
const podInside = `set -e
unshare --net sleep infinity >/dev/null 2>&1 &
while test "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)"; do sleep 0.01; done
echo $!
export CNI_COMMAND=ADD CNI_NETNS=/proc/$!/ns/net CNI_IFNAME=eth0
exec "$WEFT_CNI"`

// insideConfig is cniConfig as a runtime hands it to its plugin.
const insideConfig = `{"name": "weft", "cniVersion": "1.0.0", "type": "weft-cni", "delegate": {"isDefaultGateway": true, "hairpinMode": true}}`

// attachInside makes a pod on a rootless host.
func (d *Demo) attachInside(ctx context.Context, host *lab.Host, name string) (Pod, error) {
	pod, err := d.podInside(ctx, host, name)
	if err != nil {
		return Pod{}, fmt.Errorf("attach pod %s/%s: %w", host.Name(), name, err)
	}
	return pod, nil
}

func (d *Demo) podInside(ctx context.Context, host *lab.Host, name string) (Pod, error) {
	plugin, err := findPlugin("weft-cni", d.cfg.CNI)
	if err != nil {
		return Pod{}, err
	}
	argv := withoutRights(d.cfg.Weft, "netns", "exec", "--", "sh", "-c", podInside)
	cmd := host.Command(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "WEFT_CNI="+plugin, "CNI_PATH="+strings.Join(d.cfg.CNI, ":"), "CNI_CONTAINERID="+host.Name()+"-"+name)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(insideConfig), &stderr
	out, err := cmd.Output()
	if err != nil {
		return Pod{}, fmt.Errorf("%w: %s%s", err, out, stderr.String())
	}
	process, answer, _ := bytes.Cut(out, []byte("\n"))
	pod := Pod{Name: host.Name() + "/" + name}
	// Processes of a lab share one pid namespace, so that this number is good here.
	if pod.ns, err = host.Adopt(name, fmt.Sprintf("/proc/%s/ns/net", process)); err != nil {
		return Pod{}, err
	}
	result, err := current.NewResult(answer)
	if err != nil {
		return Pod{}, fmt.Errorf("read what weft-cni answers: %w", err)
	}
	pod.Addresses, err = addressesOf(result.(*current.Result))
	return pod, err
}

// addressesOf are a pod's addresses, IPv4 first.
func addressesOf(result *current.Result) (addresses []netip.Addr, err error) {
	for _, ip := range result.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("plugin answered with address %q", ip.Address.IP)
		}
		addresses = append(addresses, addr.Unmap())
	}
	if len(addresses) != len(networks) {
		return nil, fmt.Errorf("plugin answered with addresses %v, want one per family", addresses)
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return addresses, nil
}
