// Package peertable answers, for one moment, which peer owns an inner address
// and whether a peer may send from it. A Table never changes; whoever holds one
// swaps it for another. It must never import the OS or the clock, and never
// take a lock.
package peertable

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/weft-net/weft/tunnel"
)

// Bounds of Peer.MTU: below the lower ones IPv4 (RFC 791) and IPv6 (RFC 8200)
// do not work at all.
const (
	minMTU4 = 68
	minMTU6 = 1280
	maxVNI  = 1<<24 - 1
)

// Table is an immutable longest-prefix table of peers. The zero Table and a
// nil Table have no peers.
type Table struct {
	prefixes bart.Table[*Entry]
	entries  []*Entry
}

// Entry is a peer in a Table.
type Entry struct {
	tunnel.Peer
	// Number counts the peers of the Table from 0, for what others keep of each.
	Number int
}

// Build makes a Table of every sound peer. The error joins one error per peer
// that was left out, and why; the Table is usable whatever the error. A prefix
// that two peers claim stays with the earlier one and the later peer is left
// out whole. Build copies peers but keeps their Prefixes.
func Build(peers []tunnel.Peer) (*Table, error) {
	table := &Table{}
	owned := make([]Entry, len(peers))
	var errs []error
	for i := range owned {
		peer := &owned[i]
		*peer = Entry{peers[i], len(table.entries)}
		if err := table.check(&peer.Peer); err != nil {
			errs = append(errs, fmt.Errorf("add peer %q: %w", peer.Name, err))
			continue
		}
		for _, prefix := range peer.Prefixes {
			table.prefixes.Insert(prefix, peer)
		}
		table.entries = append(table.entries, peer)
	}
	return table, errors.Join(errs...)
}

// check says why peer cannot be added to t.
func (t *Table) check(peer *tunnel.Peer) error {
	if len(peer.Prefixes) == 0 {
		return errors.New("no prefixes: a peer needs at least one")
	}
	is4 := peer.Prefixes[0].Addr().Is4()
	for _, prefix := range peer.Prefixes {
		switch {
		case !prefix.IsValid() || prefix != prefix.Masked() || prefix.Addr().Is4In6():
			return fmt.Errorf("prefix %v: want a valid masked prefix, as in 10.244.2.0/24", prefix)
		case prefix.Addr().Is4() != is4:
			return fmt.Errorf("prefix %v: all prefixes of a peer are of one family", prefix)
		}
		if other, ok := t.prefixes.Get(prefix); ok {
			return fmt.Errorf("prefix %v: peer %q has it already", prefix, other.Name)
		}
	}
	minMTU := minMTU6
	if is4 {
		minMTU = minMTU4
	}
	outer := peer.Endpoint.Addr()
	switch {
	case !outer.IsValid() || outer.Is4In6() || outer.IsUnspecified() || outer.IsMulticast():
		return fmt.Errorf("endpoint %v: want a unicast outer address", peer.Endpoint)
	case peer.Endpoint.Port() == 0:
		return fmt.Errorf("endpoint %v: want a UDP port, as in 8472", peer.Endpoint)
	case peer.Encap == tunnel.EncapWireGuard && (peer.Keys[0] == tunnel.PublicKey{} || peer.WireGuard != peer.Endpoint):
		return errors.New("a peer by WireGuard: want its public key, and its endpoint also as that of WireGuard")
	case peer.Encap != tunnel.EncapWireGuard && (peer.MAC == tunnel.MAC{} || peer.MAC[0]&1 != 0):
		return fmt.Errorf("MAC %v: want a unicast address", peer.MAC)
	case peer.VNI > maxVNI:
		return fmt.Errorf("VNI %d: want at most %d", peer.VNI, maxVNI)
	case peer.MTU < minMTU || peer.MTU > tunnel.MaxPacket:
		return fmt.Errorf("MTU %d: want %d to %d", peer.MTU, minMTU, tunnel.MaxPacket)
	}
	return nil
}

// Len is the number of peers.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.entries)
}

// Entries are all peers by their numbers. They must not be changed.
func (t *Table) Entries() []*Entry {
	if t == nil {
		return nil
	}
	return t.entries
}

// Lookup returns the peer with the longest prefix that holds the inner address.
// The Entry must not be changed.
func (t *Table) Lookup(inner netip.Addr) (*Entry, bool) {
	if t == nil {
		return nil, false
	}
	return t.prefixes.Lookup(inner)
}

// Allowed returns the peer that a plain packet from the outer address with the
// inner source address comes from, if there is one: only the peer that owns the
// inner address may send from it, if it may send what is not sealed at all. The
// outer port is not compared, because kernel peers
// hash theirs. The Entry must not be changed.
func (t *Table) Allowed(outer, inner netip.Addr) (*Entry, bool) {
	peer, ok := t.Lookup(inner)
	return peer, ok && !peer.Sealed && peer.Endpoint.Addr() == outer
}
