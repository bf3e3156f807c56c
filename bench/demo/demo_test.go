package demo

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/control/netconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestNetConf holds that the text and the networks say the same.
func TestNetConf(t *testing.T) {
	config, err := netconf.Parse([]byte(netConf))
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Networks(); !reflect.DeepEqual(got, networks) {
		t.Errorf("network configuration has %v, want %v", got, networks)
	}
}

func TestMissingPluginIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, missing := range []string{"weft-cni", "bridge", "host-local"} {
		_, err := newPlugins([]string{"/nowhere", dir})
		if err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "make build cni") {
			t.Errorf("without %s: %v", missing, err)
		}
		if err := os.WriteFile(filepath.Join(dir, missing), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := newPlugins([]string{"/nowhere", dir}); err != nil {
		t.Error(err)
	}
}

func TestLastLines(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	m := member{log: log}
	defer log.Close()
	if got := m.lastLines(2); got != "  (it is empty)" {
		t.Errorf("of an empty log: %q", got)
	}
	if _, err := log.WriteString(strings.Repeat("old\n", 100_000) + "one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	if got := m.lastLines(2); got != "  one\n  two" {
		t.Errorf("got %q", got)
	}
	if got := m.lastLines(3); got != "  old\n  one\n  two" {
		t.Errorf("got %q", got)
	}
}
