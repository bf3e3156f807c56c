package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func quietAgent() *Agent {
	logger := slog.New(slog.DiscardHandler)
	return &Agent{Config: Config{Status: NewTracker("a", "test", logger), Logger: logger}}
}

func get(t *testing.T, handler http.Handler, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	body, err := io.ReadAll(recorder.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return recorder.Code, string(body)
}

// TestHealth: alive from the start, ready only once peers are programmed, and
// the reason is in the answer.
func TestHealth(t *testing.T) {
	a := quietAgent()
	handler := a.healthAPI()
	if code, _ := get(t, handler, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz answers %d", code)
	}
	a.Status.Waiting("no answer from the API server")
	if code, body := get(t, handler, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no answer from the API server") {
		t.Errorf("/readyz while waiting: %d %q", code, body)
	}
	planned := control.Plan{Complete: true, MTU: 1450, Objects: []tunnel.Object{ownLink, routeB}, Hosts: []control.HostPlan{hostPlan("b", routeB)}}
	a.Status.progress(planned, map[tunnel.Key]itemState{ownLink.Key(): {Done: true}, routeB.Key(): {Err: "busy", Attempts: 2}}, true)
	if code, _ := get(t, handler, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz when ready: %d", code)
	}
	_, metrics := get(t, handler, "/metrics")
	for _, want := range []string{"weft_ready 1", `weft_peers{state="failed"} 1`, `weft_items{state="done"} 1`, `weft_items{state="failed"} 1`, "weft_mtu_bytes 1450"} {
		if !strings.Contains(metrics, want+"\n") {
			t.Errorf("/metrics lacks %q:\n%s", want, metrics)
		}
	}
}

// TestLocalSocket: one agent per socket, only for its owner, and what a killed
// agent left is replaced.
func TestLocalSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "weft.sock")
	if _, err := FetchStatus(t.Context(), path); err == nil {
		t.Fatal("nobody answered")
	}
	listener, err := listenLocal(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serve(ctx, listener, quietAgent().localAPI()) }()
	status, err := FetchStatus(ctx, path)
	if err != nil || status.Host != "a" || status.State != StateWaiting {
		t.Errorf("status %+v, %v", status, err)
	}
	if _, err := listenLocal(ctx, path); err == nil || !strings.Contains(err.Error(), "another agent is running") {
		t.Errorf("second agent: %v", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("serve ends with %v", err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	again, err := listenLocal(t.Context(), path)
	if err != nil {
		t.Fatalf("after a killed agent: %v", err)
	}
	again.Close()
}
