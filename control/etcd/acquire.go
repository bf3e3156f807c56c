package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
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
		}
		if err := pause.wait(ctx, s.ctx); err != nil {
			return control.Lease{}, fmt.Errorf("acquire lease: %w", err)
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

// tryAcquire makes one attempt on a listing. An etcd lease that it had to make
// is left in spare, for the next attempt. Further leases of this host are
// left-overs and go, unless they are reservations or also another host's.
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
		return nil, err
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

// choose picks a subnet for every leg of the claim. old is the lease to go on
// with, or nil; ours are all leases that leave room for this host.
func (s *Source) choose(t *table, claim control.Claim, old *entry, ours []*entry) ([]netip.Prefix, error) {
	if old != nil && s.keeps(t, old, ours) {
		return old.subnets, nil
	}
	var wished []netip.Prefix
	if old != nil {
		wished = append(wished, old.subnets...)
	}
	for _, leg := range claim.Legs {
		wished = append(wished, leg.Subnet)
	}
	wished = append(wished, s.cfg.Previous...)
	var subnets []netip.Prefix
	for _, family := range s.network.Families {
		taken := takenBy(t, family, func(e *entry) bool { return !slices.Contains(ours, e) })
		free := func(p netip.Prefix) bool { return family.Usable(p) && !taken.overlaps(p) }
		if n := slices.IndexFunc(wished, free); n >= 0 {
			subnets = append(subnets, wished[n])
			continue
		}
		some := taken.free(family)
		if len(some) == 0 {
			return nil, fmt.Errorf("%w from %s to %s of length /%d in %s: %d leases", errFull,
				family.SubnetMin, family.SubnetMax, family.SubnetLen, family.Network, len(t.entries))
		}
		subnets = append(subnets, some[rand.N(len(some))])
	}
	return subnets, nil
}

// keeps tells whether a lease can stay as it is: it fits the network, and no
// older lease of another host has the better right to a part of it.
func (s *Source) keeps(t *table, old *entry, ours []*entry) bool {
	if len(old.subnets) != len(s.network.Families) {
		return false
	}
	for i, family := range s.network.Families {
		older := takenBy(t, family, func(e *entry) bool { return !slices.Contains(ours, e) && e.created < old.created })
		if !family.Usable(old.subnets[i]) || older.overlaps(old.subnets[i]) {
			return false
		}
	}
	return true
}

// occupied is the taken part of one family's network.
type occupied struct {
	length int
	exact  map[netip.Prefix]bool // subnets of this length that are taken, in part or whole
	wide   []netip.Prefix        // shorter prefixes
}

func takenBy(t *table, family netconf.Family, counts func(*entry) bool) occupied {
	o := occupied{length: family.SubnetLen, exact: map[netip.Prefix]bool{}}
	for _, e := range t.entries {
		if !counts(e) {
			continue
		}
		for _, subnet := range e.subnets {
			switch {
			case subnet.Addr().Is4() != family.Network.Addr().Is4():
			case subnet.Bits() < o.length:
				o.wide = append(o.wide, subnet)
			default:
				o.exact[netip.PrefixFrom(subnet.Addr(), o.length).Masked()] = true
			}
		}
	}
	return o
}

// overlaps is meant for subnets of the family's length.
func (o occupied) overlaps(subnet netip.Prefix) bool {
	return o.exact[subnet] || slices.ContainsFunc(o.wide, subnet.Overlaps)
}

// free returns the first free subnets, at most a hundred: enough that hosts
// which choose at the same time seldom choose the same.
func (o occupied) free(family netconf.Family) []netip.Prefix {
	var free []netip.Prefix
	for subnet := family.First(); subnet.IsValid() && len(free) < 100; {
		past := subnet
		if i := slices.IndexFunc(o.wide, subnet.Overlaps); i >= 0 {
			past = o.wide[i]
		} else if !o.exact[subnet] {
			free = append(free, subnet)
		}
		subnet = family.After(past)
	}
	return free
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
// does so only if those are as listed, and if no key has come into being since
// the listing: two hosts that choose different keys with the same IPv6 subnet
// would otherwise both succeed. errRace says that this was not so.
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
		still = append(still,
			clientv3.Compare(clientv3.CreateRevision(own.key), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(s.watched()).WithPrefix(), "<", listed+1))
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
