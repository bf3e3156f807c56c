package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/control/state"
)

// chain is the usual configuration, as in kube-flannel.yml, of a type.
func chain(plugin, version, extra string) string {
	return fmt.Sprintf(`{"name":"cbr0","cniVersion":%q,"plugins":[
		{"type":%q,"delegate":{"hairpinMode":true,"isDefaultGateway":true%s}},
		{"type":"portmap","capabilities":{"portMappings":true}}]}`, version, plugin, extra)
}

// node is a host with a container runtime: libcni.
type node struct {
	*testing.T
	world  *lab.Lab
	host   *lab.Host
	bin    string // where our plugins are
	cni    *libcni.CNIConfig
	list   *libcni.NetworkConfigList
	stderr bytes.Buffer // of all plugins
}

func newNode(t *testing.T, config string, env state.SubnetEnv) *node {
	t.Helper()
	world := labtest.New(t)
	n := &node{T: t, world: world, bin: t.TempDir()}
	n.host = labtest.Host(t, world, lab.HostConfig{Name: "node"})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"weft-cni", "flannel", "slow"} {
		if err := os.Symlink(self, filepath.Join(n.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	runner := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: &n.stderr}}
	n.cni = libcni.NewCNIConfig([]string{n.bin, os.Getenv(pluginsEnv)}, runner)
	if n.list, err = libcni.NetworkConfFromBytes([]byte(config)); err != nil {
		t.Fatal(err)
	}
	n.do(func() error { return state.WriteSubnetEnv(defaultSubnetFile, env) })
	return n
}

// do runs f on the node; its error ends the test.
func (n *node) do(f func() error) {
	n.Helper()
	if err := n.host.Do(f); err != nil {
		n.Fatal(err)
	}
}

// pod is a container's network namespace.
func (n *node) pod(name string) (*lab.Namespace, *libcni.RuntimeConf) {
	n.Helper()
	ns, err := n.host.NewNamespace(name)
	if err != nil {
		n.Fatal(err)
	}
	return ns, &libcni.RuntimeConf{ContainerID: name, NetNS: ns.Path(), IfName: "eth0"}
}

// add attaches and returns the addresses.
func (n *node) add(rt *libcni.RuntimeConf) (addrs []netip.Addr) {
	n.Helper()
	n.do(func() error {
		result, err := n.cni.AddNetworkList(context.Background(), n.list, rt)
		if err != nil {
			return err
		}
		current, err := types100.GetResult(result)
		if err != nil {
			return err
		}
		for _, ip := range current.IPs {
			addr, _ := netip.AddrFromSlice(ip.Address.IP)
			addrs = append(addrs, addr.Unmap())
		}
		return nil
	})
	return addrs
}

func (n *node) del(rt *libcni.RuntimeConf) {
	n.Helper()
	n.do(func() error { return n.cni.DelNetworkList(context.Background(), n.list, rt) })
}

// footprint is everything a CNI call can leave on the node.
func (n *node) footprint() (lines []string) {
	n.Helper()
	n.do(func() error {
		for _, dir := range []string{defaultDataDir, "/var/lib/cni/networks/cbr0", "/var/lib/cni/results"} {
			entries, err := os.ReadDir(dir)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			for _, entry := range entries {
				if name := entry.Name(); name != "lock" && !strings.HasPrefix(name, "last_reserved_ip") {
					lines = append(lines, dir+"/"+name)
				}
			}
		}
		return nil
	})
	for _, args := range [][]string{{"-br", "link"}, {"route"}, {"-6", "route"}} {
		out, err := n.host.Command(context.Background(), "ip", args...).Output()
		if err != nil {
			n.Fatalf("ip %v: %v", args, err)
		}
		for line := range strings.Lines(string(out)) {
			lines = append(lines, "ip "+strings.Fields(line)[0]) // whether it is up depends on the moment
		}
	}
	slices.Sort(lines)
	return lines
}

// same holds that nothing is on the node that was not there before. The bridge
// stays for the next pod, with the routes to it.
func (n *node) same(before []string) {
	n.Helper()
	bridge := []string{"ip cni0", "ip 10.244.1.0/24", "ip fd00:10:244:1::/64"}
	for _, line := range n.footprint() {
		if !slices.Contains(before, line) && !slices.Contains(bridge, line) {
			n.Errorf("left behind: %s", line)
		}
	}
}

func TestPods(t *testing.T) {
	for _, tt := range []struct {
		plugin, version string
		env             state.SubnetEnv
	}{
		{"weft-cni", "1.1.0", env46},
		{"flannel", "0.3.1", env4},
	} {
		t.Run(tt.plugin+" "+tt.version, func(t *testing.T) {
			n := newNode(t, chain(tt.plugin, tt.version, ""), tt.env)
			before := n.footprint()
			a, rtA := n.pod("pod-a")
			_, rtB := n.pod("pod-b")
			rtA.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}
			addrsA, addrsB := n.add(rtA), n.add(rtB)
			for i, subnet := range tt.env.Subnets {
				if !subnet.Contains(addrsA[i]) || !subnet.Contains(addrsB[i]) || addrsA[i] == addrsB[i] {
					t.Errorf("pods have %v and %v, want of %v", addrsA[i], addrsB[i], subnet)
				}
				for _, to := range []netip.Addr{addrsB[i], subnet.Addr().Next()} {
					if _, err := a.Ping(t.Context(), lab.Probe{To: to, Timeout: time.Minute}); err != nil {
						t.Error(err)
					}
				}
			}
			n.inPod(a, tt.env)
			n.throughPort(a, addrsA[0])
			if tt.version == "1.1.0" {
				n.do(func() error { return n.cni.CheckNetworkList(context.Background(), n.list, rtA) })
			}
			n.del(rtA)
			n.del(rtB)
			n.same(before)
			if n.stderr.Len() > 0 {
				t.Errorf("said on stderr: %s", &n.stderr)
			}
		})
	}
}

// inPod holds what the pod's own kernel says.
func (n *node) inPod(pod *lab.Namespace, env state.SubnetEnv) {
	n.Helper()
	out, err := pod.Command(n.Context(), "sh", "-c", "ip -o link show eth0; ip route; ip -6 route").Output()
	if err != nil {
		n.Fatal(err)
	}
	want := []string{fmt.Sprintf("mtu %d", env.MTU), "default via 10.244.1.1 dev eth0", "10.244.0.0/16 via 10.244.1.1"}
	if len(env.Subnets) > 1 {
		want = append(want, "default via fd00:10:244:1::1", "fd00:10:244::/56 via fd00:10:244:1::1")
	}
	for _, part := range want {
		if !strings.Contains(string(out), part) {
			n.Errorf("the pod has\n%s\nwant %q", out, part)
		}
	}
}

// throughPort reaches the pod by the node's port 8080 from outside.
func (n *node) throughPort(pod *lab.Namespace, addr netip.Addr) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), time.Minute)
	defer cancel()
	listener, err := pod.Listen(ctx, "tcp", netip.AddrPortFrom(addr, 80).String())
	if err != nil {
		n.Fatal(err)
	}
	defer listener.Close()
	outside := n.host.Addr(4)
	peer, err := n.world.Outside().Dial(ctx, "tcp", netip.AddrPortFrom(outside, 8080).String())
	if err != nil {
		n.Error(err)
		return
	}
	peer.Close()
}

func TestFiftyTimes(t *testing.T) {
	n := newNode(t, chain("weft-cni", "1.1.0", ""), env4)
	_, rt := n.pod("first")
	n.add(rt)
	n.del(rt)
	before := n.footprint()
	for i := range 50 {
		_, rt := n.pod(fmt.Sprintf("pod-%d", i))
		n.add(rt)
		for range 1 + i%3 {
			n.del(rt)
		}
	}
	if after := n.footprint(); !slices.Equal(after, before) {
		t.Errorf("after 50 pods there is\n%s\nwant\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

// TestFailedDelKeepsTheAddress takes the delegate away during DEL.
func TestFailedDelKeepsTheAddress(t *testing.T) {
	n := newNode(t, chain("weft-cni", "1.1.0", `,"type":"slow"`), env4)
	before := n.footprint()
	if err := os.Rename(filepath.Join(n.bin, "slow"), filepath.Join(n.bin, "away")); err != nil {
		t.Fatal(err)
	}
	bridge, err := exec.LookPath(filepath.Join(os.Getenv(pluginsEnv), "bridge"))
	if err != nil || os.Symlink(bridge, filepath.Join(n.bin, "slow")) != nil {
		t.Fatal(err)
	}
	_, rt := n.pod("pod-a")
	n.add(rt)
	if err := os.Rename(filepath.Join(n.bin, "slow"), filepath.Join(n.bin, "gone")); err != nil {
		t.Fatal(err)
	}
	err = n.host.Do(func() error { return n.cni.DelNetworkList(context.Background(), n.list, rt) })
	if err == nil || !strings.Contains(err.Error(), `failed to find plugin "slow"`) {
		t.Errorf("DEL without the delegate: %v", err)
	}
	if err := os.Rename(filepath.Join(n.bin, "gone"), filepath.Join(n.bin, "slow")); err != nil {
		t.Fatal(err)
	}
	n.del(rt)
	n.same(before)
}

// TestKilledAdd kills the plugin when its delegate has done everything and the
// runtime has heard nothing of it.
func TestKilledAdd(t *testing.T) {
	n := newNode(t, chain("weft-cni", "1.1.0", `,"type":"slow"`), env4)
	before := n.footprint()
	_, rt := n.pod("pod-a")
	add := n.host.Command(t.Context(), filepath.Join(n.bin, "weft-cni"))
	add.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+rt.ContainerID, "CNI_NETNS="+rt.NetNS, "CNI_IFNAME=eth0", "CNI_PATH="+n.bin+":"+os.Getenv(pluginsEnv))
	var config map[string]any
	if err := json.Unmarshal(n.list.Plugins[0].Bytes, &config); err != nil {
		t.Fatal(err)
	}
	config["name"], config["cniVersion"] = "cbr0", "1.1.0"
	stdin, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	add.Stdin, add.Stdout, add.Stderr = bytes.NewReader(stdin), &said, &said
	if err := add.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- add.Wait() }()
	n.do(func() error {
		for {
			if _, err := os.Stat("/run/slow"); err == nil || !os.IsNotExist(err) {
				return err
			}
			select {
			case err := <-ended:
				return fmt.Errorf("ADD ended too early: %w: %s", err, &said)
			case <-time.After(time.Millisecond):
			}
		}
	})
	if err := add.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if slices.Equal(n.footprint(), before) {
		t.Error("the killed ADD left nothing to clean up")
	}
	n.del(rt)
	n.same(before)
}

func TestStatusAndGC(t *testing.T) {
	ctx := context.Background()
	n := newNode(t, chain("weft-cni", "1.1.0", ""), env4)
	n.do(func() error { return n.cni.GetStatusNetworkList(ctx, n.list) })
	_, keep := n.pod("keep")
	n.add(keep)
	kept := n.footprint()
	_, stale := n.pod("stale")
	n.add(stale)
	n.do(func() error {
		// The runtime has forgotten it too, so that only our own file tells of it.
		if err := os.Remove("/var/lib/cni/results/cbr0-stale-eth0"); err != nil {
			return err
		}
		if err := os.Remove(stale.NetNS); err != nil && !strings.Contains(err.Error(), "busy") {
			return err
		}
		return n.cni.GCNetworkList(ctx, n.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "keep", IfName: "eth0"}}})
	})
	for _, line := range n.footprint() {
		if strings.HasPrefix(line, "/var/lib/cni") && !slices.Contains(kept, line) {
			t.Errorf("left after GC: %s", line)
		}
	}
	n.do(func() error { return n.cni.CheckNetworkList(ctx, n.list, keep) })
	n.del(keep)

	n.do(func() error { return os.Remove(defaultSubnetFile) })
	err := n.host.Do(func() error { return n.cni.GetStatusNetworkList(ctx, n.list) })
	if code(err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS without a lease: %v, want code 50", err)
	}
}

func TestLoopback(t *testing.T) {
	n := newNode(t, `{"name":"lo","cniVersion":"1.1.0","plugins":[{"type":"loopback"}]}`, env4)
	_, rt := n.pod("pod-a")
	rt.IfName = "lo"
	n.add(rt)
	n.del(rt)
}

func TestByHand(t *testing.T) {
	n := newNode(t, chain("weft-cni", "1.1.0", ""), env4)
	run := func(env ...string) (string, string) {
		command := exec.Command(filepath.Join(n.bin, "weft-cni"))
		command.Env = env
		var stdout, stderr bytes.Buffer
		command.Stdout, command.Stderr = &stdout, &stderr
		if err := command.Run(); err != nil {
			t.Error(err)
		}
		return stdout.String(), stderr.String()
	}
	if _, line := run(); !strings.HasPrefix(line, "CNI Plugin weft-cni version ") {
		t.Errorf("started by hand it says %q", line)
	}
	if versions, _ := run("CNI_COMMAND=VERSION"); !strings.Contains(versions, `"supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("VERSION says %s", versions)
	}
}
