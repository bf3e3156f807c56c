//go:build e2e && linux

package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// users are who the demo must work for.
var users = []struct {
	name string
	id   uint32
}{{"root", 0}, {"nobody", 65534}}

// labCommand prepares weft-lab to run as a user with a home of its own.
func labCommand(t *testing.T, user uint32, args ...string) *exec.Cmd {
	t.Helper()
	program := install(t)
	if os.Geteuid() != 0 {
		t.Fatal("only root can test what the demo does for root and for others")
	}
	home, err := os.MkdirTemp("", "weft-demo-home-") // the parents of t.TempDir are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := filepath.Glob(home + "/*")
		if err != nil || len(left) > 0 {
			t.Errorf("files are left behind: %v %v", left, err)
		}
		os.RemoveAll(home)
	})
	if err := os.Chown(home, int(user), int(user)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home}
	cmd.Dir = home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	cmd.WaitDelay = time.Second
	return cmd
}

// needed is a variable that names something built.
func needed(t *testing.T, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s is not set: run `make e2e`", variable)
	}
	return path
}

// install lays the programs out as they are in a checkout, where every user
// may run them, and returns weft-lab.
func install(t *testing.T) string {
	t.Helper()
	root := publicDir(t)
	lab := needed(t, "WEFT_LAB_BIN")
	for _, name := range []string{"weft-lab", "weft", "weft-cni"} {
		copyTo(t, filepath.Join(filepath.Dir(lab), name), filepath.Join(root, "bin", name))
	}
	plugins := needed(t, "CNI_PATH")
	entries, err := os.ReadDir(plugins)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		copyTo(t, filepath.Join(plugins, entry.Name()), filepath.Join(root, ".cache", "cni", entry.Name()))
	}
	return filepath.Join(root, "bin", "weft-lab")
}

// public is a copy of a program that every user may run.
func public(t *testing.T, program string) string {
	t.Helper()
	path := filepath.Join(publicDir(t), filepath.Base(program))
	copyTo(t, program, path)
	return path
}

// publicDir is a directory that every user may enter; the parents of t.TempDir
// are root's alone.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-demo-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// copyTo links a program to another place, or copies it where that cannot be.
func copyTo(t *testing.T, from, to string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(to), 0o755)
	if err == nil && os.Link(from, to) != nil {
		var program []byte
		if program, err = os.ReadFile(from); err == nil {
			err = os.WriteFile(to, program, 0o755)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDemo(t *testing.T) {
	for _, user := range users {
		for _, store := range []string{"etcd", "kube"} {
			t.Run(user.name+"/"+store, func(t *testing.T) {
				args := []string{"demo", "--json"}
				if store == "kube" {
					args = append(args, "--kube="+public(t, needed(t, "WEFT_KUBE_BIN")))
				}
				cmd := labCommand(t, user.id, args...)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				start := time.Now()
				out, err := cmd.Output()
				t.Logf("took %s", time.Since(start))
				if err != nil {
					t.Fatalf("%v\n%s", err, stderr.String())
				}
				checkDocument(t, out)
			})
		}
	}
}

// checkDocument holds what the document promises, as a stranger would read it.
func checkDocument(t *testing.T, text []byte) {
	t.Helper()
	var document struct {
		Hosts []struct {
			Name, Engine, Device, Encap string
			Subnets                     []string
		}
		Reach []struct {
			From, To string
			OK       bool
			RTT      float64 `json:"rtt_us"`
		}
		Ports []struct {
			From, To, Over string
			OK             bool
			RTT            float64 `json:"rtt_us"`
		}
		Throughput []struct {
			From, To string
			Gbps     float64
		}
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&document); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if _, err := decoder.Token(); err != io.EOF {
		t.Errorf("more than one document: %v", err)
	}
	engines := map[string]string{}
	pods := 0
	for _, host := range document.Hosts {
		who := host.Engine + " " + host.Device
		if host.Name == "rootless" {
			who += " rootless"
		}
		engines[host.Name] = map[string]string{
			"kernel flannel.1,weft0,flannel-v6.1": "kernel", "userspace weft0": "userspace",
			"userspace weft0 rootless": "rootless", "userspace none": "netstack",
		}[who]
		if engines[host.Name] == "" || host.Encap != "vxlan" || len(host.Subnets) != 2 {
			t.Errorf("host is %+v", host)
		}
		if engines[host.Name] != "netstack" {
			pods += len(podsPerHost)
		}
	}
	if len(engines) != len(cast) {
		t.Errorf("%d hosts, want %d", len(engines), len(cast))
	}
	if got, want := len(document.Reach), (pods+1)*pods; got != want {
		t.Errorf("%d pairs of pods and the laptop, want %d", got, want)
	}
	if got, want := len(document.Ports), 3*pods; got != want {
		t.Errorf("%d ways by port and proxy, want %d", got, want)
	}
	for _, port := range document.Ports {
		if !port.OK || port.RTT <= 0 || port.Over == "" {
			t.Errorf("port %+v", port)
		}
	}
	for _, pair := range document.Reach {
		if !pair.OK || pair.RTT <= 0 || pair.From == pair.To {
			t.Errorf("reach %+v", pair)
		}
	}
	engineOf := func(pod string) string {
		host, _, _ := strings.Cut(pod, "/")
		return engines[host]
	}
	var kinds []string
	for _, stream := range document.Throughput {
		kinds = append(kinds, engineOf(stream.From)+"-"+engineOf(stream.To))
		if stream.Gbps < 0.01 { // a way that loses what TCP sends at once gets by with less
			t.Errorf("throughput %+v", stream)
		}
	}
	slices.Sort(kinds)
	if want := []string{"kernel-kernel", "kernel-netstack", "kernel-rootless", "kernel-userspace", "userspace-userspace"}; !slices.Equal(kinds, want) {
		t.Errorf("throughput of %v, want %v", kinds, want)
	}
}

// startUntil starts the demo and returns once its progress says want.
func startUntil(t *testing.T, cmd *exec.Cmd, want string) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fmt.Fprintln(&seen, lines.Text())
		if strings.Contains(lines.Text(), want) {
			go io.Copy(io.Discard, stdout) // until the demo ends
			return
		}
	}
	t.Fatalf("the demo ended before it said %q: %v\n%s", want, cmd.Wait(), seen.String())
}

// labOf lists the processes of the lab whose program pid is.
func labOf(t *testing.T, pid int) (members func() []int) {
	t.Helper()
	var space string
	for _, other := range processes(t) {
		if parent(other) == pid {
			space, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", other))
		}
	}
	if space == "" {
		t.Fatal("weft-lab has no child with a pid namespace")
	}
	return func() (members []int) {
		for _, other := range processes(t) {
			if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", other)); err == nil && link == space {
				members = append(members, other)
			}
		}
		return members
	}
}

func processes(t *testing.T) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parent is the parent of a process; 0 if it has ended.
func parent(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	var state string
	var ppid int
	if _, err := fmt.Sscan(rest, &state, &ppid); err != nil {
		return 0
	}
	return ppid
}

// TestNothingStays holds that any signal ends everything, also in the middle
// of the work.
func TestNothingStays(t *testing.T) {
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}
	for _, user := range users {
		for _, signal := range signals {
			t.Run(user.name+"/"+signal.String(), func(t *testing.T) {
				cmd := labCommand(t, user.id, "demo")
				startUntil(t, cmd, "agent runs on every host")
				members := labOf(t, cmd.Process.Pid)
				if n := len(members()); n < 2+len(cast) {
					t.Errorf("%d processes: that is not all of the lab", n)
				}
				if err := cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Wait(); err == nil {
					t.Error("an interrupted demo succeeds")
				}
				for deadline := time.Now().Add(10 * time.Second); len(members()) > 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("processes %v are left", members())
					}
				}
			})
		}
	}
}

func TestKeep(t *testing.T) {
	for _, user := range users {
		t.Run(user.name, func(t *testing.T) {
			cmd := labCommand(t, user.id, "demo", "--keep")
			startUntil(t, cmd, "stays up until")
			for place, host := range map[string]string{"kernel1": "kernel1", "user2/b": "user2"} {
				out, err := labCommand(t, user.id, "exec", place, "--", "sh", "-c", "hostname; id -u").CombinedOutput()
				if err != nil || string(out) != host+"\n0\n" {
					t.Errorf("exec %s: %v %q", place, err, out)
				}
			}
			out, err := labCommand(t, user.id, "exec", "kernel1", "weft", "status").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "kernel") {
				t.Errorf("status: %v %s", err, out)
			}
			out, err = labCommand(t, user.id, "exec", "kernel3").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "user2/b") {
				t.Errorf("exec in a place that is not there: %v %s", err, out)
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			out, err = labCommand(t, user.id, "exec", "kernel1").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "weft-lab demo --keep") {
				t.Errorf("exec after the end: %v %s", err, out)
			}
		})
	}
}

// TestExitCodes holds what is said, and the exit code, when the demo cannot work.
func TestExitCodes(t *testing.T) {
	program := install(t)
	tests := []struct {
		name    string
		command []string
		code    int
		want    string
	}{
		{"unknown flag", []string{program, "demo", "--jsn"}, 2, "--jsn"},
		{"stray argument", []string{program, "demo", "now"}, 2, `"now"`},
		{"broken agent", []string{program, "demo", "--weft=/bin/false"}, 1, "its agent has ended: exit status 1"},
		{"no agent", []string{program, "demo", "--weft=/nowhere/weft"}, 1, "make build"},
		{"no plugins", []string{program, "demo", "--cni=/nowhere"}, 1, "make build cni"},
		{"no namespaces", []string{"unshare", "-Ur", "sh", "-c", "echo 0 >/proc/sys/user/max_net_namespaces; exec " + program + " demo"}, 3, "max_net_namespaces"},
		{"in process without namespaces", []string{"unshare", "-Ur", "sh", "-c", "echo 0 >/proc/sys/user/max_net_namespaces; exec " + program + " demo --in-process --json"}, 0, "UDP sockets on loopback"},
		{"no TUN", []string{"unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net; exec " + program + " demo"}, 3, "/dev/net/tun"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := labCommand(t, 0)
			path, err := exec.LookPath(test.command[0])
			if err != nil {
				t.Fatal(err)
			}
			cmd.Path, cmd.Args = path, test.command
			var stdout bytes.Buffer
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("exit code %d, want %d and %q: %v\n%s", code, test.code, test.want, err, stderr.String())
			}
		})
	}
}
