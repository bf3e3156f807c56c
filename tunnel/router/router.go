// Package router keeps the MTU, the addresses and the routes of the userspace
// engine's TUN on macOS, Windows and FreeBSD. What is to be done is planned
// apart from doing it, which is behind a small interface per operating system.
// It must never touch another link: nothing but that TUN is weft's there, and
// everything on it is.
package router

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/tunnel"
)

// System is what the operating system does for links. Prefixes are unmapped;
// those of routes are masked.
type System interface {
	// Look returns what a link has now.
	Look(ctx context.Context, link string) (State, error)
	// Do takes one step on a link. A step that is done already is no error.
	Do(ctx context.Context, link string, step Step) error
}

// State is what a link has at one moment.
type State struct {
	Exists    bool
	MTU       int            // bytes
	Addresses []netip.Prefix // not masked
	Routes    []netip.Prefix // over the link, without a gateway
}

// Action is what a Step does.
type Action uint8

// The actions.
const (
	SetMTU Action = iota + 1
	AddAddress
	RemoveAddress
	AddRoute
	RemoveRoute
)

var actionNames = map[Action]string{
	SetMTU: "set MTU", AddAddress: "add address", RemoveAddress: "remove address", AddRoute: "add route", RemoveRoute: "remove route",
}

// String returns what the action does.
func (a Action) String() string {
	if name, ok := actionNames[a]; ok {
		return name
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Step is one change of a link.
type Step struct {
	Action Action
	Prefix netip.Prefix // of an address or route
	MTU    int          // of SetMTU
}

// Config is what a Driver is made of.
type Config struct {
	// Device is the TUN's name, as objects have it.
	Device string
	// System is nil for that of the host.
	System System
}

// Driver makes host objects true. It may be used from several goroutines.
type Driver struct {
	device string
	system System
}

// Open opens a Driver. It changes nothing and needs no rights.
func Open(config Config) (*Driver, error) {
	d := &Driver{device: config.Device, system: config.System}
	if d.device == "" {
		return nil, errors.New("open router: Device is empty: want the name of the TUN")
	}
	if d.system == nil {
		var err error
		if d.system, err = newSystem(); err != nil {
			return nil, fmt.Errorf("open router: %w", err)
		}
	}
	return d, nil
}

// Close does nothing: every object stays in place until the TUN is closed.
func (d *Driver) Close() error { return nil }

// Changes never has a token: these systems are read back at intervals.
func (d *Driver) Changes() <-chan struct{} { return nil }

// Observe returns everything of weft's: what is on the TUN, but for what the
// system puts on every link by itself.
func (d *Driver) Observe(ctx context.Context) (map[tunnel.Key]tunnel.Object, error) {
	state, err := d.system.Look(ctx, d.device)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", d.device, err)
	}
	objects := map[tunnel.Key]tunnel.Object{}
	for _, object := range Objects(d.device, state) {
		objects[object.Key()] = object
	}
	return objects, nil
}

// Apply makes one object exist as wanted.
func (d *Driver) Apply(ctx context.Context, want tunnel.Object) error {
	return d.change(ctx, "apply", want, Plan)
}

// Delete removes one object. That it is not there is no error.
func (d *Driver) Delete(ctx context.Context, have tunnel.Object) error {
	return d.change(ctx, "delete", have, PlanRemoval)
}

func (d *Driver) change(ctx context.Context, verb string, object tunnel.Object, plan func(string, tunnel.Object, State) ([]Step, error)) error {
	state, err := d.system.Look(ctx, d.device)
	if err != nil {
		return fmt.Errorf("%s %s: look at %s: %w", verb, object.Key(), d.device, err)
	}
	steps, err := plan(d.device, object, state)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, object.Key(), err)
	}
	for _, step := range steps {
		if err := d.system.Do(ctx, d.device, step); err != nil {
			return fmt.Errorf("%s %s: %v: %w", verb, object.Key(), step.Action, err)
		}
	}
	return nil
}

// Objects is a link's state as objects, without what the system puts on every
// link by itself: link-local addresses, and routes to those, to multicast, to
// broadcast and to the link's own addresses.
func Objects(device string, state State) []tunnel.Object {
	if !state.Exists {
		return nil
	}
	objects := []tunnel.Object{tunnel.Link{Name: device, Type: tunnel.LinkTUN, MTU: state.MTU}}
	for _, p := range state.Addresses {
		if !automatic(p.Addr()) {
			objects = append(objects, tunnel.Address{Link: device, Prefix: p})
		}
	}
	for _, p := range state.Routes {
		own := p.IsSingleIP() && slices.ContainsFunc(state.Addresses, func(a netip.Prefix) bool { return a.Addr() == p.Addr() })
		if !own && !automatic(p.Addr()) {
			objects = append(objects, tunnel.Route{Prefix: p, Link: device})
		}
	}
	return objects
}

// automatic reports whether systems make addresses and routes like this one.
func automatic(addr netip.Addr) bool {
	return addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
