//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the init program of a user-mode Linux guest: a host with a real
// kernel of its own, without VXLAN. It sets the guest up, runs weft and a pod
// in it, and answers the test over HTTP.

// The guest's settings come as kernel arguments, which init gets as its environment.
const (
	guestVar     = "WEFT_GUEST"      // address/length of the guest's interface; marks the guest's init
	guestEtcdVar = "WEFT_GUEST_ETCD" // etcd endpoint
	guestPodVar  = "WEFT_GUEST_POD"  // marks the process in the guest's pod
	guestPort    = 8099              // of the control server, and of the pod's echo service
	guestModules = "/usr/lib/uml/modules/*/modules.dep"
)

// guestNeeds are the modules of the guest's kernel a host with pods needs; vxlan
// is not among them on purpose.
var guestNeeds = []string{"tun.ko", "bridge.ko", "veth.ko"}

// runGuest takes the process over where it is a guest's init or pod.
func runGuest() {
	switch {
	case os.Getenv(guestPodVar) != "":
		fmt.Fprintln(os.Stderr, "pod ends:", servePod())
		os.Exit(1)
	case os.Getpid() == 1 && os.Getenv(machineVar) != "":
		runMachine()
	case os.Getpid() == 1 && os.Getenv(guestVar) != "":
		fmt.Println("guest ends:", serveGuest())
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			fmt.Println("power off:", err)
		}
	}
}

// serveGuest sets the guest up and serves until it is told to end.
func serveGuest() error {
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	for _, m := range []struct{ target, kind string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/run", "tmpfs"}, {"/var/lib", "tmpfs"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	for _, line := range []string{
		"ip link set lo up",
		"ip addr add " + os.Getenv(guestVar) + " dev vec0",
		"ip link set vec0 up",
		"ip route add default dev vec0",
		"ip netns add pod",
	} {
		if err := guestRun(line); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	agent := exec.Command(os.Getenv("WEFT_BIN"), "agent", "--engine=auto", "--etcd-endpoints="+os.Getenv(guestEtcdVar))
	agent.Stdout, agent.Stderr = os.Stdout, os.Stdout
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	return serveControl()
}

// loadModules loads guestNeeds, each after what it depends on.
func loadModules() error {
	lists, err := filepath.Glob(guestModules)
	if err != nil || len(lists) != 1 {
		return fmt.Errorf("find %s: %v: install user-mode-linux", guestModules, lists)
	}
	text, err := os.ReadFile(lists[0])
	if err != nil {
		return err
	}
	// A line is "PATH: WHAT IT NEEDS...", what is needed first last.
	for line := range strings.Lines(string(text)) {
		path, needs, _ := strings.Cut(line, ":")
		if !slices.Contains(guestNeeds, filepath.Base(path)) {
			continue
		}
		for _, path := range slices.Backward(append([]string{path}, strings.Fields(needs)...)) {
			if err := loadModule(filepath.Join(filepath.Dir(lists[0]), path)); err != nil {
				return err
			}
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

func guestRun(line string) error {
	words := strings.Fields(line)
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// serveControl answers the test: /status is the agent's, /pod attaches the
// guest's pod, /reach asks an echo service from within the pod.
func serveControl() error {
	answer := func(pattern string, f func(*http.Request) ([]byte, error)) {
		http.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			out, err := f(r)
			if err != nil {
				http.Error(w, fmt.Sprintf("%v: %s", err, out), http.StatusInternalServerError)
				return
			}
			w.Write(out)
		})
	}
	answer("/status", func(*http.Request) ([]byte, error) {
		return exec.Command(os.Getenv("WEFT_BIN"), "status", "-o", "json").CombinedOutput()
	})
	answer("/modules", func(*http.Request) ([]byte, error) { return os.ReadFile("/proc/modules") })
	answer("/pod", func(*http.Request) ([]byte, error) { return attachGuestPod() })
	answer("/reach", func(r *http.Request) ([]byte, error) {
		return guestPod("reach", r.URL.Query().Get("to")).CombinedOutput()
	})
	return http.ListenAndServe(fmt.Sprintf(":%d", guestPort), nil)
}

// attachGuestPod gives the pod its interface by weft-cni and starts its echo service.
func attachGuestPod() ([]byte, error) {
	add := exec.Command(os.Getenv("WEFT_CNI_BIN"))
	add.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID=pod", "CNI_NETNS=/run/netns/pod", "CNI_IFNAME=eth0")
	add.Stdin = strings.NewReader(`{"cniVersion":"1.0.0","name":"cbr0","type":"weft-cni","delegate":{"isDefaultGateway":true,"ipMasq":false}}`)
	var out, stderr bytes.Buffer
	add.Stdout, add.Stderr = &out, &stderr
	if err := add.Run(); err != nil {
		return append(out.Bytes(), stderr.Bytes()...), err
	}
	echo := guestPod("echo", "")
	echo.Stdout, echo.Stderr = os.Stdout, os.Stdout
	return out.Bytes(), echo.Start()
}

// guestPod prepares this program to act inside the pod.
func guestPod(role, to string) *exec.Cmd {
	cmd := exec.Command("ip", "netns", "exec", "pod", "/proc/1/exe", to)
	cmd.Env = append(os.Environ(), guestPodVar+"="+role)
	return cmd
}

// servePod runs inside the guest's pod: an echo service, or one who asks another.
func servePod() error {
	if os.Getenv(guestPodVar) == "reach" {
		to, err := netip.ParseAddrPort(os.Args[1])
		if err != nil {
			return err
		}
		for _, network := range []string{"tcp", "udp"} {
			if err := askEcho(network, to); err != nil {
				return fmt.Errorf("%s: %w", network, err)
			}
		}
		fmt.Println("ok")
		os.Exit(0)
	}
	packets, err := net.ListenPacket("udp", fmt.Sprintf(":%d", guestPort))
	if err != nil {
		return err
	}
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := packets.ReadFrom(buffer)
			if err != nil {
				return
			}
			packets.WriteTo(buffer[:n], from)
		}
	}()
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", guestPort))
	if err != nil {
		return err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

// askEcho sends 256 KiB over TCP, or 1000 bytes over UDP, and wants them back.
func askEcho(network string, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchange(conn, map[string]int{"tcp": 256 << 10, "udp": 1000}[network])
}

// exchange sends size bytes on conn and wants the same back.
func exchange(conn net.Conn, size int) error {
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	sent := bytes.Repeat([]byte("weft "), size/5+1)[:size]
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	_, err := io.ReadFull(conn, got)
	if err = errors.Join(err, <-failed); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

// cniAddress reads the address a CNI result gives.
func cniAddress(result []byte) (netip.Addr, error) {
	var parsed struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(result, &parsed); err != nil {
		return netip.Addr{}, fmt.Errorf("read CNI result: %w", err)
	}
	if len(parsed.IPs) == 0 {
		return netip.Addr{}, fmt.Errorf("no address in CNI result %s", result)
	}
	return parsed.IPs[0].Address.Addr(), nil
}
