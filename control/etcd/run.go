package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
)

const (
	settleTime = 50 * time.Millisecond // changes that come together are delivered together
	probeTime  = 30 * time.Second      // how soon an etcd out of reach is noticed
)

// Run delivers all leases, own included, now and after every change, and keeps
// the own lease alive. It returns when ctx ends, or with ErrLost. While etcd is
// out of reach it stays on the last known leases and says so.
func (s *Source) Run(ctx context.Context, deliver func(control.Snapshot)) error {
	if s.own == nil {
		return errors.New("follow leases: no lease yet: Acquire comes first")
	}
	var pause backoff
	var last string
	for {
		t, err := s.list(ctx)
		if err != nil {
			return fmt.Errorf("follow leases: %w", err)
		}
		select {
		case m := <-s.moves:
			s.depart(m)
		default:
		}
		heard := false
		reason := s.settle(ctx, t)
		if reason == nil {
			deliver(t.snapshot())
			heard, reason = s.follow(ctx, t, deliver)
		}
		if err := s.stopped(ctx); err != nil {
			return fmt.Errorf("follow leases: %w", err)
		}
		if errors.Is(reason, ErrLost) {
			return fmt.Errorf("follow leases: %w", reason)
		}
		if heard {
			pause.reset()
			last = ""
		}
		if reason.Error() != last {
			last = reason.Error()
			s.cfg.Logger.Info("listing leases again", "reason", reason)
		}
		if err := pause.wait(ctx, s.ctx); err != nil {
			return fmt.Errorf("follow leases: %w", err)
		}
	}
}

// follow watches from the listing on. It returns why the leases have to be
// listed again, and whether the watch has said anything.
func (s *Source) follow(ctx context.Context, t *table, deliver func(control.Snapshot)) (heard bool, reason error) {
	client, err := s.connect()
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	watch := client.Watch(ctx, s.watched(), clientv3.WithPrefix(), clientv3.WithRev(t.revision+1), clientv3.WithProgressNotify())
	upkeep := time.NewTimer(s.nextUpkeep())
	defer upkeep.Stop()
	var settled <-chan time.Time // set while changes are not delivered yet
	for {
		select {
		case <-ctx.Done():
			return heard, ctx.Err()
		case response, ok := <-watch:
			if !ok {
				return heard, errors.New("the watch was closed")
			}
			if err := response.Err(); err != nil {
				return heard, fmt.Errorf("the watch ended: %w", err)
			}
			heard = true
			if err := s.take(t, response.Events); err != nil {
				return heard, err
			}
			if settled == nil && len(response.Events) > 0 {
				settled = time.After(settleTime)
			}
		case m := <-s.moves:
			s.depart(m)
			return true, errors.New("this host's addresses have changed")
		case <-settled:
			settled = nil
			deliver(t.snapshot())
		case <-upkeep.C:
			next, err := s.tend(ctx)
			if err != nil {
				return heard, err
			}
			upkeep.Reset(next)
		}
	}
}

// take applies events to the table. Its error says that the own lease was
// touched by someone else, which a fresh listing has to judge.
func (s *Source) take(t *table, events []*clientv3.Event) error {
	var touched error
	for _, event := range events {
		t.apply(event)
		if string(event.Kv.Key) != s.own.key {
			continue
		}
		switch {
		case event.Type == clientv3.EventTypeDelete:
			touched = errors.New("the own lease was deleted")
		case event.Kv.ModRevision != s.own.changed:
			touched = errors.New("the own lease was changed by another")
		default:
			touched = nil
		}
	}
	return touched
}
