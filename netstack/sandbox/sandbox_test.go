package sandbox

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/netstack/local"
)

func TestMain(m *testing.M) {
	if code := os.Getenv("SANDBOX_TEST_PROXY"); code != "" {
		if os.Getenv("HTTPS_PROXY") != code || os.Getenv("ALL_PROXY") == "" {
			os.Exit(1)
		}
		os.Exit(7)
	}
	goleak.VerifyTestMain(m)
}

func TestResolvConf(t *testing.T) {
	for want, way := range map[string]local.Way{
		"": {},
		"nameserver 10.96.0.10\nnameserver fd00::a\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n": {
			DNS: []netip.AddrPort{
				netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00::a]:53"), netip.MustParseAddrPort("10.96.0.11:5353"),
			},
			Search: []string{"svc.cluster.local", "cluster.local"},
		},
	} {
		if got := resolvConf(way); got != want {
			t.Errorf("%+v:\n%s\nwant:\n%s", way, got, want)
		}
	}
}

// A flow ends when nothing is said for a while, and not before.
func TestIdling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		flow := newIdling(a)
		for range 5 {
			time.Sleep(idleFor - time.Second)
			go flow.Write([]byte("x"))
			if _, err := b.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		time.Sleep(idleFor + time.Second)
		if _, err := flow.Write([]byte("x")); err == nil {
			t.Error("it lasts for ever")
		}
		flow.Close()
	})
}

func TestRunWithProxy(t *testing.T) {
	t.Setenv("SANDBOX_TEST_PROXY", "http://127.0.0.1:1080")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var exit ExitError
	if err := RunWithProxy(t.Context(), Config{Argv: []string{self}}, "127.0.0.1:1080"); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("%v, want exit code 7", err)
	}
	if err := RunWithProxy(t.Context(), Config{Argv: []string{"no-such-program-anywhere"}}, "127.0.0.1:1080"); err == nil || errors.As(err, &exit) {
		t.Errorf("%v", err)
	}
}
