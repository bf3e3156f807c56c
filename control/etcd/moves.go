package etcd

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// move is what this host publishes from now on.
type move struct {
	value   []byte
	publics []netip.Addr
}

// Move replaces the claim of Acquire, as this host's outer addresses have
// changed. It does not wait: Run publishes it. A connection that was made before
// may be dead without anybody being told, so it is made anew.
func (s *Source) Move(claim control.Claim) error {
	value, err := lease.FormatValue(claim)
	if err == nil {
		err = s.checkFamilies(claim)
	}
	if err != nil {
		return fmt.Errorf("move lease: %w", err)
	}
	select {
	case <-s.moves: // out of date
	default:
	}
	s.moves <- move{value, publicIPs(claim)}
	s.hangUp()
	return nil
}

// Recalls never has anything: no user sets anything for a host in etcd.
func (s *Source) Recalls() <-chan control.Recall { return nil }

// hangUp ends the connection; the next request makes one.
func (s *Source) hangUp() {
	s.mu.Lock()
	conn := s.conn
	s.conn = nil
	s.mu.Unlock()
	if conn != nil {
		_ = conn.Close() // what it still had to do fails, and is tried again
	}
}

// depart has settle put the own lease right by a move. Until that is done the
// lease is ours by the addresses that it has.
func (s *Source) depart(m move) {
	moved := *s.own
	moved.leaving = slices.Concat(moved.leaving, moved.publics)
	moved.value, moved.publics = m.value, m.publics
	moved.rewritten = time.Time{} // this is no quarrel
	s.own = &moved
}
