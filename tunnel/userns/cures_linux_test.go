package userns

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestCures: a setting that forbids namespaces is named with what allows them.
func TestCures(t *testing.T) {
	for path, test := range map[string]struct{ value, cure string }{
		"/proc/sys/user/max_user_namespaces":                     {"0", "user.max_user_namespaces=10000"},
		"/proc/sys/user/max_net_namespaces":                      {"0", "user.max_net_namespaces=10000"},
		"/proc/sys/kernel/unprivileged_userns_clone":             {"0", "kernel.unprivileged_userns_clone=1"},
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": {"1", "kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(root+path), 0o700); err != nil {
			t.Fatal(err)
		}
		for value, want := range map[string][]string{
			test.value: {path + " is " + test.value + ": as root, run: sysctl -w " + test.cure},
			"7":        nil,
		} {
			if err := os.WriteFile(root+path, []byte(value+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := curesIn(root, []string{"user", "net"}); !slices.Equal(got, want) {
				t.Errorf("%s is %s: %q, want %q", path, value, got, want)
			}
		}
	}
}
