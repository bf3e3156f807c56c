package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/keys"
	"github.com/weft-net/weft/tunnel"
)

// WireGuard is how a host speaks WireGuard.
type WireGuard struct {
	// KeyFile has this host's private keys; it is made where there is none.
	// ContactsFile is where the peers that it talks with are noted.
	KeyFile, ContactsFile string
	// PresharedFile has the pre-shared key of all hosts; empty: net-conf.json has it, or
	// there is none.
	PresharedFile string
	Engine        string // auto, kernel or userspace
	// MaxAge is how old a key may become before another takes its place; 0: any.
	MaxAge time.Duration
	// Step is the time that peers get to hear of each step of that; 0: DefaultKeyStep.
	Step time.Duration
}

// DefaultKeyStep is long enough for a lease source that is away for a moment.
const DefaultKeyStep = 2 * time.Minute

// keyHolder is a Driver, or an engine, that uses the host's private keys. The
// first is what handshakes are begun with; the second, if it is there, is
// accepted too, where that can be had.
type keyHolder interface {
	SetKeys(key, other, preshared tunnel.SecretKey) error
}

// keyring is this host's private keys, and how far one is in taking the place of
// another.
type keyring struct {
	config    WireGuard
	preshared tunnel.SecretKey
	timer     *time.Timer // the next step is due

	mu   sync.Mutex
	keys keys.Keys
}

// mayWireGuard says whether the policy has any pair of hosts use WireGuard.
func mayWireGuard(policy control.Policy) bool {
	switch {
	case policy.Backend == string(tunnel.EncapWireGuard):
		return true
	case len(policy.Prefer) > 0:
		return slices.Contains(policy.Prefer, tunnel.EncapWireGuard)
	}
	return policy.Backend == string(tunnel.EncapVXLAN) || policy.Encrypt != control.EncryptNever
}

// mustWireGuard says whether a host without it is of no use.
func mustWireGuard(policy control.Policy) bool {
	return policy.Backend == string(tunnel.EncapWireGuard) || policy.Encrypt == control.EncryptAlways
}

// mayElse says whether a host with neither VXLAN nor WireGuard could be reached.
func mayElse(policy control.Policy) bool {
	return policy.Backend != string(tunnel.EncapVXLAN) || policy.Direct || slices.Contains(policy.Prefer, tunnel.EncapDirect)
}

// openKeys reads the private keys, or makes them. Without WireGuard there are
// none, and it returns nil and the reason.
func (a *Agent) openKeys() (ring *keyring, reason string, err error) {
	switch {
	case a.WireGuard == nil:
		return nil, "switched off by --wireguard=off", nil
	case !mayWireGuard(a.policy):
		return nil, "net-conf has nobody use it", nil
	}
	ring = &keyring{config: *a.WireGuard, preshared: a.preshared, timer: time.NewTimer(time.Hour)}
	if ring.config.Step == 0 {
		ring.config.Step = DefaultKeyStep
	}
	if path := ring.config.PresharedFile; path != "" {
		if ring.preshared, err = keys.LoadPreshared(path); err != nil {
			return nil, "", err
		}
	}
	var created bool
	if ring.keys, created, err = keys.LoadOrCreate(ring.config.KeyFile, time.Now()); err != nil {
		// A key that cannot be read is an error; that none can be kept here, only where one is needed.
		if _, missing := os.Lstat(ring.config.KeyFile); missing == nil || mustWireGuard(a.policy) {
			return nil, "", fmt.Errorf("open WireGuard keys: %w", err)
		}
		return nil, fmt.Sprintf("no key can be kept: %v (--state-dir says where)", err), nil
	}
	public, known := ring.keys.Public(), a.recall.Keys
	if known != (tunnel.WireGuardKeys{}) && !slices.Contains(known[:], public[0]) {
		a.Logger.Warn("peers know this host by another WireGuard key than that of its key file, and will have to hear of this one",
			"file", ring.config.KeyFile, "new_file", created, "published", known[0], "now", public[0])
	}
	ring.arm(time.Now())
	return ring, "", nil
}

// now is the keys as they are.
func (r *keyring) now() keys.Keys {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys
}

// giveTo gives the keys to whoever uses them.
func (r *keyring) giveTo(holder keyHolder) error {
	k := r.now()
	if err := holder.SetKeys(k.Current, k.Other, r.preshared); err != nil {
		return fmt.Errorf("set WireGuard keys: %w", err)
	}
	return nil
}

// arm sets the timer to the next step.
func (r *keyring) arm(now time.Time) {
	k := r.now()
	switch {
	case k.Phase != keys.Settled:
		r.timer.Reset(k.Since.Add(r.config.Step).Sub(now))
	case r.config.MaxAge > 0:
		r.timer.Reset(k.Since.Add(r.config.MaxAge).Sub(now))
	default:
		r.timer.Stop()
	}
}

// due carries a token when step is to be called; nil: never.
func (r *keyring) due() <-chan time.Time {
	if r == nil {
		return nil
	}
	return r.timer.C
}

// step goes on with a rotation, or begins one, and writes that down first.
func (r *keyring) step(now time.Time) error {
	before := r.now()
	next := keys.Keys.Announce
	switch before.Phase {
	case keys.Announced:
		next = keys.Keys.Switch
	case keys.Switched:
		next = keys.Keys.Drop
	}
	after, err := next(before, now)
	if err == nil {
		err = keys.Replace(r.config.KeyFile, before, after)
	}
	if err != nil {
		r.timer.Reset(r.config.Step) // and go on as before
		return err
	}
	r.mu.Lock()
	r.keys = after
	r.mu.Unlock()
	r.arm(now)
	return nil
}

var errNoKeys = errors.New("this host does not speak WireGuard: see its status for the reason")

// rotate begins to replace the key, unless that is under way.
func (r *keyring) rotate(now time.Time) error {
	switch {
	case r == nil:
		return errNoKeys
	case r.now().Phase != keys.Settled:
		return fmt.Errorf("a new key is %s since %v: it takes two steps of %v", r.now().Phase, r.now().Since.Local().Format(time.TimeOnly), r.config.Step)
	}
	return r.step(now)
}

// turnKeys does one step of a rotation, and has everybody know: those who use
// the keys, the lease source, and the planner.
func (a *Agent) turnKeys(step func(time.Time) error, self *control.Self, mover *mover, holders []keyHolder) error {
	if err := step(time.Now()); err != nil {
		a.Logger.Error("replace the WireGuard key", "err", err)
		return err
	}
	k := a.ring.now()
	public := k.Public()
	a.Logger.Info("WireGuard key", "phase", string(k.Phase), "key", public[0], "other", public[1])
	for _, holder := range holders {
		if err := a.ring.giveTo(holder); err != nil {
			a.Logger.Error("replace the WireGuard key", "err", err)
		}
	}
	mover.claim.Offers.WireGuard.Keys, self.Lease.Offers.WireGuard.Keys = public, public
	for _, legs := range []*[]control.Leg{&mover.claim.Legs, &self.Lease.Legs} {
		*legs = slices.Clone(*legs)
		for i := range *legs {
			if leg := &(*legs)[i]; leg.Key != (tunnel.PublicKey{}) {
				leg.Key = public[0]
			}
		}
	}
	if err := a.Source.Move(mover.claim); err != nil {
		a.Logger.Error("publish WireGuard keys", "err", err)
	}
	a.Status.setKeys(k)
	return nil
}

// chooseWireGuard decides who carries WireGuard here, and why not somebody
// better; empty: nobody.
func (a *Agent) chooseWireGuard(ctx context.Context, vxlan tunnel.Engine) (engine tunnel.Engine, reason string, err error) {
	switch {
	case a.Device == "":
		return tunnel.EngineUserspace, "no device: " + a.DeviceReason, nil
	case a.WireGuard.Engine == string(tunnel.EngineUserspace):
		reason = "asked for by --wireguard=userspace"
	default:
		kernel := a.Host.KernelWireGuard(ctx)
		if kernel == nil {
			return tunnel.EngineKernel, "the kernel can do it", nil
		}
		if a.WireGuard.Engine == string(tunnel.EngineKernel) {
			return "", "", fmt.Errorf("--wireguard=kernel: %w", kernel)
		}
		reason = kernel.Error()
	}
	if vxlan == tunnel.EngineUserspace && a.policy.Backend != string(tunnel.EncapWireGuard) {
		return tunnel.EngineUserspace, reason, nil
	}
	usable := a.Host.UsableTUN()
	switch {
	case usable == nil:
		return tunnel.EngineUserspace, reason, nil
	case mustWireGuard(a.policy), a.WireGuard.Engine == string(tunnel.EngineUserspace):
		return "", "", fmt.Errorf("carry WireGuard: %s; %w", reason, usable)
	}
	return "", fmt.Sprintf("%s; %v", reason, usable), nil
}
