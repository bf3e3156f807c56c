package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// TestEngineRefuses: what has been opened for an engine that cannot be made is
// closed, or the next attempt would find its ports taken.
func TestEngineRefuses(t *testing.T) {
	a, host := quietAgent(), newFakeHost()
	a.Host = host
	f := newForwarder(a, control.Self{}, make(chan struct{}, 1))
	if err := f.runOnce(t.Context(), Datapath{MTU: 1450}); err == nil || !strings.Contains(err.Error(), "Sockets of worker 0 is empty") {
		t.Fatalf("engine without sockets: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := host.devices[0].Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena))
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, tunnel.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("its device is still open")
	}
}
