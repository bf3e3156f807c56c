package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// maxStale bounds how many left-over leases of this host go in one transaction;
// etcd takes no more than 128 operations.
const maxStale = 16

// Reasons to try again, with a fresh listing.
var (
	errRace = errors.New("another host was faster")
	errFull = errors.New("no free subnet")
)

// Acquire publishes claim under a subnet and returns the lease. In order of
// preference the subnet is that of a lease this host's addresses have
// published before, that of the claim, one of Config.Previous, and one of the
// first hundred free ones. It waits while etcd is out of reach or the network
// is full. A lease without expiry is a reservation and stays one.
func (s *Source) Acquire(ctx context.Context, claim control.Claim) (control.Lease, error) {
	value, err := lease.FormatValue(claim)
	if err != nil {
		return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	if err := s.checkFamilies(claim); err != nil {
		return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
	}
	claim.Legs = slices.Clone(claim.Legs)
	var spare clientv3.LeaseID // granted, not yet used
	var pause backoff
	for {
		t, err := s.list(ctx)
		if err != nil {
			return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
		}
		own, err := s.tryAcquire(ctx, t, claim, value, &spare)
		if err == nil {
			// A write that seemed to fail may have used it all the same.
			if own.etcd != spare {
				s.revoke(ctx, spare)
			}
			s.own = own
			s.waiting("")
			return s.read(own)
		}
		if err := s.stopped(ctx); err != nil {
			return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
		}
		if !errors.Is(err, errRace) {
			s.waiting(s.explain("acquire lease", err))
			wishAgain(claim, own)
		}
		if err := pause.wait(ctx, s.ctx); err != nil {
			return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
		}
	}
}

// wishAgain makes the claim ask for what the last attempt asked for. A write
// that has not been answered may still come to pass, and a second one must
// then collide with it instead of making a second lease.
func wishAgain(claim control.Claim, last *holding) {
	if last != nil {
		for i := range claim.Legs {
			claim.Legs[i].Subnet = last.subnets[i]
		}
	}
}

// checkFamilies demands a leg for every family of the network: a lease is
// found by its IPv4 subnet, and a flanneld fails on one that lacks a family.
func (s *Source) checkFamilies(claim control.Claim) error {
	if len(claim.Legs) != len(s.network.Families) {
		return fmt.Errorf("the claim has %d address families, the network %d: give this host an address of each, or disable one in net-conf.json", len(claim.Legs), len(s.network.Families))
	}
	for i, family := range s.network.Families {
		if claim.Legs[i].PublicIP.Is4() != family.Network.Addr().Is4() {
			return fmt.Errorf("public IP %s does not belong to the family of %s", claim.Legs[i].PublicIP, family.Network)
		}
	}
	return nil
}

// read returns the lease as every other host will read it.
func (s *Source) read(own *holding) (control.Lease, error) {
	value, err := lease.ParseValue(own.value)
	if err != nil {
		return control.Lease{}, err
	}
	return value.Lease(lease.HostOfKey(own.key), own.subnets), nil
}

// tryAcquire makes one attempt on a listing. With an error it returns what it
// tried to write, if it got so far. An etcd lease that it had to make is left
// in spare, for the next attempt. Further leases of this host are left-overs
// and go, unless they are reservations or also another host's.
func (s *Source) tryAcquire(ctx context.Context, t *table, claim control.Claim, value []byte, spare *clientv3.LeaseID) (*holding, error) {
	publics := publicIPs(claim)
	var old *entry
	var ours []*entry
	for i, e := range t.publishedBy(publics, s.cfg.Previous) {
		if i == 0 {
			old = e
		}
		if e == old || e.publishedBy(publics) == len(e.value.PublicIPs()) {
			ours = append(ours, e)
		}
	}
	subnets, err := s.choose(t, claim, old, ours)
	if err != nil {
		return nil, err
	}
	relative, err := lease.FormatKey(subnets)
	if err != nil {
		return nil, err
	}
	own := &holding{key: s.key(relative), subnets: subnets, publics: publics, value: value}
	if there := t.entries[own.key]; there != nil {
		old = there // one of ours: a subnet of others is never chosen
	}
	if old != nil && old.permanent() && !slices.ContainsFunc(old.subnets, own.has) {
		old = nil // a reservation that cannot be used is not ours to delete
	}
	if err := s.secure(ctx, own, old, spare); err != nil {
		return own, err
	}
	stale := slices.DeleteFunc(ours, func(e *entry) bool { return e == old || e.permanent() })
	stale = stale[:min(len(stale), maxStale)]
	if old != nil && old.key == own.key && old.etcd == own.etcd && bytes.Equal(old.raw, value) && len(stale) == 0 {
		own.changed = old.changed
		return own, nil
	}
	return own, s.commit(ctx, own, old, stale, t.revision)
}

func publicIPs(claim control.Claim) []netip.Addr {
	addrs := make([]netip.Addr, len(claim.Legs))
	for i, leg := range claim.Legs {
		addrs[i] = leg.PublicIP
	}
	return addrs
}

// secure finds the etcd lease that own will hang on: that of the old key if it
// is alive and long enough, none if the old key is a reservation, else a new one.
func (s *Source) secure(ctx context.Context, own *holding, old *entry, spare *clientv3.LeaseID) error {
	if old != nil && old.permanent() {
		return nil
	}
	if old != nil {
		ttl, err := s.keepAlive(ctx, old.etcd)
		if err != nil {
			return err
		}
		if ttl >= s.cfg.ttl {
			own.etcd, own.ttl, own.renewed = old.etcd, ttl, time.Now()
			return nil
		}
	}
	if *spare == 0 {
		err := s.ask(ctx, func(ctx context.Context, client *clientv3.Client) error {
			granted, err := client.Grant(ctx, int64(s.cfg.ttl/time.Second))
			if err == nil {
				*spare = granted.ID
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	own.etcd, own.ttl, own.renewed = *spare, s.cfg.ttl, time.Now()
	return nil
}

// keepAlive renews an etcd lease and returns its time to live; 0 if it is gone.
func (s *Source) keepAlive(ctx context.Context, id clientv3.LeaseID) (ttl time.Duration, err error) {
	err = s.ask(ctx, func(ctx context.Context, client *clientv3.Client) error {
		kept, err := client.KeepAliveOnce(ctx, id)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil
		}
		if err == nil {
			ttl = time.Duration(kept.TTL) * time.Second
		}
		return err
	})
	return ttl, err
}

// revoke gives back an etcd lease that holds nothing. If that fails it lapses.
func (s *Source) revoke(ctx context.Context, id clientv3.LeaseID) {
	if id != 0 {
		_ = s.ask(ctx, func(ctx context.Context, client *clientv3.Client) error {
			_, err := client.Revoke(ctx, id)
			return err
		})
	}
}

// commit writes own, in place of old if there is one, and removes stale. It
// does so only if those are as listed, and if no key that may hold a subnet of
// own has come into being since the listing. With one family that is a key
// that begins like ours; with two it may be any, because two different keys
// may hold the same IPv6 subnet. errRace says that this was not so.
func (s *Source) commit(ctx context.Context, own *holding, old *entry, stale []*entry, listed int64) error {
	var still []clientv3.Cmp
	var then []clientv3.Op
	for _, e := range stale {
		still = append(still, clientv3.Compare(clientv3.ModRevision(e.key), "=", e.changed))
		then = append(then, clientv3.OpDelete(e.key))
	}
	if old != nil {
		still = append(still, clientv3.Compare(clientv3.ModRevision(old.key), "=", old.changed))
	}
	if old == nil || old.key != own.key {
		rivals := own.key
		if len(own.subnets) > 1 {
			rivals = s.watched()
		}
		still = append(still,
			clientv3.Compare(clientv3.CreateRevision(own.key), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(rivals).WithPrefix(), "<", listed+1))
		if old != nil {
			then = append(then, clientv3.OpDelete(old.key))
		}
	}
	var options []clientv3.OpOption
	if own.etcd != 0 {
		options = append(options, clientv3.WithLease(own.etcd))
	}
	then = append(then, clientv3.OpPut(own.key, string(own.value), options...))
	return s.ask(ctx, func(ctx context.Context, client *clientv3.Client) error {
		done, err := client.Txn(ctx).If(still...).Then(then...).Commit()
		if err != nil {
			return err
		}
		if !done.Succeeded {
			return errRace
		}
		own.changed = done.Header.Revision
		return nil
	})
}
