// Package ringtest starts rings in tests. Programs must never import it.
package ringtest

import (
	"errors"
	"runtime"
	"testing"

	"github.com/weft-net/weft/tunnel/internal/ring"
)

// Start starts a Ring in the test's thread, which it keeps until the Ring is stopped
// and closed at the end of the test. What is to be added to it before prepare adds.
func Start(t *testing.T, prepare func(r *ring.Ring) error) *ring.Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(prepare(r), r.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Stop(), r.Close()); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}
