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
	value   []byte
	changed int64 // revision of our last write, or of one that is as good

	etcd    clientv3.LeaseID // 0: permanent, a reservation
	ttl     time.Duration    // of the etcd lease
	renewed time.Time

	rewritten time.Time
	spoiled   bool // the key does not say what it should, and waits for its rewrite
}

func (h *holding) has(subnet netip.Prefix) bool { return slices.Contains(h.subnets, subnet) }

// settle makes sure, on a fresh listing, that the own lease is there, says
// what it should and is ours. nil means that it was so; any error but ErrLost
// asks for another listing.
func (s *Source) settle(ctx context.Context, t *table) error {
	e := t.entries[s.own.key]
	if e == nil {
		return s.restore(ctx, t)
	}
	ours := e.publishedBy(s.own.publics) > 0
	if !ours && e.problem == "" && len(e.value.PublicIPs()) > 0 {
		return fmt.Errorf("%w: %s now belongs to %s; remove that key, or restart this host's agent to get another subnet", ErrLost, e.key, e.value.PublicIPs()[0])
	}
	if ours && e.etcd != s.own.etcd {
		// Put anew by someone who meant us: without a lease, that is a reservation.
		s.cfg.Logger.Info("own lease was put anew", "key", e.key, "permanent", e.etcd == 0)
		s.own.etcd, s.own.ttl, s.own.renewed = e.etcd, s.cfg.ttl, time.Time{}
	}
	s.own.changed = e.changed
	s.own.spoiled = !bytes.Equal(e.raw, s.own.value)
	if s.own.spoiled && time.Since(s.own.rewritten) >= rewriteTime {
		return s.rewrite(ctx, t, e)
	}
	return nil
}

// restore makes the own key again after it has gone, if its subnets are free.
func (s *Source) restore(ctx context.Context, t *table) error {
	for i, family := range s.network.Families {
		taken := takenBy(t, family, func(*entry) bool { return true })
		if taken.overlaps(s.own.subnets[i]) {
			return fmt.Errorf("%w: %s expired or was deleted, and %s has been leased to another host since; restart this host's agent to get another subnet", ErrLost, s.own.key, s.own.subnets[i])
		}
	}
	fresh := *s.own
	var expired *entry
	if fresh.etcd != 0 {
		expired = &entry{etcd: fresh.etcd}
	}
	var spare clientv3.LeaseID
	if err := s.secure(ctx, &fresh, expired, &spare); err != nil {
		return err
	}
	if err := s.commit(ctx, &fresh, nil, nil, t.revision); err != nil {
		s.revoke(ctx, spare)
		return err
	}
	s.own = &fresh
	s.cfg.Logger.Warn("own lease had expired or was deleted and was made again", "key", fresh.key)
	return errors.New("the own lease was restored")
}

// rewrite puts the own value back into the own key.
func (s *Source) rewrite(ctx context.Context, t *table, e *entry) error {
	fresh := *s.own
	fresh.rewritten, fresh.spoiled = time.Now(), false
	if err := s.commit(ctx, &fresh, e, nil, t.revision); err != nil {
		return err
	}
	s.own = &fresh
	s.cfg.Logger.Warn("own lease was changed by another and was put right; is there a second agent with this address?", "key", fresh.key)
	return errors.New("the own lease was put right")
}

// nextUpkeep is the time until tend is due.
func (s *Source) nextUpkeep() time.Duration {
	next := probeTime
	if s.own.etcd != 0 {
		next = min(next, time.Until(s.renewAt()))
	}
	if s.own.spoiled {
		next = min(next, time.Until(s.own.rewritten.Add(rewriteTime)))
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
	if s.own.spoiled && time.Since(s.own.rewritten) >= rewriteTime {
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
	s.waiting("")
	return s.nextUpkeep(), nil
}
