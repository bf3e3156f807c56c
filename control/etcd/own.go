package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrLost means that another host holds this host's subnet.
var ErrLost = errors.New("lease lost")

// rewriteTime bounds how often a lease is put right that someone keeps
// changing: every write reaches every host of the network.
const rewriteTime = time.Minute

// holding is the lease this host holds.
type holding struct {
	key     string // absolute
	subnets []netip.Prefix
	publics []netip.Addr
	leaving []netip.Addr // published before, by a lease that is to be rewritten
	value   []byte
	changed int64 // revision of our last write, or of one that is as good

	etcd    clientv3.LeaseID // 0: permanent, a reservation
	ttl     time.Duration    // of the etcd lease
	renewed time.Time

	rewritten time.Time
	due       time.Time // when the key, which is not as it should be, is put right; zero: it is
}

func (h *holding) has(subnet netip.Prefix) bool { return slices.Contains(h.subnets, subnet) }

// settle makes sure, on a fresh listing, that the own lease is there, says
// what it should and is ours. An error asks for another listing, unless it is
// ErrLost. What cannot be put right now is put off, so that it keeps nobody
// from hearing of the other leases.
func (s *Source) settle(ctx context.Context, t *table) error {
	e := t.entries[s.own.key]
	switch {
	case e == nil:
		if subnet := s.takenAway(t); subnet.IsValid() {
			return fmt.Errorf("%w: %s expired or was deleted, and %s has been leased to another host since; restart this host's agent to get another subnet", ErrLost, s.own.key, subnet)
		}
	case e.publishedBy(slices.Concat(s.own.publics, s.own.leaving)) > 0:
		s.adopt(e)
	case e.problem == "" && len(e.value.PublicIPs()) > 0:
		return fmt.Errorf("%w: %s now belongs to %s; remove that key, or restart this host's agent to get another subnet", ErrLost, e.key, e.value.PublicIPs()[0])
	}
	if e != nil && bytes.Equal(e.raw, s.own.value) {
		s.own.due, s.own.leaving = time.Time{}, nil
		s.waiting("")
		return nil
	}
	if s.own.due = s.own.rewritten.Add(rewriteTime); e != nil && time.Now().Before(s.own.due) {
		s.waiting("")
		return nil
	}
	err := s.putRight(ctx, t, e)
	if err == nil || errors.Is(err, errRace) {
		return errors.New("the own lease was touched")
	}
	s.own.due = time.Now().Add(maxPause)
	if s.stopped(ctx) == nil {
		s.waiting(s.explain("put right own lease", err))
	}
	return nil
}

// takenAway returns a subnet of ours that overlaps another lease; the zero
// Prefix if there is none.
func (s *Source) takenAway(t *table) netip.Prefix {
	for i, family := range s.network.Families {
		taken := takenBy(t, family, func(*entry) bool { return true })
		if taken.overlaps(s.own.subnets[i]) {
			return s.own.subnets[i]
		}
	}
	return netip.Prefix{}
}

// adopt takes over what someone has put into our key who meant us. Without an
// etcd lease that made it a reservation.
func (s *Source) adopt(e *entry) {
	s.own.changed = e.changed
	if e.etcd != s.own.etcd {
		s.cfg.Logger.Info("own lease was put anew", "key", e.key, "permanent", e.permanent())
		s.own.etcd, s.own.ttl, s.own.renewed = e.etcd, s.cfg.ttl, time.Time{}
	}
}

// putRight writes the own lease; e is what the key holds, nil if it is gone.
func (s *Source) putRight(ctx context.Context, t *table, e *entry) error {
	fresh := *s.own
	fresh.rewritten, fresh.due = time.Now(), time.Time{}
	before := &entry{etcd: fresh.etcd}
	if e == nil && before.permanent() {
		before = nil // whoever deleted a reservation wants it no more
	}
	var spare clientv3.LeaseID
	err := s.secure(ctx, &fresh, before, &spare)
	if err == nil {
		err = s.commit(ctx, &fresh, e, nil, t.revision)
	}
	if err != nil {
		s.revoke(ctx, spare)
		return err
	}
	s.own = &fresh
	if len(fresh.leaving) > 0 {
		s.cfg.Logger.Info("own lease was rewritten for this host's new addresses", "key", fresh.key, "addresses", fresh.publics)
		return nil
	}
	s.cfg.Logger.Warn("own lease was deleted, had expired or was changed, and was put right", "key", fresh.key, "gone", e == nil)
	return nil
}

// nextUpkeep is the time until tend is due.
func (s *Source) nextUpkeep() time.Duration {
	next := probeTime
	if s.own.etcd != 0 {
		next = min(next, time.Until(s.renewAt()))
	}
	if !s.own.due.IsZero() {
		next = min(next, time.Until(s.own.due))
	}
	return max(next, minPause)
}

// renewAt is when the etcd lease is renewed: well before the margin begins,
// because renewing costs nothing and an outage may come at any time.
func (s *Source) renewAt() time.Time {
	after := s.own.ttl / 3
	if s.own.ttl > s.cfg.RenewMargin {
		after = min(after, s.own.ttl-s.cfg.RenewMargin)
	}
	return s.own.renewed.Add(after)
}

// tend renews the etcd lease when it is time, and otherwise makes sure that
// etcd still answers: a watch alone does not tell. Renewing is safe against
// another owner by itself: it touches only keys that hang on our etcd lease.
// It returns the time until it wants to be called again; an error asks for a
// fresh listing.
func (s *Source) tend(ctx context.Context) (next time.Duration, err error) {
	if !s.own.due.IsZero() && !time.Now().Before(s.own.due) {
		return 0, errors.New("the own lease is to be put right")
	}
	if s.own.etcd != 0 && !time.Now().Before(s.renewAt()) {
		var ttl time.Duration
		if ttl, err = s.keepAlive(ctx, s.own.etcd); err == nil {
			if ttl == 0 {
				return 0, errors.New("the own lease has expired")
			}
			s.own.ttl, s.own.renewed = ttl, time.Now()
		}
	} else {
		err = s.ask(ctx, func(ctx context.Context, client *clientv3.Client) error {
			_, err := client.Get(ctx, s.own.key, clientv3.WithCountOnly())
			return err
		})
	}
	if err != nil {
		if s.stopped(ctx) == nil {
			s.waiting(s.explain("keep lease", err) + "; going on with the leases known so far")
		}
		return maxPause, nil
	}
	if s.own.due.IsZero() {
		s.waiting("")
	}
	return s.nextUpkeep(), nil
}
