package datapath_test

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

// openOn opens the workers of a host and closes them when the test ends.
func openOn(t *testing.T, host *lab.Host, config datapath.Config) (workers []engine.Worker) {
	t.Helper()
	config.Device, config.MTU, config.Logger = "weft0", 1450, slog.New(slog.DiscardHandler)
	err := host.Do(func() (err error) {
		workers, err = datapath.Open(config)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, w := range workers {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return workers
}

// TestInside: the TUN is in the network namespace that Inside leads to, and the
// sockets are where Open is called.
func TestInside(t *testing.T) {
	host := labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "host"})
	inner, err := host.NewNamespace("inner")
	if err != nil {
		t.Fatal(err)
	}
	workers := openOn(t, host, datapath.Config{
		Listen: []netip.AddrPort{netip.AddrPortFrom(host.Addr(4), interopPort)}, Inside: inner.Do, Workers: 2,
	})
	for where, place := range map[string]*lab.Namespace{"host": host.Namespace, "inside": inner} {
		err := place.Do(func() error {
			_, err := net.InterfaceByName("weft0")
			return err
		})
		if (err == nil) != (where == "inside") {
			t.Errorf("TUN %s: %v", where, err)
		}
	}
	if mtu, err := workers[0].Device.MTU(); mtu != 1450 || err != nil {
		t.Errorf("MTU is %d, %v", mtu, err)
	}
}

// TestFewPorts: where the kernel has hardly any port to give away, those that it
// gives to VXLAN's send sockets are not WireGuard's.
func TestFewPorts(t *testing.T) {
	const port, portV6 = 51820, 51821
	host := labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "host"})
	labtest.Sysctl(t, host.Namespace, "net/ipv4/ip_local_port_range", "51816 51827")
	workers := openOn(t, host, datapath.Config{
		Listen:    []netip.AddrPort{netip.AddrPortFrom(host.Addr(4), interopPort), netip.AddrPortFrom(host.Addr(6), interopPort)},
		WireGuard: []netip.AddrPort{netip.AddrPortFrom(host.Addr(4), port), netip.AddrPortFrom(host.Addr(6), portV6)},
		Workers:   1,
	})
	if w := workers[0]; len(w.Sockets) != 2 || len(w.Sealed) != 2 || len(w.Probes) != 2 || len(w.SealedProbes) != 2 {
		t.Errorf("%d sockets, %d of WireGuard, %d and %d of probes, want 2 each", len(w.Sockets), len(w.Sealed), len(w.Probes), len(w.SealedProbes))
	}
}
