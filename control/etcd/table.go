package etcd

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// table is every key under the network's subnets, as of one revision.
type table struct {
	prefix   string // absolute, without the network's directory
	revision int64
	entries  map[string]*entry // by absolute key
}

// entry is one key. Where problem is set it is no lease; its subnets, if the
// key could be read, are taken all the same.
type entry struct {
	key     string // absolute
	created int64  // revision
	changed int64  // revision
	etcd    clientv3.LeaseID
	raw     []byte
	subnets []netip.Prefix
	value   lease.Value
	lease   control.Lease
	problem string
}

// watched is what is listed and watched: the directory without its slash, as
// flannel has it, so that the keys are seen that harm a flanneld.
func (s *Source) watched() string { return s.key(strings.TrimSuffix(s.dir, "/")) }

// list reads all leases in one request, and waits while it cannot.
func (s *Source) list(ctx context.Context) (*table, error) {
	if s.dir == "" {
		return nil, errors.New("no network configuration yet: NetConf comes first")
	}
	var got *clientv3.GetResponse
	err := s.insist(ctx, "list leases", func(ctx context.Context, client *clientv3.Client) (err error) {
		got, err = client.Get(ctx, s.watched(), clientv3.WithPrefix())
		return err
	})
	if err != nil {
		return nil, err
	}
	t := &table{prefix: strings.TrimSuffix(s.key(""), "/") + "/", revision: got.Header.Revision, entries: make(map[string]*entry, len(got.Kvs))}
	for _, kv := range got.Kvs {
		t.put(kv)
	}
	return t, nil
}

// put reads a key into the table.
func (t *table) put(kv *mvccpb.KeyValue) {
	e := &entry{
		key: string(kv.Key), created: kv.CreateRevision, changed: kv.ModRevision,
		etcd: clientv3.LeaseID(kv.Lease), raw: kv.Value,
	}
	t.entries[e.key] = e
	relative := strings.TrimPrefix(e.key, t.prefix)
	var err error
	if e.subnets, err = lease.ParseKey(relative); err != nil {
		e.problem = err.Error() + "; delete it: it makes flanneld hosts drop all their peers"
		return
	}
	if e.value, err = lease.ParseValue(kv.Value); err != nil {
		e.problem = err.Error() + "; delete it: it makes flanneld hosts drop all their peers"
		return
	}
	e.lease = e.value.Lease(lease.HostOfKey(relative), e.subnets)
}

// apply takes one event of the watch into the table.
func (t *table) apply(event *clientv3.Event) {
	t.revision = max(t.revision, event.Kv.ModRevision)
	if event.Type == mvccpb.DELETE {
		delete(t.entries, string(event.Kv.Key))
		return
	}
	t.put(event.Kv)
}

// permanent tells whether e never expires, as a reservation does.
func (e *entry) permanent() bool { return e.etcd == 0 }

// snapshot shares nothing with the table that the table changes later.
func (t *table) snapshot() control.Snapshot {
	snapshot := control.Snapshot{Complete: true}
	for _, e := range t.entries {
		if e.problem == "" {
			snapshot.Leases = append(snapshot.Leases, e.lease)
			continue
		}
		source := e.key
		if len(source) > 256 {
			source = source[:256]
		}
		if quoted := strconv.Quote(source); quoted != `"`+source+`"` {
			source = quoted
		}
		snapshot.Problems = append(snapshot.Problems, control.Problem{Source: source, Reason: e.problem})
	}
	slices.SortFunc(snapshot.Leases, func(a, b control.Lease) int { return cmp.Compare(a.Host, b.Host) })
	slices.SortFunc(snapshot.Problems, func(a, b control.Problem) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Reason, b.Reason))
	})
	return snapshot
}

// publishedBy counts the addresses that e has published.
func (e *entry) publishedBy(addrs []netip.Addr) int {
	if e.problem != "" {
		return 0
	}
	return count(e.value.PublicIPs(), func(addr netip.Addr) bool { return slices.Contains(addrs, addr) })
}

// publishedBy returns the leases that these addresses have published, the one
// to go on with first: that with most of the addresses, then a reservation,
// then one with a previous subnet, then the oldest.
func (t *table) publishedBy(addrs []netip.Addr, previous []netip.Prefix) []*entry {
	var found []*entry
	for _, e := range t.entries {
		if e.publishedBy(addrs) > 0 {
			found = append(found, e)
		}
	}
	reserved := func(e *entry) int {
		if e.permanent() {
			return 1
		}
		return 0
	}
	kept := func(e *entry) int {
		return count(e.subnets, func(p netip.Prefix) bool { return slices.Contains(previous, p) })
	}
	slices.SortFunc(found, func(a, b *entry) int {
		return cmp.Or(
			cmp.Compare(b.publishedBy(addrs), a.publishedBy(addrs)),
			cmp.Compare(reserved(b), reserved(a)),
			cmp.Compare(kept(b), kept(a)),
			cmp.Compare(a.created, b.created), cmp.Compare(a.key, b.key))
	})
	return found
}

func count[E any](list []E, counts func(E) bool) (n int) {
	for _, element := range list {
		if counts(element) {
			n++
		}
	}
	return n
}
