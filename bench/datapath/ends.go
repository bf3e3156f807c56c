package datapath

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/kernel"
)

const (
	vxlanMTU     = underlayMTU - 50 // outer IPv4, UDP, VXLAN and inner Ethernet
	vxlanVNI     = 1
	vxlanPort    = 8472
	kernelDevice = "flannel.1"

	wireGuardMTU  = underlayMTU - 60 // outer IPv4, UDP, and WireGuard's header and tag
	wireGuardPort = 51820

	userspaceDevice = "bench0"
)

// kernelVXLAN makes the host's end by weft's own driver, whose objects are
// flannel's: one device, and of the peer a neighbour, an FDB entry and a route.
func kernelVXLAN(ctx context.Context, p *pair, number int) error {
	own, peer := p.sites[number], p.sites[1-number]
	return own.apply(ctx,
		tunnel.Link{
			Name: kernelDevice, Type: tunnel.LinkVXLAN, MTU: vxlanMTU, MAC: own.mac, VNI: vxlanVNI,
			Port: vxlanPort, Local: own.outer, Parent: underlayDevice,
		},
		tunnel.Address{Link: kernelDevice, Prefix: netip.PrefixFrom(own.inner(), 32)},
		tunnel.Neighbor{Link: kernelDevice, IP: peer.inner(), MAC: peer.mac},
		tunnel.FDBEntry{Link: kernelDevice, MAC: peer.mac, Remote: peer.outer},
		tunnel.Route{Prefix: peer.subnet, Via: peer.inner(), Link: kernelDevice, OnLink: true},
	)
}

// apply makes objects of the kernel on the host.
func (s *site) apply(ctx context.Context, objects ...tunnel.Object) error {
	return s.place.Do(func() (err error) {
		driver, err := kernel.Open(kernel.Config{Logger: slog.New(slog.DiscardHandler), TUN: userspaceDevice})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, driver.Close()) }()
		for _, object := range objects {
			if err := driver.Apply(ctx, object); err != nil {
				return err
			}
		}
		return nil
	})
}

// endConfig is what a userspace end is told when it starts.
type endConfig struct {
	Device    string `json:"device"`
	MTU       int    `json:"mtu"` // of the device
	Own, Peer endSite
	// User is a process of an ordinary user in whose network namespace the device
	// is; empty: it is in that of the end, which has all rights.
	User string `json:"user,omitempty"`
	// Proxy is where an end without a device listens for SOCKS5, as host:port.
	Proxy   string `json:"proxy,omitempty"`
	Profile string `json:"profile,omitempty"` // file for a CPU profile
}

// endSite is what a userspace end is told of a host.
type endSite struct {
	Outer  netip.AddrPort
	Subnet netip.Prefix
	MAC    tunnel.MAC
	// RemoteChecksum is of the peer, as in tunnel.Peer.
	RemoteChecksum bool
	// A WireGuard key in hex, as its configuration protocol has it: the private
	// one of the own host, the public one of the peer.
	Private, Public string
}

// userspace starts a userspace end on a host and leads the peer's subnet to
// its device.
func (p *pair) userspace(ctx context.Context, kind string, number int, config endConfig) error {
	own, peer := p.sites[number], p.sites[1-number]
	config.Device = userspaceDevice
	if err := p.start(ctx, kind, number, config); err != nil {
		return err
	}
	return own.apply(ctx,
		tunnel.Link{Name: userspaceDevice, Type: tunnel.LinkTUN, MTU: config.MTU},
		tunnel.Address{Link: userspaceDevice, Prefix: netip.PrefixFrom(own.inner(), 32)},
		tunnel.Route{Prefix: peer.subnet, Link: userspaceDevice},
	)
}

// start starts a userspace end on a host.
func (p *pair) start(ctx context.Context, kind string, number int, config endConfig) error {
	host := p.sites[number].host
	process, err := p.bench.startEnd(ctx, host, kind, config)
	if err != nil {
		return fmt.Errorf("start %s on %s: %w", kind, host.Name(), err)
	}
	p.ends = append(p.ends, process)
	return nil
}

// describe is the site as userspace ends know it that listen on a port.
func (s *site) describe(port uint16) endSite {
	return endSite{Outer: netip.AddrPortFrom(s.outer, port), Subnet: s.subnet, MAC: s.mac}
}

// vxlanConfig is that of an end that speaks VXLAN.
func (p *pair) vxlanConfig(number int) endConfig {
	return endConfig{MTU: vxlanMTU, Own: p.sites[number].describe(vxlanPort), Peer: p.sites[1-number].describe(vxlanPort)}
}

// weftToWeft knows its peer for another engine, as weft's hosts do by their
// leases: one that finishes checksums.
func weftToWeft(ctx context.Context, p *pair, number int) error {
	config := p.vxlanConfig(number)
	config.Peer.RemoteChecksum = true
	return p.userspace(ctx, "weft", number, config)
}

func weftToKernel(ctx context.Context, p *pair, number int) error {
	return p.userspace(ctx, "weft", number, p.vxlanConfig(number))
}

func naiveTunnel(ctx context.Context, p *pair, number int) error {
	return p.userspace(ctx, "naive", number, p.vxlanConfig(number))
}

func wireGuardGo(ctx context.Context, p *pair, number int) error {
	return p.wireGuard(ctx, "wireguard-go", number)
}

func weftWireGuard(ctx context.Context, p *pair, number int) error {
	return p.wireGuard(ctx, "weft", number)
}

// wireGuard starts an end that speaks WireGuard.
func (p *pair) wireGuard(ctx context.Context, kind string, number int) error {
	if p.keys[number] == nil {
		for i := range p.keys {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return fmt.Errorf("make WireGuard key: %w", err)
			}
			p.keys[i] = key
		}
	}
	config := endConfig{
		MTU: wireGuardMTU,
		Own: p.sites[number].describe(wireGuardPort), Peer: p.sites[1-number].describe(wireGuardPort),
	}
	config.Own.Private = hex.EncodeToString(p.keys[number].Bytes())
	config.Peer.Public = hex.EncodeToString(p.keys[1-number].PublicKey().Bytes())
	return p.userspace(ctx, kind, number, config)
}
