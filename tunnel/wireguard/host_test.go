package wireguard

import (
	"slices"
	"testing"
	"testing/synctest"
)

const (
	placeA = "192.0.2.1:51820"
	placeB = "192.0.2.2:51820"
	placeC = "192.0.2.3:4000"
)

// pair is two ends that know each other.
func pair(t *testing.T, w *wire) (a, b *end, toB, toA *Peer) {
	t.Helper()
	a, b = newEnd(t, w, 1, placeA, Config{}), newEnd(t, w, 2, placeB, Config{})
	return a, b, a.setPeers(a.peer(b))[0], b.setPeers(b.peer(a))[0]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReceived(t *testing.T, e *end, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := e.received(); !slices.Equal(got, want) {
		t.Fatalf("%s received %q, want %q", e.at, got, want)
	}
}

func TestDataBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		defer a.stop()
		defer b.stop()
		must(t, a.send(toB, []byte("one")))
		wantReceived(t, b, "one")
		must(t, b.send(toA, []byte("two")))
		wantReceived(t, a, "two")
	})
}
