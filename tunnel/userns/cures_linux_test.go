package userns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCures: a switch that is off is named with what turns it on.
func TestCures(t *testing.T) {
	root := t.TempDir()
	if got := curesIn(root); !strings.Contains(got, "seccomp") || !strings.Contains(got, "kernel.apparmor_restrict_unprivileged_userns") {
		t.Errorf("nothing known is off: %s", got)
	}
	for _, s := range switches {
		path := root + s.path
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(s.forbids+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := curesIn(root); !strings.Contains(got, "as root, run: sysctl -w "+s.cure) {
			t.Errorf("%s is %s: %s", s.path, s.forbids, got)
		}
		if err := os.WriteFile(path, []byte("7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := curesIn(root); strings.Contains(got, "sysctl -w") {
			t.Errorf("%s is 7: %s", s.path, got)
		}
	}
}
