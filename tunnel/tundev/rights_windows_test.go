package tundev

import (
	"errors"
	"log/slog"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

const errRights = windows.ERROR_ACCESS_DENIED

// TestOpenWithoutDriver: without wintun.dll beside the program there is no
// device, and it is said what is missing.
func TestOpenWithoutDriver(t *testing.T) {
	device, err := Open(Config{MTU: 1400, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		device.Close() // this system has the driver
	} else if !errors.Is(err, tunnel.ErrNoDevice) {
		t.Errorf("Open: %v", err)
	}
}
