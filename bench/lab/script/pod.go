package script

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/weft-net/weft/bench/lab"
)

var podCommands = map[string]Command{
	"pod":   addPod,
	"unpod": removePod,
	"adopt": adoptPod,
}

// plainCNI is the configuration used when a script has none of its own.
const plainCNI = `{"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "delegate": {"isDefaultGateway": true}}`

func addPod(run *Run, args []string) error {
	if len(args) < 2 {
		return usage("pod HOST NAME [ADDRESS/LEN...]")
	}
	host, err := run.Host(args[0])
	if err != nil {
		return err
	}
	key := args[0] + "/" + args[1]
	if run.pods[key] != nil {
		return fmt.Errorf("pod %s is there already", key)
	}
	if len(args) > 2 {
		return run.addBarePod(host, key, args[1], args[2:])
	}
	namespace, err := host.NewNamespace(args[1])
	if err != nil {
		return err
	}
	run.pods[key] = namespace
	result, err := run.cni("ADD", args[0], namespace)
	if err != nil {
		return err
	}
	run.podAddrs[key], err = parseCNIResult(result)
	return err
}

func (r *Run) addBarePod(host *lab.Host, key, name string, words []string) error {
	prefixes, err := parsePrefixes(words)
	if err != nil {
		return err
	}
	pod, err := host.Pod(lab.PodConfig{Name: name, Addresses: prefixes})
	if err != nil {
		return err
	}
	r.pods[key] = pod
	for _, prefix := range prefixes {
		r.podAddrs[key] = append(r.podAddrs[key], prefix.Addr())
	}
	return nil
}

func removePod(run *Run, args []string) error {
	if len(args) != 2 {
		return usage("unpod HOST NAME")
	}
	key := args[0] + "/" + args[1]
	pod := run.pods[key]
	if pod == nil {
		return fmt.Errorf("no pod %q", key)
	}
	_, err := run.cni("DEL", args[0], pod)
	return err
}

// cni calls the plugin as a container runtime would and returns its result.
func (r *Run) cni(verb, host string, pod *lab.Namespace) ([]byte, error) {
	plugin, err := r.program("WEFT_CNI_BIN")
	if err != nil {
		return nil, err
	}
	plugins, err := r.program("CNI_PATH")
	if err != nil {
		return nil, err
	}
	config, err := os.ReadFile(filepath.Join(r.work, "cni.json"))
	if errors.Is(err, fs.ErrNotExist) {
		config, err = []byte(plainCNI), nil
	}
	if err != nil {
		return nil, err
	}
	cmd, err := r.command(r.ctx, host, []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + pod.Name(), "CNI_NETNS=" + pod.Path(),
		"CNI_IFNAME=eth0", "CNI_PATH=" + plugins, plugin,
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(config), &out, r.Stderr
	err = cmd.Run()
	r.Stdout.Write(out.Bytes())
	if err != nil {
		return nil, fmt.Errorf("CNI %s: %w: %s", verb, err, out.Bytes())
	}
	return out.Bytes(), nil
}

// adoptPod makes a pod of a network namespace that a program of the script has
// made and attached.
func adoptPod(run *Run, args []string) error {
	if len(args) != 3 {
		return usage("adopt HOST NAME FILE")
	}
	host, err := run.Host(args[0])
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(run.work, args[2]))
	if err != nil {
		return err
	}
	pid, result, _ := bytes.Cut(text, []byte("\n"))
	addrs, err := parseCNIResult(result)
	if err != nil {
		return err
	}
	key := args[0] + "/" + args[1]
	if run.pods[key], err = host.Adopt(args[1], fmt.Sprintf("/proc/%s/ns/net", pid)); err != nil {
		delete(run.pods, key)
		return err
	}
	run.podAddrs[key] = addrs
	return nil
}

func parseCNIResult(text []byte) (addrs []netip.Addr, err error) {
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(text, &result); err != nil {
		return nil, fmt.Errorf("parse CNI result: %w", err)
	}
	for _, ip := range result.IPs {
		addrs = append(addrs, ip.Address.Addr())
	}
	if len(addrs) == 0 {
		return nil, errors.New("the CNI result has no addresses")
	}
	return addrs, nil
}
