package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/weft-net/weft/control/state"
)

// delegates is an invoke.Exec whose plugins only remember that they were called.
type delegates struct {
	version.PluginDecoder
	calls []string // VERB container interface
	stdin []byte   // of the last call
	fail  map[string]error
	reply string
}

func (d *delegates) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	env := map[string]string{}
	for _, pair := range environ {
		key, value, _ := strings.Cut(pair, "=")
		env[key] = value
	}
	d.stdin = stdin
	call := env["CNI_COMMAND"]
	if env["CNI_CONTAINERID"] != "" {
		call += " " + env["CNI_CONTAINERID"] + " " + env["CNI_IFNAME"]
	}
	d.calls = append(d.calls, call)
	return []byte(d.reply), d.fail[call]
}

func (d *delegates) FindInPath(plugin string, paths []string) (string, error) {
	if plugin == "missing" || !slices.Equal(paths, []string{"/bin1", "/bin2"}) {
		return "", fmt.Errorf("failed to find plugin %q", plugin)
	}
	return "/bin1/" + plugin, nil
}

// fixture is a node's files and the plugin with fake delegates.
type fixture struct {
	*testing.T
	plugin
	delegates  *delegates
	out        bytes.Buffer
	subnetFile string
	dataDir    string
}

func newFixture(t *testing.T) *fixture {
	dir := t.TempDir()
	f := &fixture{T: t, delegates: &delegates{reply: "{ }\n", fail: map[string]error{}}, subnetFile: filepath.Join(dir, "subnet.env"), dataDir: filepath.Join(dir, "data")}
	f.plugin = plugin{exec: f.delegates, stdout: &f.out}
	if err := state.WriteSubnetEnv(f.subnetFile, env4); err != nil {
		t.Fatal(err)
	}
	return f
}

// args are those of a call for a container, with further keys of the configuration.
func (f *fixture) args(container, ifName, keys string) request {
	stdin := fmt.Sprintf(`{"name":"cbr0","cniVersion":"1.1.0","subnetFile":%q,"dataDir":%q%s}`, f.subnetFile, f.dataDir, keys)
	return request{ContainerID: container, IfName: ifName, Path: "/bin1" + string(filepath.ListSeparator) + "/bin2", StdinData: []byte(stdin)}
}

func (f *fixture) files() (names []string) {
	entries, err := os.ReadDir(f.dataDir)
	if err != nil && !os.IsNotExist(err) {
		f.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// put writes a file into the data directory.
func (f *fixture) put(name, content string) {
	f.Helper()
	if err := errors.Join(os.MkdirAll(f.dataDir, 0o700), os.WriteFile(filepath.Join(f.dataDir, name), []byte(content), 0o600)); err != nil {
		f.Fatal(err)
	}
}

// wantCalls holds that exactly these calls were made since the last time.
func (f *fixture) wantCalls(calls ...string) {
	f.Helper()
	if !slices.Equal(f.delegates.calls, calls) {
		f.Errorf("the delegate was called %q, want %q", f.delegates.calls, calls)
	}
	f.delegates.calls = nil
}

func (f *fixture) wantFiles(names ...string) {
	f.Helper()
	if got := f.files(); !slices.Equal(got, names) {
		f.Errorf("saved are %q, want %q", got, names)
	}
}

func code(err error) uint {
	var typed *types.Error
	if errors.As(err, &typed) {
		return typed.Code
	}
	return 0
}

const legacy = `{"cniVersion":"0.3.1","name":"cbr0","type":"bridge"}`

func TestAddAndDel(t *testing.T) {
	f := newFixture(t)
	if err := f.add(f.args("c1", "eth0", "")); err != nil {
		t.Fatal(err)
	}
	f.wantCalls("ADD c1 eth0")
	f.wantFiles("cbr0@c1@eth0")
	if f.out.String() != "{ }\n" {
		t.Errorf("the result is %q, want the delegate's as it is", &f.out)
	}
	added := f.delegates.stdin
	for path, want := range map[string]os.FileMode{f.dataDir: 0o700 | os.ModeDir, filepath.Join(f.dataDir, "cbr0@c1@eth0"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want && os.PathSeparator == '/' {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}

	// Neither a new lease nor a new configuration changes what DEL undoes.
	if err := os.Remove(f.subnetFile); err != nil {
		t.Fatal(err)
	}
	failure := types.NewError(types.ErrTryAgainLater, "busy", "later")
	f.delegates.fail["DEL c1 eth0"] = failure
	for range 2 {
		err := f.del(f.args("c1", "eth0", `,"delegate":{"mtu":1}`))
		if code(err) != failure.Code || err.Error() != "bridge: busy; later" {
			t.Errorf("DEL whose delegate fails: %v", err)
		}
		f.wantCalls("DEL c1 eth0")
		f.wantFiles("cbr0@c1@eth0")
	}
	delete(f.delegates.fail, "DEL c1 eth0")
	if err := f.del(f.args("c1", "eth0", "")); err != nil || !bytes.Equal(f.delegates.stdin, added) {
		t.Errorf("DEL: %v, with %s, want %s", err, f.delegates.stdin, added)
	}
	f.wantCalls("DEL c1 eth0")
	f.wantFiles()
	for range 2 {
		if err := f.del(f.args("c1", "eth0", "")); err != nil {
			t.Errorf("DEL again: %v", err)
		}
	}
	f.wantCalls()
}

func TestAddFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		keys  string
		spoil func(f *fixture)
		code  uint
		text  string
		saved bool
	}{
		{"no lease", "", func(f *fixture) { os.Remove(f.subnetFile) }, types.ErrTryAgainLater, "this node has no lease yet: read subnet.env: open", false},
		{"incomplete lease", "", func(f *fixture) { os.WriteFile(f.subnetFile, []byte("FLANNEL_MTU=1450\n"), 0o600) }, types.ErrTryAgainLater, "missing FLANNEL_NETWORK", false},
		{"bad configuration", `,"delegate":7`, func(*fixture) {}, types.ErrInvalidNetworkConfig, "delegate: want an object", false},
		{"delegate fails", "", func(f *fixture) { f.delegates.fail["ADD c1 eth0"] = types.NewError(7, "no", "") }, 7, "bridge: no", true},
		{"delegate fails without a code", "", func(f *fixture) { f.delegates.fail["ADD c1 eth0"] = &types.Error{Msg: "no"} }, types.ErrInternal, "bridge: no", true},
		{"delegate is missing", `,"delegate":{"type":"missing"}`, func(*fixture) {}, types.ErrPluginNotAvailable, `failed to find plugin "missing"; install`, true},
		{"delegate says nothing", "", func(f *fixture) { f.delegates.reply = "" }, types.ErrDecodingFailure, "bridge: its result is not JSON", true},
		{"data directory is a file", "", func(f *fixture) { os.WriteFile(f.dataDir, nil, 0o600) }, types.ErrIOFailure, "save attachment: mkdir", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			tt.spoil(f)
			err := f.add(f.args("c1", "eth0", tt.keys))
			if code(err) != tt.code || !strings.Contains(err.Error(), tt.text) || f.out.Len() > 0 {
				t.Errorf("ADD: code %d, %v, want %d and %q", code(err), err, tt.code, tt.text)
			}
			// What may have been done is undone by the DEL that follows.
			if tt.saved {
				f.wantFiles("cbr0@c1@eth0")
			}
		})
	}
}

// TestTwoAttachmentsOfOneContainer is the case in which flannel's plugin
// overwrites one by the other.
func TestTwoAttachmentsOfOneContainer(t *testing.T) {
	f := newFixture(t)
	other := f.args("c1", "eth0", "")
	other.StdinData = bytes.Replace(other.StdinData, []byte(`"cbr0"`), []byte(`"cbr1"`), 1)
	for _, args := range []request{f.args("c1", "eth0", ""), f.args("c1", "net1", ""), other} {
		if err := f.add(args); err != nil {
			t.Fatal(err)
		}
	}
	f.wantFiles("cbr0@c1@eth0", "cbr0@c1@net1", "cbr1@c1@eth0")
	if err := f.del(f.args("c1", "eth0", "")); err != nil {
		t.Fatal(err)
	}
	f.wantFiles("cbr0@c1@net1", "cbr1@c1@eth0")
}

func TestFilesOfFlannelsPlugin(t *testing.T) {
	f := newFixture(t)
	f.put("c1", legacy)
	f.put("c2", strings.Replace(legacy, "cbr0", "other", 1))
	for _, container := range []string{"c1", "c2"} {
		if err := f.del(f.args(container, "eth0", "")); err != nil {
			t.Fatal(err)
		}
	}
	f.wantCalls("DEL c1 eth0")
	f.wantFiles("c2")
	if string(f.delegates.stdin) != legacy {
		t.Errorf("the delegate got %s, want %s", f.delegates.stdin, legacy)
	}
}

func TestCorruptFile(t *testing.T) {
	for _, content := range []string{"", "{", `{"type":"../x"}`, `{"name":"cbr0"}`} {
		f := newFixture(t)
		f.put("cbr0@c1@eth0", content)
		if err := f.check(f.args("c1", "eth0", `,"prevResult":{}`)); code(err) != types.ErrIOFailure || !strings.Contains(err.Error(), "cbr0@c1@eth0") {
			t.Errorf("%q: CHECK: %v, want an error that names the file", content, err)
		}
		lease, err := os.ReadFile(f.subnetFile)
		if err != nil || os.Remove(f.subnetFile) != nil {
			t.Fatal(err)
		}
		if err := f.del(f.args("c1", "eth0", "")); code(err) != types.ErrTryAgainLater || !strings.Contains(err.Error(), "the saved attachment is unreadable") {
			t.Errorf("%q: DEL without a lease: %v", content, err)
		}
		f.wantCalls()
		if err := os.WriteFile(f.subnetFile, lease, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.del(f.args("c1", "eth0", "")); err != nil {
			t.Errorf("%q: DEL: %v", content, err)
		}
		f.wantCalls("DEL c1 eth0")
		f.wantFiles()
	}
}

// TestKilledSave leaves what a save that was killed leaves.
func TestKilledSave(t *testing.T) {
	f := newFixture(t)
	f.put(".cbr0@c1@eth0.12345", "{")
	f.put(".cbr0@c1@eth00.12345", "{")
	if err := f.del(f.args("c1", "eth0", "")); err != nil {
		t.Error(err)
	}
	f.wantCalls()
	f.wantFiles(".cbr0@c1@eth00.12345")

	f.put("cbr0@c1@eth0", legacy)
	f.put(".cbr0@c1@eth0.67890", "{")
	if err := f.del(f.args("c1", "eth0", "")); err != nil {
		t.Error(err)
	}
	f.wantCalls("DEL c1 eth0")
	f.wantFiles(".cbr0@c1@eth00.12345")
}

func TestCheck(t *testing.T) {
	f := newFixture(t)
	if err := f.check(f.args("c1", "eth0", "")); code(err) != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), "prevResult: is missing") {
		t.Errorf("CHECK without prevResult: %v", err)
	}
	previous := `,"prevResult":{"ips":[{"address":"10.244.1.2/24"}]}`
	if err := f.check(f.args("c1", "eth0", previous)); code(err) != types.ErrUnknownContainer {
		t.Errorf("CHECK of what was not added: %v", err)
	}
	f.wantCalls()
	if err := f.add(f.args("c1", "eth0", "")); err != nil {
		t.Fatal(err)
	}
	if err := f.check(f.args("c1", "eth0", previous)); err != nil {
		t.Error(err)
	}
	if !strings.Contains(string(f.delegates.stdin), previous[1:]) || !strings.Contains(string(f.delegates.stdin), `"subnet":"10.244.1.0/24"`) {
		t.Errorf("the delegate got %s", f.delegates.stdin)
	}
	f.delegates.fail["CHECK c1 eth0"] = types.NewError(123, "gone", "")
	if err := f.check(f.args("c1", "eth0", previous)); code(err) != 123 {
		t.Errorf("CHECK whose delegate fails: %v", err)
	}
}

func TestStatus(t *testing.T) {
	f := newFixture(t)
	if err := f.status(f.args("", "", "")); err != nil {
		t.Error(err)
	}
	f.wantCalls("STATUS")
	f.delegates.fail["STATUS"] = types.NewError(types.ErrLimitedConnectivity, "no uplink", "")
	if err := f.status(f.args("", "", "")); code(err) != types.ErrLimitedConnectivity {
		t.Errorf("STATUS whose delegate fails: %v", err)
	}
	if err := f.status(f.args("", "", `,"delegate":{"type":"missing"}`)); code(err) != types.ErrPluginNotAvailable {
		t.Errorf("STATUS without the delegate: %v", err)
	}
	for _, lease := range []string{"", "FLANNEL_MTU=1450\n"} {
		if err := os.WriteFile(f.subnetFile, []byte(lease), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := f.status(f.args("", "", "")); code(err) != types.ErrPluginNotAvailable {
			t.Errorf("STATUS with the lease %q: %v, want code 50", lease, err)
		}
	}
	os.Remove(f.subnetFile)
	if err := f.status(f.args("", "", "")); code(err) != types.ErrPluginNotAvailable || !strings.Contains(err.Error(), f.subnetFile) {
		t.Errorf("STATUS without a lease: %v, want code 50 and the file", err)
	}
}

func TestGC(t *testing.T) {
	f := newFixture(t)
	add := func() {
		for _, a := range [][2]string{{"c1", "eth0"}, {"c1", "net1"}, {"c2", "eth0"}} {
			if err := f.add(f.args(a[0], a[1], "")); err != nil {
				t.Fatal(err)
			}
		}
		f.put("other@c9@eth0", legacy)
		f.put("c3", legacy)
		f.put("c4", legacy)
		f.put("c5", strings.Replace(legacy, "cbr0", "other", 1))
		f.put(".cbr0@c9@eth0.1", legacy) // of a save that was killed
		f.delegates.calls = nil
	}
	add()
	if err := f.gc(f.args("", "", "")); code(err) != types.ErrInvalidNetworkConfig || !strings.Contains(err.Error(), "cni.dev/valid-attachments: is missing") {
		t.Errorf("GC without a list: %v", err)
	}
	f.wantCalls()

	valid := `,"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"},{"containerID":"c4","ifname":"any"}]`
	f.delegates.fail["DEL c1 net1"] = types.NewError(7, "busy", "")
	if err := f.gc(f.args("", "", valid)); err == nil || !strings.Contains(err.Error(), "container c1, interface net1: bridge: busy") {
		t.Errorf("GC with one that fails: %v", err)
	}
	f.wantCalls("GC", "DEL c3 eth0", "DEL c1 net1", "DEL c2 eth0")
	f.wantFiles(".cbr0@c9@eth0.1", "c4", "c5", "cbr0@c1@eth0", "cbr0@c1@net1", "other@c9@eth0")

	clear(f.delegates.fail)
	if err := f.gc(f.args("", "", `,"cni.dev/attachments":[]`)); err != nil {
		t.Error(err)
	}
	f.wantCalls("GC", "DEL c4 eth0", "DEL c1 eth0", "DEL c1 net1")
	f.wantFiles(".cbr0@c9@eth0.1", "c5", "other@c9@eth0")

	// The delegate is told under both names that the key has had.
	f.delegates.calls = nil
	if err := f.gc(f.args("", "", valid)); err != nil {
		t.Error(err)
	}
	var told map[string]any
	if err := json.Unmarshal(f.delegates.stdin, &told); err != nil {
		t.Fatal(err)
	}
	if got := told[keyValid]; got == nil || !reflect.DeepEqual(got, told[keyValidOld]) {
		t.Errorf("the delegate got %s", f.delegates.stdin)
	}
}
