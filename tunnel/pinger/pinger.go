// Package pinger probes ways that are the kernel's: with ICMP echo requests by
// its routes, or in VXLAN datagrams of our own past them. Answers come to the
// kernel by whatever way the peer has chosen. It must never change anything on
// the host.
package pinger

import (
	"errors"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

// ErrUnable means that this host has no means for a probe, whatever the way.
var ErrUnable = errors.New("this host cannot probe")

// Config is what a Pinger is made of.
type Config struct {
	// Outer are the local addresses that VXLAN is sent from, at most one per family.
	Outer []netip.Addr
	// Answered is told the token of a probe that was answered. It is called by Run,
	// and must not wait.
	Answered func(token uint64)
}

// VXLAN is a way past the kernel's routes.
type VXLAN struct {
	Local tunnel.Local   // this host, as the peer knows it; its network address is probed from
	To    netip.AddrPort // outer
	MAC   tunnel.MAC     // of the peer's VTEP
}
