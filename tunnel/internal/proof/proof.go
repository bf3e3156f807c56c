// Package proof tells answers to probes from those that somebody else made up.
// It must never import the OS or the clock.
package proof

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

// Prover knows a secret. The zero Prover is of no use.
type Prover struct{ seed maphash.Seed }

// New makes a Prover, whose secret is like no other's.
func New() Prover { return Prover{maphash.MakeSeed()} }

// Of binds a token, which may be guessed, to the address that it was sent to, so
// that nobody who has had tokens can answer in the name of another.
func (p Prover) Of(token uint64, to netip.Addr) uint32 {
	var b [24]byte
	addr := to.As16()
	copy(b[:], addr[:])
	binary.BigEndian.PutUint64(b[16:], token)
	return uint32(maphash.Bytes(p.seed, b[:]))
}
