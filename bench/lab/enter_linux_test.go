package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test binary play a program that uses the lab.
const helperEnv = "LAB_TEST_HELPER"

func helper(role string) int {
	switch role {
	case "no-namespaces": // in a user namespace of its own, so that nobody else is concerned
		for _, name := range []string{"user", "net"} {
			if err := os.WriteFile("/proc/sys/user/max_"+name+"_namespaces", []byte("0"), 0); err != nil {
				fmt.Println(err)
				return 1
			}
		}
	case "no-tun":
		if err := unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	if err := Enter(); err != nil {
		fmt.Println(err)
		return 1
	}
	switch role {
	case "exit":
		return 7
	case "identity":
		return printIdentity()
	case "signal":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM)
		fmt.Println("ready")
		fmt.Println(<-signals)
		return 9
	case "crash":
		unix.Kill(unix.Getpid(), unix.SIGKILL)
	case "stay":
		return stay()
	}
	return 1
}

// printIdentity prints what must not depend on who runs the lab.
func printIdentity() int {
	links, err := devices()
	fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "devices", len(links), err)
	fmt.Println("write /run", os.WriteFile("/run/x", nil, 0o600))
	// Orphans go to the init and not to this process.
	err = exec.Command("sh", "-c", "(sleep 0.01; exit 5) & exit 3").Run()
	fmt.Println("child", err)
	return 0
}

// stay makes a host, leaves a daemon on it and waits.
func stay() int {
	world, err := New(Config{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	host, err := world.Host(HostConfig{Name: "a"})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	daemon := host.Command(context.Background(), "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & setsid sleep 1000 >/dev/null 2>&1")
	if err := daemon.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	// Until a signal ends it: an empty select is a deadlock without cgo.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR2)
	<-signals
	return 0
}

// users are those that the test can play: itself, and an ordinary one if this
// is the machine's root.
func users() map[string]*syscall.SysProcAttr {
	users := map[string]*syscall.SysProcAttr{"self": {}}
	if machineRoot() {
		users["nobody"] = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return users
}

// machineRoot says whether ids mean the same here and on the machine.
func machineRoot() bool {
	ids, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && slices.Equal(strings.Fields(string(ids)), []string{"0", "0", "4294967295"})
}

func startHelper(t *testing.T, role string, attr *syscall.SysProcAttr) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"helper"}
	cmd.Dir = "/"
	cmd.Env = []string{helperEnv + "=" + role, "PATH=" + os.Getenv("PATH"), "MARK=" + t.Name()}
	cmd.SysProcAttr = attr
	complaints := &bytes.Buffer{}
	cmd.Stderr = complaints
	cmd.WaitDelay = time.Second // survivors, which there must not be, hold it open
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: %s", role, complaints)
		}
	})
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// lines reads up to and including a line.
func lines(out *bufio.Scanner, last string) (got []string) {
	for out.Scan() {
		if out.Text() == last {
			return append(got, last)
		}
		got = append(got, out.Text())
	}
	return got
}

func TestEnterLooksTheSameToAll(t *testing.T) {
	want := "uid 0 gid 0 devices 0 <nil>\nwrite /run <nil>\nchild exit status 3"
	for name, attr := range users() {
		cmd, out := startHelper(t, "identity", attr)
		if got := strings.Join(lines(out, ""), "\n"); got != want {
			t.Errorf("%s sees\n%s\nwant\n%s", name, got, want)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnterPassesEndsOn(t *testing.T) {
	for name, attr := range users() {
		for role, want := range map[string]int{"exit": 7, "crash": 128 + 9, "signal": 9} {
			cmd, out := startHelper(t, role, attr)
			if role == "signal" {
				lines(out, "ready")
				cmd.Process.Signal(unix.SIGTERM)
				if got := lines(out, "terminated"); len(got) != 1 {
					t.Errorf("%s: the program saw %q", name, got)
				}
			}
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != want {
				t.Errorf("%s, %s: exit code %d, want %d", name, role, got, want)
			}
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	for name, attr := range users() {
		for _, sig := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGHUP, unix.SIGSEGV} {
			cmd, out := startHelper(t, "stay", attr)
			if got := lines(out, "ready"); len(got) != 1 {
				t.Fatalf("%s: the program said %q", name, got)
			}
			// Its init, the program, the shell and the daemons.
			awaitProcesses(t, "MARK="+t.Name(), func(n int) bool { return n >= 6 })
			cmd.Process.Signal(sig)
			cmd.Wait()
			awaitProcesses(t, "MARK="+t.Name(), func(n int) bool { return n == 0 })
		}
	}
}

// A stopped process cannot notice anything: the kernel must end it.
func TestNothingIsLeftOfStopped(t *testing.T) {
	cmd, out := startHelper(t, "stay", &syscall.SysProcAttr{})
	lines(out, "ready")
	for _, pid := range marked(t, "MARK="+t.Name()) {
		unix.Kill(pid, unix.SIGSTOP)
	}
	cmd.Process.Kill()
	cmd.Wait()
	awaitProcesses(t, "MARK="+t.Name(), func(n int) bool { return n == 0 })
}

// marked lists the processes, in all pid namespaces below, with a variable.
func marked(t *testing.T, variable string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		env, err := os.ReadFile(file)
		if err == nil && bytes.Contains(env, []byte(variable)) {
			var pid int
			fmt.Sscanf(file, "/proc/%d/", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func awaitProcesses(t *testing.T, variable string, enough func(int) bool) {
	t.Helper()
	var pids []int
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if pids = marked(t, variable); enough(len(pids)) {
			return
		}
	}
	t.Fatalf("processes: %v", pids)
}

func TestEnterSaysWhatIsMissing(t *testing.T) {
	own := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
	}
	for role, want := range map[string][]string{
		"no-namespaces": {"no space left on device", "/proc/sys/user/max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=", "user.max_net_namespaces"},
		"no-tun":        {"/dev/net/tun: no such file", "modprobe tun"},
	} {
		cmd, out := startHelper(t, role, own())
		got := strings.Join(lines(out, ""), "\n")
		for _, part := range want {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q does not say %q", role, got, part)
			}
		}
		cmd.Wait()
	}
	err := explain(&os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.EACCES})
	if !strings.Contains(err.Error(), "chmod 0666 /dev/net/tun") {
		t.Error(err)
	}
}
