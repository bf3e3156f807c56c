package demo

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// TestInProcess holds that hosts in one process are whole members: leases, echo,
// TCP and UDP all ways, in both families.
func TestInProcess(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	demo := InProcess{Hosts: 3, Stream: 300 * time.Millisecond, Progress: func(line string) { t.Log(line) }}
	report, err := demo.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := report.Err(); err != nil {
		t.Error(err)
	}
	if len(report.Hosts) != 3 || len(report.Reach) != 6 || len(report.Ports) != 12 || len(report.Throughput) != 2 {
		t.Errorf("%d hosts, %d pairs, %d ways to ports, %d streams", len(report.Hosts), len(report.Reach), len(report.Ports), len(report.Throughput))
	}
	families := 1
	if hasLoopback6(t.Context()) {
		families = 2
	}
	for _, h := range report.Hosts {
		if h.Device != "none" || h.Engine != "userspace" || h.Encap != "vxlan" || len(h.Subnets) != families || h.MTU >= wireMTU {
			t.Errorf("host is %+v", h)
		}
	}
	for _, pair := range report.Reach {
		if len(pair.Answers) != families || slowest(pair.Answers) <= 0 {
			t.Errorf("reach %+v", pair)
		}
	}
	for _, stream := range report.Throughput {
		if stream.Gbps <= 0 {
			t.Errorf("throughput %+v", stream)
		}
	}
	left, err := os.ReadDir(os.TempDir())
	if err != nil || len(left) > 0 {
		t.Errorf("files are left behind: %v %v", left, err)
	}
}

func TestInProcessEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	demo := InProcess{Hosts: 2, Progress: func(line string) {
		if strings.HasPrefix(line, "pinging") {
			cancel()
		}
	}}
	if _, err := demo.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted demo ends with %v", err)
	}
}

func TestInProcessConfig(t *testing.T) {
	for _, n := range []int{0, 1, maxSolo + 1} {
		if _, err := (InProcess{Hosts: n}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "want 2 to 100") {
			t.Errorf("%d hosts: %v", n, err)
		}
	}
	t.Setenv("TMPDIR", "/nowhere")
	if _, err := (InProcess{Hosts: 2}).Run(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nowhere to put files: %v", err)
	}
}

// TestExchange holds that peers are known by their outer addresses alone.
func TestExchange(t *testing.T) {
	wires := newExchange()
	a, b := netip.MustParseAddrPort("192.168.64.1:8472"), netip.MustParseAddrPort("192.168.64.2:8472")
	from, err := wires.listen(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := wires.listen(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	run := func(to string) tunnel.Datagrams {
		return tunnel.Datagrams{Addr: netip.MustParseAddrPort(to), Parts: [][]byte{[]byte("hello")}}
	}
	batch := []tunnel.Datagrams{run("192.168.64.2:8472"), run("192.168.64.3:8472"), run("192.168.64.2:8472")}
	if n, err := from.Send(batch); n != 1 || err == nil || !strings.Contains(err.Error(), "192.168.64.3") {
		t.Errorf("sent %d: %v", n, err)
	}
	if batch[0].Addr != b {
		t.Errorf("the engine's batch was changed to %v", batch[0].Addr)
	}
	got := make([]tunnel.Datagrams, 4)
	n, err := to.Receive(got, make([]byte, tunnel.MinArena))
	if err != nil || n != 1 || got[0].Addr != a || string(got[0].Data) != "hello" || from.Local() != a {
		t.Errorf("received %d %+v: %v", n, got[:n], err)
	}
}
