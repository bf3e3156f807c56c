package datapath

import (
	"log/slog"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
)

// weft is weft's userspace engine as the agent runs it, with one static peer.
type weft struct{ *engine.Engine }

func openWeft(config endConfig, logger *slog.Logger) (carrier, error) {
	workers, err := datapath.Open(datapath.Config{
		Device: config.Device, MTU: config.MTU, Listen: []netip.AddrPort{config.Own.Outer}, Inside: config.inside(), Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	running, err := newEngine(config, workers, logger)
	return weft{running}, err
}

// newEngine makes an engine that knows its peer.
func newEngine(config endConfig, workers []engine.Worker, logger *slog.Logger) (*engine.Engine, error) {
	running, err := engine.New(engine.Config{Workers: workers, Logger: logger})
	if err != nil {
		return nil, err
	}
	err = running.SetLocals([]tunnel.Local{{Subnet: config.Own.Subnet, MAC: config.Own.MAC, VNI: vxlanVNI}})
	if err != nil {
		return nil, err
	}
	err = running.SetPeers([]tunnel.Peer{{
		Name: "peer", Prefixes: []netip.Prefix{config.Peer.Subnet}, Endpoint: config.Peer.Outer,
		MAC: config.Peer.MAC, VNI: vxlanVNI, MTU: config.MTU, RemoteChecksum: config.Peer.RemoteChecksum,
	}})
	if err != nil {
		return nil, err
	}
	return running, nil
}

// Counters implements carrier.
func (w weft) Counters() map[string]uint64 {
	counters := map[string]uint64{}
	w.Stats().Each(func(name string, value uint64) { counters[name] = value })
	return counters
}
