// Package labtest makes what package lab offers last as long as a test. It must
// never hold what a program or the demo would need.
package labtest

import (
	"os"
	"testing"

	"github.com/weft-net/weft/bench/lab"
)

// New makes a Lab that is closed when the test ends, which an error of Close fails.
func New(t testing.TB) *lab.Lab {
	t.Helper()
	world, err := lab.New(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	return world
}

// Host makes a host of world.
func Host(t testing.TB, world *lab.Lab, config lab.HostConfig) *lab.Host {
	t.Helper()
	host, err := world.Host(config)
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// Sysctl sets a sysctl of a network namespace, named by its path below /proc/sys.
func Sysctl(t testing.TB, place *lab.Namespace, name, value string) {
	t.Helper()
	if err := place.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }); err != nil {
		t.Fatal(err)
	}
}
