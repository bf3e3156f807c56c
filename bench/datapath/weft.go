package datapath

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// weft is weft's userspace engine as the agent runs it, with one static peer.
type weft struct{ *engine.Engine }

func openWeft(config endConfig, logger *slog.Logger) (carrier, error) {
	open, listen := datapath.Config{Device: config.Device, MTU: config.MTU, Inside: config.inside(), BusyPoll: datapath.DefaultBusyPoll, Logger: logger}, []netip.AddrPort{config.Own.Outer}
	if config.Own.Private != "" {
		open.WireGuard = listen
	} else {
		open.Listen = listen
	}
	workers, err := datapath.Open(open)
	if err != nil {
		return nil, err
	}
	running, err := newEngine(config, workers, logger)
	return weft{running}, err
}

// newEngine makes an engine that knows its peer.
func newEngine(config endConfig, workers []engine.Worker, logger *slog.Logger) (*engine.Engine, error) {
	peer := tunnel.Peer{
		Name: "peer", Prefixes: []netip.Prefix{config.Peer.Subnet}, Endpoint: config.Peer.Outer, MTU: config.MTU,
		MAC: config.Peer.MAC, VNI: vxlanVNI, RemoteChecksum: config.Peer.RemoteChecksum,
	}
	keys, err := config.wireGuard(&peer)
	if err != nil {
		return nil, err
	}
	running, err := engine.New(engine.Config{Workers: workers, WireGuard: keys, Logger: logger})
	if err != nil {
		return nil, err
	}
	err = running.SetLocals([]tunnel.Local{{Subnet: config.Own.Subnet, MAC: config.Own.MAC, VNI: vxlanVNI}})
	if err != nil {
		return nil, err
	}
	err = running.SetPeers([]tunnel.Peer{peer})
	if err != nil {
		return nil, err
	}
	return running, nil
}

// wireGuard is this end's keys, if it has any; peer is then one by WireGuard.
func (c endConfig) wireGuard(peer *tunnel.Peer) (config wireguard.Config, err error) {
	if c.Own.Private == "" {
		return config, nil
	}
	if _, err = hex.Decode(config.Key[:], []byte(c.Own.Private)); err != nil {
		return config, fmt.Errorf("decode private key: %w", err)
	}
	if _, err = hex.Decode(peer.Keys[0][:], []byte(c.Peer.Public)); err != nil {
		return config, fmt.Errorf("decode public key: %w", err)
	}
	peer.Encap, peer.WireGuard = tunnel.EncapWireGuard, peer.Endpoint
	return config, nil
}

// Counters implements carrier.
func (w weft) Counters() map[string]uint64 {
	counters := map[string]uint64{}
	w.Stats().Each(func(name string, value uint64) { counters[name] = value })
	return counters
}
