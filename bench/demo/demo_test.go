package demo

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
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

func TestRedirect(t *testing.T) {
	in := `{"kind": "Config", "users": [{"name": "admin", "user": {"token": "t"}}],
		"clusters": [{"name": "weft", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority-data": "Q0E="}}]}`
	want := `{"kind": "Config", "users": [{"name": "admin", "user": {"token": "t"}}],
		"clusters": [{"name": "weft", "cluster": {"server": "https://192.168.64.254:6443", "tls-server-name": "127.0.0.1", "certificate-authority-data": "Q0E="}}]}`
	out, err := redirect([]byte(in), "https://127.0.0.1:6443", netip.MustParseAddrPort("192.168.64.254:6443"))
	if err != nil {
		t.Fatal(err)
	}
	var gotValue, wantValue any
	if err := json.Unmarshal(out, &gotValue); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &wantValue); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(gotValue, wantValue) {
		t.Errorf("got %s, want %s", out, want)
	}
	if _, err := redirect([]byte("apiVersion: v1"), "https://127.0.0.1:6443", netip.AddrPort{}); err == nil {
		t.Error("no error for what is not JSON")
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// TestRelay holds that bytes pass both ways, that an end passes, and that
// stopping ends connections that are open.
func TestRelay(t *testing.T) {
	server, front := listen(t), listen(t)
	defer server.Close()
	stop := relay(front, server.Addr().String())
	open := func() (near, far net.Conn) {
		near, err := net.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if far, err = server.Accept(); err != nil {
			t.Fatal(err)
		}
		return near, far
	}
	say := func(from, to net.Conn, text string) {
		t.Helper()
		if _, err := io.WriteString(from, text); err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, len(text))
		if _, err := io.ReadFull(to, buffer); err != nil || string(buffer) != text {
			t.Fatalf("got %q, want %q: %v", buffer, text, err)
		}
	}
	ended := func(conn net.Conn) {
		t.Helper()
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("read %d bytes of an ended connection", n)
		}
		conn.Close()
	}
	near, far := open()
	say(near, far, "question")
	say(far, near, "answer")
	far.Close()
	ended(near)

	near, far = open()
	say(near, far, "still there")
	stop()
	ended(near)
	ended(far)
	if conn, err := net.Dial("tcp", front.Addr().String()); err == nil {
		conn.Close()
		t.Error("a stopped relay takes connections")
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
