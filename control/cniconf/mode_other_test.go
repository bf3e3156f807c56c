//go:build !windows

package cniconf

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestModes holds that nothing installed is setuid or writable by others,
// whatever the source's mode, a copy's mode or the umask are.
func TestModes(t *testing.T) {
	h := newHost(t)
	if err := os.Chmod(filepath.Join(h.From, "bridge"), 0o777|fs.ModeSetuid|fs.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	h.write(filepath.Join(h.BinDir, "portmap"), "portmap 1")
	if err := os.Chmod(filepath.Join(h.BinDir, "portmap"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	h.install()
	for path, info := range h.inodes() {
		want := pluginMode
		if dir := filepath.Dir(path); dir == h.ConfDir || strings.HasPrefix(filepath.Base(path), ".") {
			want = fileMode
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
}
