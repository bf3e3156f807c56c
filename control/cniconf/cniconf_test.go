package cniconf

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const conflist = `{"cniVersion":"1.0.0","name":"cbr0","plugins":[
  {"type":"weft-cni","delegate":{"isDefaultGateway":true}},
  {"type":"portmap","capabilities":{"portMappings":true}}]}`

// host is a machine's directories, and an image to install from.
type host struct {
	Config
	t   *testing.T
	log bytes.Buffer
}

func newHost(t *testing.T) *host {
	root := t.TempDir()
	h := &host{t: t, Config: Config{
		From: filepath.Join(root, "image"), BinDir: filepath.Join(root, "opt", "cni", "bin"),
		Conf: filepath.Join(root, "cni-conf.json"), ConfDir: filepath.Join(root, "etc", "cni", "net.d"),
	}}
	h.Logger = slog.New(slog.NewTextHandler(&h.log, nil))
	for name, text := range map[string]string{"weft-cni": "weft 1", "bridge": "bridge 1", "portmap": "portmap 1"} {
		h.write(filepath.Join(h.From, name), text)
	}
	h.write(h.Conf, conflist)
	return h
}

func (h *host) write(path, text string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) install() {
	h.t.Helper()
	if err := Install(h.Config); err != nil {
		h.t.Fatal(err)
	}
}

// want checks the content of an installed plugin.
func (h *host) want(name, text string) {
	h.t.Helper()
	if got, err := os.ReadFile(filepath.Join(h.BinDir, name)); err != nil || string(got) != text {
		h.t.Errorf("%s holds %q (%v), want %q", name, got, err, text)
	}
}

func TestInstall(t *testing.T) {
	h := newHost(t)
	h.install()
	h.want("weft-cni", "weft 1")
	h.want("bridge", "bridge 1")
	h.want("portmap", "portmap 1")
	got, err := os.ReadFile(filepath.Join(h.ConfDir, "10-weft.conflist"))
	if err != nil || string(got) != conflist {
		t.Errorf("configuration is %q (%v)", got, err)
	}
}

// TestRepeatChangesNothing: runtimes watch these directories.
func TestRepeatChangesNothing(t *testing.T) {
	h := newHost(t)
	h.install()
	before := h.inodes()
	h.install()
	for path, info := range h.inodes() {
		if old, known := before[path]; !known || !os.SameFile(old, info) {
			t.Errorf("%s was written again", path)
		}
	}
}

func (h *host) inodes() map[string]os.FileInfo {
	h.t.Helper()
	all := map[string]os.FileInfo{}
	for _, dir := range []string{h.BinDir, h.ConfDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, entry := range entries {
			info, err := entry.Info()
			if err != nil {
				h.t.Fatal(err)
			}
			all[filepath.Join(dir, entry.Name())] = info
		}
	}
	return all
}

// TestUpgrade holds that what was installed from here is replaced, and what
// was not stays: also when the same name comes from here later.
func TestUpgrade(t *testing.T) {
	h := newHost(t)
	h.write(filepath.Join(h.BinDir, "portmap"), "the distribution's")
	h.write(filepath.Join(h.BinDir, "weft-cni"), "left by a copy")
	h.install()
	for name, text := range map[string]string{"weft-cni": "weft 2", "bridge": "bridge 2", "portmap": "portmap 2"} {
		h.write(filepath.Join(h.From, name), text)
	}
	h.install()
	h.want("weft-cni", "weft 2")
	h.want("bridge", "bridge 2")
	h.want("portmap", "the distribution's")
	h.write(filepath.Join(h.BinDir, "bridge"), "patched by an administrator")
	h.write(filepath.Join(h.From, "bridge"), "bridge 3")
	h.install()
	h.want("bridge", "patched by an administrator")
	if !strings.Contains(h.log.String(), "somebody else's") {
		t.Errorf("log does not say what stays: %s", &h.log)
	}
}

// TestUpgradeAfterCrash stops an upgrade at every step that leaves something
// behind, and expects the next one to go through.
func TestUpgradeAfterCrash(t *testing.T) {
	steps := map[string]func(*host, sums){
		"recorded, not yet written": func(*host, sums) {},
		"written, record not yet pruned": func(h *host, _ sums) {
			h.write(filepath.Join(h.BinDir, "bridge"), "bridge 2")
		},
	}
	for name, crash := range steps {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.install()
			installed, err := readSums(h.BinDir)
			if err != nil {
				t.Fatal(err)
			}
			installed["bridge"] = append(installed["bridge"], sum([]byte("bridge 2")))
			if err := installed.write(h.BinDir); err != nil {
				t.Fatal(err)
			}
			crash(h, installed)
			for _, text := range []string{"bridge 2", "bridge 3"} {
				h.write(filepath.Join(h.From, "bridge"), text)
				h.install()
				h.want("bridge", text)
			}
		})
	}
}

// TestForeignLinkStays: Some distributions link plugins to elsewhere.
func TestForeignLinkStays(t *testing.T) {
	h := newHost(t)
	elsewhere := filepath.Join(t.TempDir(), "bridge")
	h.write(elsewhere, "elsewhere")
	h.write(filepath.Join(h.BinDir, "x"), "")
	if err := os.Symlink(elsewhere, filepath.Join(h.BinDir, "bridge")); err != nil {
		t.Fatal(err)
	}
	h.install()
	h.want("bridge", "elsewhere")
	if info, err := os.Lstat(filepath.Join(h.BinDir, "bridge")); err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link is now %v (%v)", info.Mode(), err)
	}
}

func TestInstallPartly(t *testing.T) {
	h := newHost(t)
	h.Conf = ""
	h.install()
	h.want("bridge", "bridge 1")
	if _, err := os.Stat(h.ConfDir); err == nil {
		t.Error("a configuration directory was made for nothing")
	}
}

func TestShadowedIsTold(t *testing.T) {
	h := newHost(t)
	h.write(filepath.Join(h.ConfDir, "05-other.conflist"), "{}")
	h.write(filepath.Join(h.ConfDir, "99-later.conflist"), "{}")
	h.write(filepath.Join(h.ConfDir, "00-note.txt"), "")
	h.install()
	if log := h.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "05-other.conflist") {
		t.Errorf("log is %s", log)
	}
}

func TestErrors(t *testing.T) {
	tests := map[string]struct {
		change func(*host)
		want   []string
	}{
		"no configuration":   {func(h *host) { h.Conf += ".not" }, []string{"read CNI configuration", "no such file"}},
		"no JSON":            {func(h *host) { h.write(h.Conf, "{") }, []string{"cni-conf.json", "JSON"}},
		"no version":         {func(h *host) { h.write(h.Conf, `{"name":"a","plugins":[{"type":"bridge"}]}`) }, []string{"cniVersion"}},
		"bad name":           {func(h *host) { h.write(h.Conf, `{"cniVersion":"1.0.0","name":"a/b","plugins":[{"type":"bridge"}]}`) }, []string{`name is "a/b"`}},
		"a plugin's own":     {func(h *host) { h.write(h.Conf, `{"cniVersion":"1.0.0","name":"a","type":"bridge"}`) }, []string{"plugins is empty", "list"}},
		"a path as plugin":   {func(h *host) { h.write(h.Conf, withPlugin(`{"type":"../../bin/sh"}`)) }, []string{"plugins[0].type", "../../bin/sh"}},
		"a path as delegate": {func(h *host) { h.write(h.Conf, withPlugin(`{"type":"bridge","delegate":{"type":"a/b"}}`)) }, []string{"plugins[0].delegate.type"}},
		"missing plugin":     {func(h *host) { h.write(h.Conf, withPlugin(`{"type":"tuning"}`)) }, []string{`"tuning"`, "neither", "install it"}},
		"missing delegate":   {func(h *host) { h.write(h.Conf, withPlugin(`{"type":"bridge","delegate":{"type":"ipvlan"}}`)) }, []string{`"ipvlan"`}},
		"no plugins":         {func(h *host) { h.From += ".not" }, []string{"list plugins"}},
		"directory inside":   {func(h *host) { h.write(filepath.Join(h.From, "sub", "x"), "") }, []string{"sub is not a plugin"}},
		"name with a slash":  {func(h *host) { h.Name = "../10-weft.conflist" }, []string{"file name"}},
		"file for directory": {func(h *host) { h.write(h.ConfDir, "") }, []string{"install CNI configuration"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			test.change(h)
			err := Install(h.Config)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Install: %v, want %q in it", err, want)
				}
			}
			if _, err := os.Stat(filepath.Join(h.ConfDir, DefaultName)); err == nil {
				t.Error("the configuration was installed all the same")
			}
		})
	}
}

func withPlugin(plugin string) string {
	return `{"cniVersion":"1.0.0","name":"cbr0","plugins":[` + plugin + `]}`
}

func FuzzPluginTypes(f *testing.F) {
	f.Add([]byte(conflist))
	f.Add([]byte(withPlugin(`{"type":"../x"}`)))
	f.Add([]byte(withPlugin(`{"type":"a","delegate":{"type":1}}`)))
	f.Fuzz(func(t *testing.T, conf []byte) {
		types, err := pluginTypes(conf)
		if err == nil && len(types) == 0 {
			t.Error("no plugin and no error")
		}
		for _, name := range types {
			if filepath.Base(name) != name || name == "." || name == ".." {
				t.Errorf("plugin type %q is a path", name)
			}
		}
	})
}
