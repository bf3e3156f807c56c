package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// parentVariable makes TestChildDiesWithParent play the parent.
const parentVariable = "CLUSTER_TEST_PARENT"

// TestChildDiesWithParent holds that SIGKILL of this process leaves no child,
// and that the end of one of its threads does not kill any.
func TestChildDiesWithParent(t *testing.T) {
	if log := os.Getenv(parentVariable); log != "" {
		playParent(t, log)
		return
	}
	parent := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithParent$", "-test.v")
	parent.Env = append(os.Environ(), parentVariable+"="+filepath.Join(t.TempDir(), "child.log"))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for lines := bufio.NewScanner(out); child == 0 && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "child "); ok {
			if child, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if child == 0 {
		t.Fatal("the parent told of no child")
	}
	if err := syscall.Kill(child, 0); err != nil {
		t.Fatalf("the child died before its parent: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := parent.Wait(); err == nil {
		t.Fatal("the parent was not killed")
	}
	for deadline := time.Now().Add(10 * time.Second); running(t, child); {
		if time.Now().After(deadline) {
			t.Fatalf("child %d outlived its parent", child)
		}
		runtime.Gosched()
	}
}

// playParent starts a child, ends as many threads as it can, and waits to be
// killed.
func playParent(t *testing.T, log string) {
	s := newSpawner()
	p, err := s.start("sleep", log, exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	var locked, ended sync.WaitGroup
	for range 50 { // more than there are threads: every idle one is taken
		locked.Add(1)
		ended.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
			locked.Done()
			locked.Wait()
		})
	}
	ended.Wait()
	if p.exited() {
		t.Fatal(p.failure())
	}
	fmt.Printf("\nchild %d\n", p.cmd.Process.Pid)
	select {}
}

// running reports whether the process exists and is not a zombie that nobody
// has waited for.
func running(t *testing.T, pid int) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) {
		return false
	} else if err != nil {
		return !errors.Is(err, syscall.ESRCH)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}
