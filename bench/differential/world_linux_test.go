package differential

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

func TestMain(m *testing.M) {
	if err := useOneCPU(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// useOneCPU makes this program, which is about to run itself in the lab, stay
// on one CPU. The kernel then has one queue for all packets, and none overtakes
// another.
func useOneCPU() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("get CPUs: %w", err)
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if allowed.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("use one CPU: %w", err)
	}
	return nil
}

// The two hosts that are compared.
const (
	kernelHost = iota
	engineHost
)

// podDevice joins a host to what stands for its pods.
const podDevice = "pods"

// world is two hosts that are alike but for the tunnel, each with a pod behind
// it, and their peer, on an underlay that cuts and sums everything: every
// packet is on the wire as it is.
type world struct {
	t    *testing.T
	peer *lab.Host
	network
	outer netip.Addr // of the peer
	hosts [2]*host
	// peerSocket has the peer's VXLAN port: what comes there is for taps alone.
	peerSocket int
}

// host is one that is compared.
type host struct {
	*lab.Host
	network
	t       *testing.T
	name    string
	pod     *lab.Host
	outer   netip.Addr
	device  string         // the tunnel's
	address tunnel.MAC     // of eth0
	router  tunnel.MAC     // of podDevice on the host
	engine  *engine.Engine // nil: the kernel
}

func newWorld(t *testing.T, n network, pods lab.Offload) *world {
	t.Helper()
	made := labtest.New(t)
	add := func(name string) *lab.Host {
		added, err := made.Host(lab.HostConfig{Name: name, NoDefaultRoute: true})
		if err == nil {
			err = added.Link(lab.LinkProps{Offload: lab.OffloadNone})
		}
		if err != nil {
			t.Fatal(err)
		}
		return added
	}
	w := &world{t: t, network: n, peer: add("peer")}
	w.outer = w.peer.Addr(n.outerFamily)
	w.openPeerSocket()
	for i, name := range []string{"kernel", "engine"} {
		h := &host{Host: add(name), t: t, name: name, pod: add(name + "-pod"), device: "flannel.7", network: n}
		h.outer = h.Addr(n.outerFamily)
		if i == engineHost {
			h.device = "weft0"
		}
		w.hosts[i] = h
		h.addPod(pods)
		h.addTunnel(w.outer)
	}
	return w
}

// addPod joins the pod to the host. It has all of the own subnet, and what
// belongs to nobody: whatever the host forwards is seen there.
func (h *host) addPod(offload lab.Offload) {
	h.t.Helper()
	err := h.Cross(h.pod, lab.CrossConfig{
		Device: podDevice, MTU: podMTU, Offload: offload,
		Addresses: [2]netip.Prefix{
			netip.PrefixFrom(own.address(1, true), 24), netip.PrefixFrom(own.address(2, true), 24),
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.run("ip addr add %v/120 dev %s nodad", own.address(1, false), podDevice)
	h.address, h.router = macOf(h.t, h.Namespace, "eth0"), macOf(h.t, h.Namespace, podDevice)
	for _, is4 := range []bool{true, false} {
		pod := own.address(2, is4)
		h.run("ip neigh replace %v lladdr %v dev %s nud permanent", pod, macOf(h.t, h.pod.Namespace, podDevice), podDevice)
		h.run("ip route add %v via %v dev %s", own.prefix(is4), pod, podDevice)
		h.run("ip route add %v via %v dev %s", alien.prefix(is4), pod, podDevice)
	}
}

// addTunnel makes the tunnel with its one peer: the kernel's as flannel does.
func (h *host) addTunnel(outerPeer netip.Addr) {
	h.t.Helper()
	if h.device == "weft0" {
		h.startEngine(outerPeer)
	} else {
		remote := ""
		if h.remote {
			remote = "remcsumtx remcsumrx"
		}
		h.run("ip link add %s address %v mtu %d type vxlan id %d local %v dev eth0 dstport %d nolearning udpcsum %s",
			h.device, ownMAC, h.mtu(), vni, h.outer, port, remote)
		h.run("ip link set %s up", h.device)
		h.run("bridge fdb add %v dst %v dev %s", peerMAC, outerPeer, h.device)
	}
	for _, is4 := range []bool{true, false} {
		self, gateway := own.address(0, is4), peer.address(0, is4)
		h.run("ip addr add %v/%d dev %s nodad", self, self.BitLen(), h.device)
		if h.engine != nil {
			h.run("ip route add %v dev %s src %v", peer.prefix(is4), h.device, self)
			continue
		}
		h.run("ip neigh add %v lladdr %v dev %s nud permanent", gateway, peerMAC, h.device)
		h.run("ip route add %v via %v dev %s onlink src %v", peer.prefix(is4), gateway, h.device, self)
	}
}

// startEngine runs the engine until the test ends.
func (h *host) startEngine(outerPeer netip.Addr) {
	h.t.Helper()
	logger := slog.New(slog.NewTextHandler(testLog{h.t}, nil))
	err := h.Do(func() (err error) {
		h.engine, err = openEngine(h.device, h.mtu(), netip.AddrPortFrom(h.outer, port), logger)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	var peers []tunnel.Peer
	var locals []tunnel.Local
	for _, is4 := range []bool{true, false} {
		locals = append(locals, tunnel.Local{Subnet: own.prefix(is4), MAC: ownMAC, VNI: vni})
		peers = append(peers, tunnel.Peer{
			Name: "peer", Prefixes: []netip.Prefix{peer.prefix(is4)}, MAC: peerMAC, VNI: vni, MTU: h.mtu(),
			Endpoint: netip.AddrPortFrom(outerPeer, port), RemoteChecksum: h.remote,
		}, tunnel.Peer{
			Name: "third", Prefixes: []netip.Prefix{third.prefix(is4)}, MAC: peerMAC, VNI: vni, MTU: h.mtu(),
			Endpoint: netip.AddrPortFrom(outerPeer.Next().Next(), port),
		})
	}
	if err := h.engine.SetPeers(peers); err != nil {
		h.t.Fatal(err)
	}
	if err := h.engine.SetLocals(locals); err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.engine.Run(ctx) }()
	h.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
}

// openEngine opens an engine in the calling thread's namespace.
func openEngine(device string, mtu int, listen netip.AddrPort, logger *slog.Logger) (*engine.Engine, error) {
	workers, err := datapath.Open(datapath.Config{Device: device, MTU: mtu, Listen: []netip.AddrPort{listen}, Logger: logger})
	if err != nil {
		return nil, err
	}
	return engine.New(engine.Config{Workers: workers, Logger: logger})
}

// testLog writes what the engine logs into the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

// run runs a command on the host.
func (h *host) run(command string, args ...any) {
	h.t.Helper()
	words := strings.Fields(fmt.Sprintf(command, args...))
	if out, err := h.Command(h.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		h.t.Fatalf("%s: %s: %v: %s", h.name, strings.Join(words, " "), err, out)
	}
}

func macOf(t *testing.T, where *lab.Namespace, device string) (mac tunnel.MAC) {
	t.Helper()
	err := where.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err == nil {
			mac = tunnel.MAC(link.HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}
