//go:build !windows

package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Nobody else may read the key, whatever the umask, and the directory is closed.
func TestModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := keyFile(t)
	keys, _, err := LoadOrCreate(path, start)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir} {
			if info, err := os.Stat(name); err != nil || info.Mode() != want {
				t.Errorf("%s has mode %v, %v, want %v", name, info.Mode(), err, want)
			}
		}
	}
	check()
	next, err := keys.Announce(later(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := Replace(path, keys, next); err != nil {
		t.Fatal(err)
	}
	check()
	if err := SaveContacts(filepath.Join(filepath.Dir(path), "contacts"), nil); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestExposedFile(t *testing.T) {
	path := keyFile(t)
	keys, _, err := LoadOrCreate(path, start)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, created, err := LoadOrCreate(path, start)
		if err == nil || created || !strings.Contains(err.Error(), "chmod 600 "+path) || !strings.Contains(err.Error(), fmt.Sprintf("%04o", mode)) {
			t.Errorf("%04o: created: %t, %v", mode, created, err)
		}
	}
	for _, mode := range []os.FileMode{0o600, 0o400} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if again, err := Load(path); err != nil || again != keys {
			t.Errorf("%04o: %v", mode, err)
		}
	}
}

// A pipe in the file's place would keep a reader waiting for ever.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, created, err := LoadOrCreate(path, start); err == nil || created || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("created: %t, %v", created, err)
	}
}

// TestLoadPreshared holds what a pre-shared key may be read from, and that no
// error tells it.
func TestLoadPreshared(t *testing.T) {
	dir := t.TempDir()
	const text = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte(content), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", text+"\n", 0o400)
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{good, link} {
		if key, err := LoadPreshared(path); err != nil || key.Text() != text {
			t.Errorf("%s: %v", path, err)
		}
	}
	for want, path := range map[string]string{
		"no such file":  filepath.Join(dir, "none"),
		"is no file":    dir,
		"defaultMode":   write("open", text, 0o644),
		"wg genpsk":     write("short", text[:43], 0o600),
		"44 characters": write("long", text+text, 0o600),
	} {
		if _, err := LoadPreshared(path); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), text[:43]) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
