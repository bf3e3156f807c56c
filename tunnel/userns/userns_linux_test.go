package userns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel/userns"
)

// Roles that the tests start this program in.
const (
	roleHold  = "hold"
	roleEnter = "enter" // DIR: enter the namespaces of DIR as ...
	roleSee   = "see"   // who tells what it sees
	roleBad   = "bad"   // say what Inside thinks of the environment
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		if role, ok := roles[os.Args[1]]; ok {
			if err := role(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

var roles = map[string]func(args []string) error{
	roleHold: func([]string) error {
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		return userns.Hold(ctx)
	},
	roleEnter: func(args []string) error {
		found, err := userns.Find(args[0])
		if err != nil {
			return err
		}
		self, err := os.Executable() // not /proc/self/exe: another program runs in between
		if err != nil {
			return err
		}
		return found.Enter([]string{self, roleSee}, os.Environ())
	},
	roleSee: func([]string) error {
		inner, err := userns.Inside()
		if err != nil || inner == nil {
			return fmt.Errorf("inside %v: %w", inner, err)
		}
		again, err := userns.Inside()
		if err != nil || again != nil {
			return fmt.Errorf("inside %v: %w", again, err)
		}
		return see(inner)
	},
	roleBad: func([]string) error {
		_, err := userns.Inside()
		return err
	},
}

// see prints the network namespace, where the process is and in there.
func see(inner *userns.Inner) error {
	var link string
	look := func() (err error) {
		link, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}
	for _, in := range []func(func() error) error{userns.OnThread, inner.Do, userns.OnThread} {
		if err := in(look); err != nil {
			return err
		}
		fmt.Println(link)
	}
	return inner.Exec([]string{"readlink", "/proc/self/ns/net"}, os.Environ())
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func config(t *testing.T, dir string) userns.Config {
	return userns.Config{Dir: dir, Hold: []string{self(t), roleHold}, Logger: slog.New(slog.DiscardHandler)}
}

// opened opens the namespaces of a directory, and says which network namespace it is.
func opened(t *testing.T, dir string) (network string, made bool) {
	t.Helper()
	n, err := userns.Open(t.Context(), config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Close(), userns.Stop(context.Background(), dir)); err != nil {
			t.Error(err)
		}
	})
	return networkOf(t, dir), n.Made()
}

func networkOf(t *testing.T, dir string) string {
	t.Helper()
	pid, err := userns.Holder(dir)
	if err != nil {
		t.Fatal(err)
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TestHold: the namespaces outlive who has made them, are found again, and end.
func TestHold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if _, err := userns.Find(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing was made: %v", err)
	}
	first, made := opened(t, dir)
	if again, madeAgain := opened(t, dir); !made || madeAgain || again != first {
		t.Errorf("made %t %s, then %t %s", made, first, madeAgain, again)
	}
	if err := userns.Stop(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := userns.Find(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was stopped: %v", err)
	}
	if err := userns.Stop(t.Context(), dir); err != nil {
		t.Errorf("stop twice: %v", err)
	}
	if _, made := opened(t, dir); !made {
		t.Error("found what was stopped")
	}
}

// TestFurnished: what has been made is a router with a loopback device.
func TestFurnished(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir)
	pid, err := userns.Holder(dir)
	if err != nil {
		t.Fatal(err)
	}
	enter := func(args ...string) string {
		t.Helper()
		args = append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid)}, args...)
		out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nsenter %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	if links := enter("ip", "link", "show"); !strings.Contains(links, "lo: <LOOPBACK,UP") || strings.Count(links, "mtu") != 1 {
		t.Errorf("links are\n%s", links)
	}
	if got := enter("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"); got != "1\n1\n" {
		t.Errorf("forwarding is %q", got)
	}
}

// TestOpenAtOnce: of many that open one directory at once, one makes the namespaces.
func TestOpenAtOnce(t *testing.T) {
	dir := t.TempDir()
	var group sync.WaitGroup
	made := make(chan bool, 8)
	for range cap(made) {
		group.Go(func() {
			n, err := userns.Open(t.Context(), config(t, dir))
			if err != nil {
				t.Error(err)
				return
			}
			made <- n.Made()
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	close(made)
	count := 0
	for m := range made {
		if m {
			count++
		}
	}
	if count != 1 {
		t.Errorf("%d made one", count)
	}
	if err := userns.Stop(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

// TestKilledHolder: a number that a killed holder left means nothing.
func TestKilledHolder(t *testing.T) {
	dir := t.TempDir()
	first, _ := opened(t, dir)
	pid, err := userns.Holder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for networkStays := true; networkStays; {
		_, err := userns.Find(dir)
		networkStays = !errors.Is(err, fs.ErrNotExist)
	}
	if again, made := opened(t, dir); !made || again == first {
		t.Errorf("made %t %s after %s", made, again, first)
	}
}

// TestEnter: a process that has entered is in the network namespace it was in,
// and gets into the other one.
func TestEnter(t *testing.T) {
	dir := t.TempDir()
	inner, _ := opened(t, dir)
	outer, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self(t), roleEnter, dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	if want := strings.Join([]string{outer, inner, outer, inner, ""}, "\n"); string(out) != want {
		t.Errorf("it was in\n%s, want\n%s", out, want)
	}
}

// TestOpenGiven: what is no network namespace of this user's is refused with its reason.
func TestOpenGiven(t *testing.T) {
	for path, want := range map[string]string{
		"/nowhere":          "no such file or directory",
		"/etc/passwd":       "this is no network namespace",
		"/proc/self/ns/mnt": "this is no network namespace",
		"/proc/self/ns/net": "the user namespace that this process is in",
	} {
		c := config(t, t.TempDir())
		c.Netns = path
		_, err := userns.Open(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, userns.ErrUnavailable) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}

// TestOpenErrors: what is in the way is named.
func TestOpenErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), dangling); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change      func(*userns.Config)
		want        string
		unavailable bool
	}{
		"a file":     {func(c *userns.Config) { c.Dir = file }, "not a directory", false},
		"a link":     {func(c *userns.Config) { c.Dir = dangling }, "is not a directory of this user", false},
		"no program": {func(c *userns.Config) { c.Hold = []string{"/nowhere"} }, "no such file", true},
		"it fails":   {func(c *userns.Config) { c.Hold = []string{"/bin/sh", "-c", "echo bad >&4"} }, "bad", true},
	} {
		c := config(t, t.TempDir())
		test.change(&c)
		_, err := userns.Open(t.Context(), c)
		if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, userns.ErrUnavailable) != test.unavailable {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

// TestNumberOfHolder: a lock that is held by something else is not believed.
func TestNumberOfHolder(t *testing.T) {
	for text, want := range map[string]string{"x\n": "is no process number", "1\n": "is no process number", "-5\n": "is no process number", "": "nobody holds one"} {
		dir := t.TempDir()
		lock, err := os.OpenFile(filepath.Join(dir, "netns.pid"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lock.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if _, err := userns.Holder(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		lock.Close()
	}
}

// TestInsideErrors: an environment that says it should be inside, and is not.
func TestInsideErrors(t *testing.T) {
	for text, want := range map[string]string{
		"": "two descriptors", "x,y": "two descriptors", "0,1": "two descriptors", "3": "descriptor", "5000,5001": "bad file descriptor",
		"3,3,3": "descriptor", "3,3": "no network namespace",
	} {
		cmd := exec.CommandContext(t.Context(), self(t), roleBad)
		cmd.Env = append(os.Environ(), "WEFT_USERNS="+text)
		cmd.ExtraFiles = []*os.File{devNull(t)}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "unset it") {
			t.Errorf("%q: %s, want %s", text, out, want)
		}
	}
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// TestOnThread: what a function does to its thread is seen by nobody else.
func TestOnThread(t *testing.T) {
	count := func() int {
		all, err := net.Interfaces()
		if err != nil {
			t.Error(err)
		}
		return len(all)
	}
	before := count()
	for range 20 {
		if err := userns.OnThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
			t.Fatal(err)
		}
	}
	if after := count(); after != before {
		t.Errorf("%d interfaces became %d", before, after)
	}
}
