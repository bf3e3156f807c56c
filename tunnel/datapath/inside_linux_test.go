package datapath_test

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

// TestInside: the TUN is in the network namespace that Inside leads to, and the
// sockets are where Open is called.
func TestInside(t *testing.T) {
	world, err := lab.New(lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := world.Host(lab.HostConfig{Name: "host"})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := host.NewNamespace("inner")
	if err != nil {
		t.Fatal(err)
	}
	var workers []engine.Worker
	err = host.Do(func() (err error) {
		workers, err = datapath.Open(datapath.Config{
			Device: "weft0", MTU: 1450, Listen: []netip.AddrPort{netip.AddrPortFrom(host.Addr(4), interopPort)},
			Inside: inner.Do, Workers: 2, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
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
	for _, w := range workers {
		if err := w.Poller.Close(); err != nil {
			t.Error(err)
		}
		if err := w.Device.Close(); err != nil {
			t.Error(err)
		}
		for _, s := range w.Sockets {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, p := range w.Probes {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
