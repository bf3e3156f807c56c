package cmd_test

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weft-net/weft"

// goPackage is the part of `go list -json` these tests read.
type goPackage struct {
	ImportPath      string
	Dir             string
	GoFiles         []string
	IgnoredGoFiles  []string
	Imports         []string
	Deps            []string
	TestImports     []string
	CompiledGoFiles []string
}

// room is the package's path below the module.
func (p goPackage) room() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,Imports,Deps", "./...")
	command.Dir = ".."
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 10 {
		t.Fatalf("go list found %d packages: the tests below would prove nothing", len(packages))
	}
	return packages
}

// below reports whether path is prefix or lies under it.
func below(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// TestImportDirections holds the design's "who may import whom".
func TestImportDirections(t *testing.T) {
	rules := []struct {
		who    string   // packages at or below this room ...
		never  []string // ... never depend on these, even indirectly
		except []string // rooms below who that may
	}{
		{who: "tunnel", never: []string{module + "/control", module + "/netstack", module + "/cmd", module + "/bench", "k8s.io", "gvisor.dev"}},
		{who: "netstack", never: []string{module + "/control", module + "/cmd", module + "/bench", "k8s.io"}},
		{who: "control", never: []string{module + "/netstack", module + "/cmd", module + "/bench", "gvisor.dev"}},
		{who: "control", never: []string{"k8s.io"}, except: []string{"control/kube"}},
		{who: "control", never: []string{"github.com/vishvananda/netlink", "github.com/google/nftables"}},
		{who: "cmd/weft-cni", never: []string{"k8s.io", "go.etcd.io", module + "/tunnel/engine", module + "/control/agent", module + "/bench"}},
		{who: "cmd/weft", never: []string{module + "/bench", "go.etcd.io/etcd/server"}, except: []string{"cmd/weft-lab"}},
	}
	for _, p := range listPackages(t) {
		for _, rule := range rules {
			if !below(p.room(), rule.who) || slices.ContainsFunc(rule.except, func(e string) bool { return below(p.room(), e) }) {
				continue
			}
			for _, dep := range p.Deps {
				for _, never := range rule.never {
					if below(dep, never) {
						t.Errorf("%s depends on %s: %s must never", p.room(), dep, rule.who)
					}
				}
			}
		}
	}
}

// TestLeavesArePure holds that the pure packages import neither the operating
// system nor the clock.
func TestLeavesArePure(t *testing.T) {
	pure := []string{"tunnel", "tunnel/packet", "tunnel/vxlan", "tunnel/peertable", "control", "control/lease", "control/netconf", "control/plan"}
	impure := []string{"os", "time", "syscall", "os/exec", "golang.org/x/sys/unix", "math/rand", "math/rand/v2"}
	seen := 0
	for _, p := range listPackages(t) {
		if !slices.Contains(pure, p.room()) {
			continue
		}
		seen++
		for _, imported := range p.Imports {
			if slices.Contains(impure, imported) {
				t.Errorf("%s imports %s: it must stay pure", p.room(), imported)
			}
		}
	}
	if seen != len(pure) {
		t.Errorf("found %d of the %d pure packages", seen, len(pure))
	}
}

// TestPackageComments holds that every package has exactly one comment and
// that it begins as godoc wants.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		var with []string
		for _, name := range append(slices.Clone(p.GoFiles), p.IgnoredGoFiles...) {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatalf("parse %s: %v", name, err)
			}
			if file.Doc == nil {
				continue
			}
			with = append(with, name)
			if text := file.Doc.Text(); !strings.HasPrefix(text, "Package ") && !strings.HasPrefix(text, "Command ") {
				t.Errorf("%s/%s: package comment begins %.20q, want Package or Command", p.room(), name, text)
			}
		}
		hasCode := len(p.GoFiles)+len(p.IgnoredGoFiles) > 0 && slices.ContainsFunc(append(slices.Clone(p.GoFiles), p.IgnoredGoFiles...), func(n string) bool { return !strings.HasSuffix(n, "_test.go") })
		if hasCode && len(with) != 1 {
			t.Errorf("%s: %d package comments %v, want one", p.room(), len(with), with)
		}
	}
}

// TestOSStaysAtTheEdges holds that netlink, nftables and runtime.GOOS appear
// only where the design allows them.
func TestOSStaysAtTheEdges(t *testing.T) {
	edge := []string{"tunnel/kernel", "tunnel/guard", "tunnel/tundev", "tunnel/udp", "tunnel/underlay", "tunnel/internal/linux"}
	for _, p := range listPackages(t) {
		if below(p.room(), "bench") {
			continue
		}
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ImportsOnly)
			if err != nil {
				t.Fatalf("parse %s: %v", name, err)
			}
			for _, spec := range file.Imports {
				path := strings.Trim(spec.Path.Value, `"`)
				if !below(path, "github.com/vishvananda") && !below(path, "github.com/google/nftables") {
					continue
				}
				if !slices.Contains(edge, p.room()) || !strings.HasSuffix(name, "_linux.go") {
					t.Errorf("%s/%s imports %s", p.room(), name, path)
				}
			}
		}
	}
	command := exec.Command("git", "grep", "-lF", "runtime.GOOS", "--", "*.go", ":!cmd/")
	command.Dir = ".."
	if out, err := command.Output(); err == nil {
		t.Errorf("runtime.GOOS outside cmd: %s", strings.Join(strings.Fields(string(out)), " "))
	}
}
