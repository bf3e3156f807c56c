package kernel

import (
	"bytes"
	"log/slog"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
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

// testHost is a throw-away host with a Driver on it.
type testHost struct {
	*lab.Host
	t      *testing.T
	driver *Driver
}

var discard = slog.New(slog.DiscardHandler)

// The underlay addresses of flannel's golden state.
var underlay = []netip.Prefix{netip.MustParsePrefix("192.168.7.1/24"), netip.MustParsePrefix("fd77::1/64")}

func newHost(t *testing.T) *testHost {
	t.Helper()
	return addHost(t, labtest.New(t), lab.HostConfig{Name: "a", Addresses: underlay})
}

func addHost(t *testing.T, world *lab.Lab, config lab.HostConfig) *testHost {
	t.Helper()
	host := labtest.Host(t, world, config)
	h := &testHost{Host: host, t: t}
	h.driver = h.open(Config{Logger: discard, TUN: "weft0"})
	return h
}

func (h *testHost) open(config Config) (d *Driver) {
	h.t.Helper()
	err := h.Do(func() (err error) {
		d, err = Open(config)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := d.Close(); err != nil {
			h.t.Error(err)
		}
	})
	return d
}

// run runs command lines on the host and returns what they print.
func (h *testHost) run(lines ...string) string {
	h.t.Helper()
	var out bytes.Buffer
	for _, line := range lines {
		words := strings.Fields(line)
		err := h.Do(func() error {
			command := exec.CommandContext(h.t.Context(), words[0], words[1:]...)
			command.Stdout, command.Stderr = &out, &out
			return command.Run()
		})
		if err != nil {
			h.t.Fatalf("%s: %v\n%s", line, err, out.String())
		}
	}
	return out.String()
}

func (h *testHost) apply(objects ...tunnel.Object) {
	h.t.Helper()
	for _, want := range objects {
		if err := h.driver.Apply(h.t.Context(), want); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *testHost) remove(objects ...tunnel.Object) {
	h.t.Helper()
	for _, have := range objects {
		if err := h.driver.Delete(h.t.Context(), have); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *testHost) observe() map[tunnel.Key]tunnel.Object {
	h.t.Helper()
	have, err := h.driver.Observe(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return have
}

// check compares what there is with what should be.
func (h *testHost) check(want ...tunnel.Object) {
	h.t.Helper()
	have := h.observe()
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

// reconcile does what the agent does: nothing of ours but want.
func (h *testHost) reconcile(want ...tunnel.Object) {
	h.t.Helper()
	have := h.observe()
	for _, w := range want {
		if have[w.Key()] != w {
			h.apply(w)
		}
		delete(have, w.Key())
	}
	keys := slices.SortedFunc(maps.Keys(have), tunnel.Key.Compare)
	for _, key := range slices.Backward(keys) {
		h.remove(have[key])
	}
}

// drain takes the tokens that are due to what was done so far.
func (h *testHost) drain() {
	for {
		select {
		case <-h.driver.Changes():
		case <-time.After(20 * time.Millisecond):
			return
		}
	}
}

// awaitToken waits until the Driver says that something changed.
func (h *testHost) awaitToken(why string) {
	h.t.Helper()
	select {
	case <-h.driver.Changes():
	case <-time.After(10 * time.Second):
		h.t.Errorf("no token after %s", why)
	}
}

// dump is everything on the host that lasts and that the kernel does not make
// by itself some time later.
func (h *testHost) dump() (lines []string) {
	h.t.Helper()
	all := h.run("ip -d link", "ip addr", "ip route show table all", "ip -6 route show table all",
		"ip neigh show nud permanent", "bridge fdb show")
	for line := range strings.Lines(all) {
		late := []string{"fe80:", "ff00::/8", "33:33:", "01:00:5e:", "table local", "valid_lft", "gc_timer"}
		if !slices.ContainsFunc(late, func(text string) bool { return strings.Contains(line, text) }) {
			lines = append(lines, strings.ReplaceAll(line, " tentative", ""))
		}
	}
	return lines
}

// checkForeign compares what there is with an earlier dump.
func (h *testHost) checkForeign(before []string) {
	h.t.Helper()
	after := h.dump()
	for _, line := range before {
		if i := slices.Index(after, line); i >= 0 {
			after = slices.Delete(after, i, i+1)
		} else {
			h.t.Errorf("gone or changed: %s", line)
		}
	}
	for _, line := range after {
		h.t.Errorf("new: %s", line)
	}
}

var (
	ownMAC  = tunnel.MAC{0x26, 0x84, 0x0f, 0xb6, 0xca, 0x63}
	ownMAC6 = tunnel.MAC{0x52, 0xb1, 0x0a, 0xc9, 0x6a, 0x41}
	peerMAC = tunnel.MAC{0x1a, 0xdc, 0x8d, 0xed, 0x47, 0xfd}
)

// device4 and device6 are the VXLAN devices of flannel's golden state.
func device4() tunnel.Link {
	return tunnel.Link{
		Name: "flannel.1", Type: tunnel.LinkVXLAN, MTU: 1450, MAC: ownMAC, VNI: 1, Port: 8472,
		Local: netip.MustParseAddr("192.168.7.1"), Parent: "eth0",
	}
}

func device6() tunnel.Link {
	return tunnel.Link{
		Name: "flannel-v6.1", Type: tunnel.LinkVXLAN, MTU: 1430, MAC: ownMAC6, VNI: 1, Port: 8472,
		Local: netip.MustParseAddr("fd77::1"), Parent: "eth0",
	}
}

// peer returns the objects for one peer on a device.
func peer(link, subnet string, mac tunnel.MAC, remote string) []tunnel.Object {
	prefix := netip.MustParsePrefix(subnet)
	return []tunnel.Object{
		tunnel.Neighbor{Link: link, IP: prefix.Addr(), MAC: mac},
		tunnel.FDBEntry{Link: link, MAC: mac, Remote: netip.MustParseAddr(remote)},
		tunnel.Route{Prefix: prefix, Via: prefix.Addr(), Link: link, OnLink: true},
	}
}

// golden is the state of flannel's golden node, with its one peer.
func golden() []tunnel.Object {
	objects := []tunnel.Object{
		device4(), device6(),
		tunnel.Address{Link: "flannel.1", Prefix: netip.MustParsePrefix("10.244.17.0/32")},
		tunnel.Address{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd00:10:244:3c::/128")},
	}
	objects = append(objects, peer("flannel.1", "10.244.1.0/24", peerMAC, "192.168.7.2")...)
	return append(objects, peer("flannel-v6.1", "fd00:10:244:1c::/64", peerMAC, "fd77::2")...)
}
