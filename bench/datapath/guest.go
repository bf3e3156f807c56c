package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/control/lease"
)

const (
	guestPath    = "netstack-agent" // in rows, in place of a path
	rowReachable = "start-to-reachable"
	// guestAnswer is how long a peer waits for an answer before it asks again.
	guestAnswer = 20 * time.Millisecond
)

// guest is what an agent without a device takes.
type guest struct {
	memory float64       // resident bytes at rest, with one peer
	start  time.Duration // until the peer has an answer to an echo request
}

// measureGuest runs an agent without a device whose only peer is a, and leaves
// no lease of it.
func (a *runningAgent) measureGuest(ctx context.Context, b *bench) (result guest, err error) {
	g := newAgent()
	defer func() {
		if err = errors.Join(err, g.close()); err != nil {
			err = fmt.Errorf("measure agent without a device: %w", err)
		}
	}()
	if g.host, err = b.newHost(); err != nil {
		return guest{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	leases := a.store.Client().Watch(ctx, etcdPrefix+lease.SubnetsDir, clientv3.WithPrefix())
	started := time.Now()
	if err := g.launch(ctx, b.Agent, a.store, "--device=netstack"); err != nil {
		return guest{}, err
	}
	key, addr, err := firstLease(ctx, leases)
	if err != nil {
		return guest{}, fmt.Errorf("wait for its lease: %w%s", err, g.stderr.last())
	}
	if err := a.awaitAnswer(ctx, addr); err != nil {
		return guest{}, fmt.Errorf("%w%s", err, g.stderr.last())
	}
	result.start = time.Since(started)
	metrics, err := g.atRest(ctx, 1)
	if err != nil {
		return guest{}, err
	}
	result.memory = metrics[metricMemory]
	_, err = a.store.Client().Delete(ctx, key)
	return result, err
}

// firstLease is the key of the first lease that is written, and the first
// address of its subnet.
func firstLease(ctx context.Context, leases clientv3.WatchChan) (key string, addr netip.Addr, err error) {
	for response := range leases {
		for _, event := range response.Events {
			if event.Type != clientv3.EventTypePut {
				continue
			}
			key = string(event.Kv.Key)
			subnets, err := lease.ParseKey(strings.TrimPrefix(key, etcdPrefix))
			if err != nil {
				return "", netip.Addr{}, err
			}
			return key, subnets[0].Addr(), nil
		}
	}
	return "", netip.Addr{}, errors.Join(errors.New("etcd ended the watch"), ctx.Err())
}

// awaitAnswer asks an address until it answers.
func (a *runningAgent) awaitAnswer(ctx context.Context, addr netip.Addr) error {
	for {
		_, err := a.host.Ping(ctx, lab.Probe{To: addr, Timeout: guestAnswer})
		if err == nil {
			return nil
		}
		if wait(ctx, time.Millisecond); ctx.Err() != nil {
			return err
		}
	}
}
