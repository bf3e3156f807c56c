package guard

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

var discard = slog.New(slog.DiscardHandler)

// testHost is a throw-away host with a Driver on it.
type testHost struct {
	*lab.Host
	t      *testing.T
	driver *Driver
}

func addHost(t *testing.T, world *lab.Lab, name string) *testHost {
	t.Helper()
	host := labtest.Host(t, world, lab.HostConfig{Name: name})
	h := &testHost{Host: host, t: t}
	err := host.Do(func() (err error) {
		h.driver, err = Open(Config{Logger: discard})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := h.driver.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return h
}

// nft runs nft commands on the host and returns what they print.
func (h *testHost) nft(commands string, flags ...string) string {
	h.t.Helper()
	var out []byte
	err := h.Do(func() (err error) {
		cmd := exec.CommandContext(h.t.Context(), "nft", append(flags, "-f", "-")...)
		cmd.Stdin = strings.NewReader(commands)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		h.t.Fatalf("nft %s: %v\n%s", commands, err, out)
	}
	return string(out)
}

func (h *testHost) apply(objects ...tunnel.Object) {
	h.t.Helper()
	for _, want := range objects {
		if err := h.driver.Apply(h.t.Context(), want); err != nil {
			h.t.Fatal(err)
		}
	}
}

// check compares what there is with what should be.
func (h *testHost) check(want ...tunnel.Object) {
	h.t.Helper()
	have, err := h.driver.Observe(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, w := range want {
		if have[w.Key()] != w {
			h.t.Errorf("%s: have %+v, want %+v", w.Key(), have[w.Key()], w)
		}
		delete(have, w.Key())
	}
	for _, extra := range have {
		h.t.Errorf("%s: have %+v, want nothing", extra.Key(), extra)
	}
}

// drain takes the token that is due to what was done so far.
func (h *testHost) drain() {
	for {
		select {
		case <-h.driver.Changes():
		case <-time.After(20 * time.Millisecond):
			return
		}
	}
}

func (h *testHost) awaitToken(why string) {
	h.t.Helper()
	select {
	case <-h.driver.Changes():
	case <-time.After(10 * time.Second):
		h.t.Errorf("no token after %s", why)
	}
}

// firewall4 and firewall6 are what a host with the first subnet wants.
func firewall4() tunnel.Firewall {
	return tunnel.Firewall{
		Network: netip.MustParsePrefix("10.244.0.0/16"), Subnet: netip.MustParsePrefix("10.244.1.0/24"),
		Masquerade: true, RandomFully: true, Forward: true,
	}
}

func firewall6() tunnel.Firewall {
	return tunnel.Firewall{
		Network: netip.MustParsePrefix("fd00:10:244::/48"), Subnet: netip.MustParsePrefix("fd00:10:244:1::/64"),
		Masquerade: true, RandomFully: true, Forward: true,
	}
}

// route adds routes on a host.
func (h *testHost) route(routes ...string) {
	h.t.Helper()
	for _, route := range routes {
		words := strings.Fields("ip route add " + route)
		err := h.Do(func() error {
			if out, err := exec.CommandContext(h.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w\n%s", words, err, out)
			}
			return nil
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
}
