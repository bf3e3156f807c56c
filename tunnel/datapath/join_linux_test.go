package datapath_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/udp"
)

// TestWireGuardRunsAreJoined: the kernel joins the datagrams of every flow on
// WireGuard's port, though it asks any of those on the port whether it may:
// probes leave from there, too.
func TestWireGuardRunsAreJoined(t *testing.T) {
	const port, flows, each, size = 51820, 40, 10, 1000
	world := labtest.New(t)
	var hosts []*lab.Host
	for _, name := range []string{"host1", "host2"} {
		host := labtest.Host(t, world, lab.HostConfig{Name: name})
		// The wire takes datagrams one by one, and the receiver joins them.
		if err := host.Link(lab.LinkProps{Offload: lab.OffloadNone}); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, host)
	}
	to := netip.AddrPortFrom(hosts[1].Addr(4), port)
	workers := openOn(t, hosts[1], datapath.Config{WireGuard: []netip.AddrPort{to}, Workers: 1, Offloads: datapath.Offloads{Ring: tunnel.Off}})
	payload := make([]byte, each*size)
	for flow := range flows {
		sendRun(t, hosts[0], uint16(40000+flow), tunnel.Datagrams{Addr: to, SegmentSize: size, Parts: [][]byte{payload}})
	}
	left, single := flows*each, 0
	batch, arena := make([]tunnel.Datagrams, 64), make([]byte, 65*tunnel.MinArena)
	for deadline := time.Now().Add(10 * time.Second); left > 0 && time.Now().Before(deadline); {
		n, err := workers[0].Sealed[0].Receive(batch, arena)
		if err != nil {
			t.Fatal(err)
		}
		for _, run := range batch[:n] {
			left -= len(run.Data) / size
			if run.SegmentSize == 0 {
				single++
			}
		}
	}
	if left > 0 || single > flows {
		t.Errorf("%d of %d datagrams did not arrive, %d came singly, want at most %d", left, flows*each, single, flows)
	}
}

// sendRun sends a run from a port of a host.
func sendRun(t *testing.T, host *lab.Host, port uint16, run tunnel.Datagrams) {
	t.Helper()
	err := host.Do(func() error {
		socket, err := udp.Listen(udp.Config{Addr: netip.AddrPortFrom(host.Addr(4), port)})
		if err != nil {
			return err
		}
		defer socket.Close()
		_, err = socket.Send([]tunnel.Datagrams{run})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
