package agent

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
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
