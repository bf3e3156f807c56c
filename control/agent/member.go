package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/plan"
	"github.com/weft-net/weft/control/reconcile"
	"github.com/weft-net/weft/control/state"
	"github.com/weft-net/weft/tunnel"
)

// keeper is one reconciler and the kinds of objects it keeps.
type keeper struct {
	loop   *reconcile.Loop[tunnel.Key, tunnel.Object]
	driver Driver
	keeps  func(tunnel.Kind) bool
}

// member keeps this host what the leases say it should be.
func (a *Agent) member(ctx context.Context, self control.Self, mover *mover) error {
	moved := make(chan struct{}, 1) // some item's status changed
	keepers, err := a.keepers()
	if err != nil {
		return err
	}
	for _, k := range keepers {
		defer k.driver.Close()
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, k := range keepers {
		group.Go(func() error { return k.loop.Run(ctx) })
		group.Go(func() error { return k.announce(ctx, moved) })
	}
	group.Go(func() error {
		if err := a.Source.Run(ctx, a.snapshot.put); err != nil {
			return fmt.Errorf("follow leases: %w", err)
		}
		return nil
	})
	engine := newForwarder(a, self, moved)
	watch, err := newWatch(a, self, engine)
	if err != nil {
		return err
	}
	a.Status.setWatch(watch.monitor)
	group.Go(func() error { return watch.Run(ctx) })
	if self.Engine == tunnel.EngineUserspace || self.WireGuard == tunnel.EngineUserspace {
		group.Go(func() error { return engine.Run(ctx) })
	}
	group.Go(func() error { return a.steer(ctx, self, keepers, engine, watch, mover, moved) })
	return group.Wait()
}

// keepers opens the drivers, none for a host without a device. The firewall has a loop of its own, so that a
// kernel without nftables still gets its routes.
func (a *Agent) keepers() ([]keeper, error) {
	if a.Device == "" {
		return nil, nil
	}
	objects, err := a.Host.Objects()
	if err != nil {
		return nil, fmt.Errorf("open host objects: %w", err)
	}
	if holder, ok := objects.(keyHolder); ok && a.ring != nil {
		if err := a.ring.giveTo(holder); err != nil {
			return nil, errors.Join(err, objects.Close())
		}
	}
	if kernel, ok := objects.(kernelSessions); ok {
		a.Status.setKernel(kernel)
	}
	firewall, err := a.Host.Firewall()
	if err != nil {
		firewall = unavailable{err}
	}
	isFirewall := func(k tunnel.Kind) bool { return k == tunnel.KindFirewall }
	keepers := []keeper{
		{driver: objects, keeps: func(k tunnel.Kind) bool { return !isFirewall(k) }},
		{driver: firewall, keeps: isFirewall},
	}
	for i, name := range []string{"objects", "firewall"} {
		keepers[i].loop = reconcile.New(reconcile.Config[tunnel.Key, tunnel.Object]{
			Name: name, Driver: keepers[i].driver, Compare: tunnel.Key.Compare,
			Equal:   func(want, have tunnel.Object) bool { return want == have },
			Changes: keepers[i].driver.Changes(), Interval: a.Resync, Logger: a.Logger,
		})
	}
	return keepers, nil
}

// steer turns every snapshot and every move of this host into a plan, and
// every step of progress into status.
func (a *Agent) steer(ctx context.Context, self control.Self, keepers []keeper, engine *forwarder, watch *watch, mover *mover, moved <-chan struct{}) error {
	underlay := calm(ctx, mover.changes)
	holders := []keyHolder{engine}
	for _, k := range keepers {
		if holder, ok := k.driver.(keyHolder); ok {
			holders = append(holders, holder)
		}
	}
	var snapshot control.Snapshot
	var planned control.Plan
	known, ready := false, false
	for {
		replan := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case snapshot = <-a.snapshot.ch:
			known, replan = true, true
			watch.monitor.Wake()
		case <-underlay:
			if replan = mover.look(ctx, &self); replan {
				watch.monitor.Wake()
			}
		case a.recall = <-a.Source.Recalls():
			replan = mover.look(ctx, &self)
		case <-a.ring.due():
			replan = a.turnKeys(a.ring.step, &self, mover, holders) == nil
		case answer := <-a.rotations:
			err := a.turnKeys(a.ring.rotate, &self, mover, holders)
			replan = err == nil
			answer <- err
		case <-watch.changed:
			self.Failed, replan = watch.monitor.Failed(), true
		case <-moved:
		}
		if replan {
			engine.setSelf(self)
		}
		if replan && known {
			planned = plan.Plan(snapshot, self, a.policy)
			engine.setPlan(planned)
			watch.setPlan(planned, self, snapshot.Leases)
			for _, k := range keepers {
				k.loop.SetWant(k.want(planned), planned.Complete)
			}
		}
		items := map[tunnel.Key]itemState{}
		for _, k := range keepers {
			k.report(items)
		}
		ready = known && readiness(planned, items, ready) && engine.working()
		a.Status.progress(planned, items, ready)
		if ready {
			if err := a.becomeReady(ctx, planned, self); err != nil {
				return err
			}
		}
	}
}

// becomeReady writes subnet.env, which lets pods start, and tells the lease
// source and systemd once.
func (a *Agent) becomeReady(ctx context.Context, planned control.Plan, self control.Self) error {
	if err := a.writeSubnetEnv(planned, self); err != nil {
		return err
	}
	if a.notified {
		return nil
	}
	a.notified = true
	notifySystemd(ctx, a.Logger, "READY=1")
	return a.Source.Ready(ctx)
}

// writeSubnetEnv tells CNI plugins which subnet is this host's. A host without
// a device has no pods.
func (a *Agent) writeSubnetEnv(planned control.Plan, self control.Self) error {
	if self.Device == "" {
		return nil
	}
	env := state.SubnetEnv{Networks: a.policy.Networks, MTU: planned.MTU, IPMasq: a.policy.Masquerade}
	for _, leg := range self.Lease.Legs {
		env.Subnets = append(env.Subnets, leg.Subnet)
	}
	if text := env.Bytes(); !bytes.Equal(text, a.subnetEnv) {
		if err := state.WriteSubnetEnv(a.SubnetFile, env); err != nil {
			return fmt.Errorf("write %s: %w", a.SubnetFile, err)
		}
		a.subnetEnv = text
	}
	return nil
}

// want picks the keeper's objects from the plan.
func (k keeper) want(planned control.Plan) map[tunnel.Key]tunnel.Object {
	want := map[tunnel.Key]tunnel.Object{}
	for _, object := range planned.Objects {
		if k.keeps(object.Key().Kind) {
			want[object.Key()] = object
		}
	}
	return want
}

// report adds the keeper's item states to items. While it cannot look, it
// knows of nothing that it is in place.
func (k keeper) report(items map[tunnel.Key]itemState) {
	status := k.loop.Status()
	for key, item := range status.Items {
		state := itemState{Done: item.State == reconcile.Done, Err: item.Error, Attempts: item.Attempts}
		if status.Error != "" {
			state.Done, state.Err = false, status.Error
		}
		items[key] = state
	}
}

// announce puts a token into moved whenever the status of an item has changed.
func (k keeper) announce(ctx context.Context, moved chan<- struct{}) error {
	for {
		changed := k.loop.Changed()
		signal(moved)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// signal puts a token into a channel that has room for one.
func signal(tokens chan<- struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
	}
}

// unavailable is a driver that could not be opened: what it should keep fails
// with the reason, and the rest of the host works.
type unavailable struct{ err error }

// Observe implements Driver.
func (u unavailable) Observe(context.Context) (map[tunnel.Key]tunnel.Object, error) {
	return nil, u.err
}

// Apply implements Driver.
func (u unavailable) Apply(context.Context, tunnel.Object) error { return u.err }

// Delete implements Driver.
func (u unavailable) Delete(context.Context, tunnel.Object) error { return u.err }

// Changes implements Driver: nothing ever changes.
func (unavailable) Changes() <-chan struct{} { return nil }

// Close implements Driver.
func (unavailable) Close() error { return nil }
