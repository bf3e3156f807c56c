package lab

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(helperEnv); role != "" {
		os.Exit(helper(role))
	}
	MustEnter()
	goleak.VerifyTestMain(m)
}

func newLab(t *testing.T) *Lab {
	t.Helper()
	world, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	return world
}

func newHost(t *testing.T, world *Lab, config HostConfig) *Host {
	t.Helper()
	host, err := world.Host(config)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

func ping(t *testing.T, from *Namespace, probe Probe, tries int) error {
	t.Helper()
	probe.Timeout = 300 * time.Millisecond
	var err error
	for range tries {
		if _, err = from.Ping(t.Context(), probe); err == nil {
			return nil
		}
	}
	return err
}

func mustPing(t *testing.T, from *Namespace, to netip.Addr) {
	t.Helper()
	if err := ping(t, from, Probe{To: to}, 10); err != nil {
		t.Error(err)
	}
}

func TestHostsReachEachOther(t *testing.T) {
	world := newLab(t)
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b"})
	if got, want := b.Addr(4), netip.MustParseAddr("192.168.64.2"); got != want {
		t.Errorf("second host has %s, want %s", got, want)
	}
	if got, want := b.Addr(6), netip.MustParseAddr("fd64::2"); got != want {
		t.Errorf("second host has %s, want %s", got, want)
	}
	router := world.Switches()[0]
	for _, family := range []int{4, 6} {
		mustPing(t, a.Namespace, b.Addr(family))
		mustPing(t, a.Namespace, router.Router(family))
		mustPing(t, world.Outside(), a.Addr(family))
	}
}

func TestRoutedSwitches(t *testing.T) {
	world := newLab(t)
	far, err := world.Switch(SwitchConfig{Name: "far", Prefixes: []netip.Prefix{
		netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("fd07::/64"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b", Switch: far})
	for _, family := range []int{4, 6} {
		mustPing(t, a.Namespace, b.Addr(family))
	}
	if err := a.Attach(far, nil); err != nil {
		t.Fatal(err)
	}
	mustPing(t, b.Namespace, netip.MustParseAddr("10.7.0.2"))
}

func TestCommand(t *testing.T) {
	world := newLab(t)
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b"})
	for _, host := range []*Host{a, b} {
		cmd := host.Command(t.Context(), "sh", "-c", `hostname; id -u; pwd; echo "$FROM" > /run/x; cat /run/x; echo k > /etc/cni/x; echo > /var/lib/weft/x; exit 7`)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "FROM=from "+host.Name())
		out, err := cmd.Output()
		if cmd.ProcessState.ExitCode() != 7 {
			t.Errorf("exit code lost: %v", err)
		}
		want := host.Name() + "\n0\n" + cmd.Dir + "\nfrom " + host.Name() + "\n"
		if string(out) != want {
			t.Errorf("on host %s: got %q, want %q", host.Name(), out, want)
		}
	}
	if _, err := os.Stat("/run/x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a host's /run shows outside: %v", err)
	}
	err := b.Do(func() error {
		text, err := os.ReadFile("/run/x")
		if string(text) != "from b\n" {
			t.Errorf("Do sees %q in the host's /run", text)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := a.Command(t.Context(), "no-such-program").CombinedOutput(); err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("a missing program: %v %s", err, out)
	}
}

// Connections that begin in a lab are not paced by a timer.
func TestNothingPacesConnections(t *testing.T) {
	host := newHost(t, newLab(t), HostConfig{Name: "host1"})
	var control []byte
	err := host.Do(func() (err error) {
		control, err = os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		return err
	})
	if name := strings.TrimSpace(string(control)); err != nil || name != "cubic" && name != "reno" {
		t.Errorf("a new host has the congestion control %q, %v, want cubic or reno", name, err)
	}
}

// The test must do no harm where it fails: it opens for writing, and writes
// nothing.
func TestMachineFilesAreReadOnly(t *testing.T) {
	world := newLab(t)
	a := newHost(t, world, HostConfig{Name: "a"})
	err := a.Do(func() error {
		if _, err := os.ReadFile("/etc/passwd"); err != nil {
			t.Error(err)
		}
		file, err := os.OpenFile("/etc/passwd", os.O_WRONLY, 0)
		if err == nil {
			file.Close()
		}
		return err
	})
	// As an ordinary user of the machine it is also not ours to write.
	if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("a host may write the machine's files: %v", err)
	}
}

func TestPods(t *testing.T) {
	world := newLab(t)
	a := newHost(t, world, HostConfig{Name: "a"})
	var pods []*Namespace
	for i, last := range []string{"2", "3"} {
		pod, err := a.Pod(PodConfig{Name: "p" + last, Addresses: []netip.Prefix{
			netip.MustParsePrefix("10.244.1." + last + "/24"), netip.MustParsePrefix("fd10:1::" + last + "/64"),
		}})
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			mustPing(t, pods[0], netip.MustParseAddr("10.244.1."+last))
			mustPing(t, pods[0], netip.MustParseAddr("fd10:1::"+last))
		}
		pods = append(pods, pod)
	}
	mustPing(t, pods[1], a.Addr(4))
	// Programs on the host can use the pod's path.
	cmd := a.Command(t.Context(), "test", "-e", filepath.Join("/run/netns", "p2"))
	if err := cmd.Run(); err != nil || pods[0].Path() != "/run/netns/p2" {
		t.Errorf("namespace file %s: %v", pods[0].Path(), err)
	}
}

func TestLinkProperties(t *testing.T) {
	world := newLab(t)
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b"})
	set := func(props LinkProps) {
		t.Helper()
		if err := b.Link(props); err != nil {
			t.Fatal(err)
		}
	}
	for _, props := range []LinkProps{{Down: true}, {LossPercent: 100}} {
		set(props)
		for _, family := range []int{4, 6} {
			if err := ping(t, a.Namespace, Probe{To: b.Addr(family)}, 2); err == nil {
				t.Errorf("%+v: host reached over IPv%d", props, family)
			}
		}
		set(LinkProps{})
		for _, family := range []int{4, 6} {
			mustPing(t, a.Namespace, b.Addr(family))
		}
	}
	set(LinkProps{MTU: 1300})
	for payload, fits := range map[int]bool{1300 - 28: true, 1300 - 27: false} {
		err := ping(t, b.Namespace, Probe{To: a.Addr(4), PayloadBytes: payload, DontFragment: true}, 2)
		if (err == nil) != fits {
			t.Errorf("MTU 1300, payload %d: %v", payload, err)
		}
	}
	set(LinkProps{LossPercent: 30})
	lost := 0
	for range 200 {
		if _, err := a.Ping(t.Context(), Probe{To: b.Addr(4), Timeout: 20 * time.Millisecond}); err != nil {
			lost++
		}
	}
	// Both directions lose: 1 - 0.7^2 = 0.51.
	if lost < 60 || lost == 200 {
		t.Errorf("lost %d of 200 at 30%% each way", lost)
	}
}

func TestThroughputFollowsRate(t *testing.T) {
	world := newLab(t)
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b"})
	if err := b.Link(LinkProps{RateBits: 20_000_000}); err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]*Host{{a, b}, {b, a}} {
		gbps, err := Throughput(t.Context(), pair[0].Namespace, pair[1].Namespace, pair[1].Addr(4), time.Second)
		if err != nil || gbps > 0.04 {
			t.Errorf("%.4f Gbit/s over a link of 0.02: %v", gbps, err)
		}
	}
	for _, offload := range []Offload{OffloadFull, OffloadChecksum, OffloadNone} {
		for _, host := range []*Host{a, b} {
			if err := host.Link(LinkProps{Offload: offload}); err != nil {
				t.Fatal(err)
			}
		}
		gbps, err := Throughput(t.Context(), a.Namespace, b.Namespace, b.Addr(6), 300*time.Millisecond)
		if err != nil || gbps <= 0 {
			t.Errorf("offload %s: %.4f Gbit/s: %v", offload, gbps, err)
		}
		t.Logf("offload %s: %.2f Gbit/s", offload, gbps)
	}
}

func TestEcho(t *testing.T) {
	world := newLab(t)
	a, b := newHost(t, world, HostConfig{Name: "a"}), newHost(t, world, HostConfig{Name: "b"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, family := range []int{4, 6} {
		addr, err := b.Echo(ctx, netip.AddrPortFrom(b.Addr(family), 0))
		if err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"tcp", "udp"} {
			conn, err := a.Dial(ctx, network, addr.String())
			if err != nil {
				t.Error(err)
				continue
			}
			io.WriteString(conn, "hello")
			buffer := make([]byte, 5)
			if _, err := io.ReadFull(conn, buffer); err != nil || string(buffer) != "hello" {
				t.Errorf("%s echo: %q %v", network, buffer, err)
			}
			conn.Close()
		}
	}
}

func TestBadConfig(t *testing.T) {
	world := newLab(t)
	a := newHost(t, world, HostConfig{Name: "a"})
	host := func(config HostConfig) error { _, err := world.Host(config); return err }
	for want, err := range map[string]error{
		"1 to 15 characters": host(HostConfig{Name: "a-name-that-is-too-long"}),
		"made of a-z":        host(HostConfig{Name: "A b"}),
		"is taken":           host(HostConfig{Name: "a"}),
		"LossPercent 101":    a.Link(LinkProps{LossPercent: 101}),
		"MTU 20":             a.Link(LinkProps{MTU: 20}),
		"RateBits 1":         a.Link(LinkProps{RateBits: 1}),
		`Offload "half"`:     a.Link(LinkProps{Offload: "half"}),
		"belongs to the bridge": func() error {
			_, err := a.Pod(PodConfig{Name: "p", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}})
			return err
		}(),
		"not a file name": func() error { _, err := a.NewNamespace("../x"); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want it to say %q", err, want)
		}
	}
}
