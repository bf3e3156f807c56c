// Package keys keeps what a host must not forget of WireGuard: its private
// keys, by which peers know it, and whom it talked with last. A private key is
// never replaced in silence: what cannot be read is an error and not a reason to
// make another, which to peers would be another host. The package must never log
// and never put a secret into an error.
package keys

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// Phase is how far one key is in taking the place of another.
type Phase string

// The phases, in the order of a rotation.
const (
	Settled   Phase = ""          // there is one key
	Announced Phase = "announced" // Other will take the place of Current
	Switched  Phase = "switched"  // Current has taken the place of Other
)

// Keys are a host's private keys. Its methods return what follows and change
// nothing: what they return must be in the file, by Replace, before it is
// published or used. Then a crash at any moment leaves a phase that goes on.
type Keys struct {
	Current tunnel.SecretKey // handshakes are begun with it
	Other   tunnel.SecretKey // handshakes of peers are accepted with it too; zero if Settled
	Phase   Phase
	Since   time.Time // of the phase; zero: nobody knows
}

// New returns a new key.
func New(now time.Time) Keys { return Keys{Current: generate(), Since: now} }

// generate makes a private key as wg does.
func generate() (key tunnel.SecretKey) {
	rand.Read(key[:]) // never fails
	key[0] &= 248
	key[31] = key[31]&127 | 64
	return key
}

// Public returns the keys to publish.
func (k Keys) Public() tunnel.WireGuardKeys {
	public := tunnel.WireGuardKeys{k.Current.Public()}
	if k.Phase != Settled {
		public[1] = k.Other.Public()
	}
	return public
}

// Announce begins a rotation: peers are told of a new key, and accept it when
// they have heard. When all of them can have, Switch follows.
func (k Keys) Announce(now time.Time) (Keys, error) {
	if k.Phase != Settled {
		return k, fmt.Errorf("announce a new key: one is %s since %v: finish that first", k.Phase, k.Since)
	}
	return Keys{Current: k.Current, Other: generate(), Phase: Announced, Since: now}, nil
}

// Switch uses the new key. The old one is still accepted, for peers that have
// not heard of it, until Drop.
func (k Keys) Switch(now time.Time) (Keys, error) {
	if k.Phase != Announced {
		return k, errors.New("switch to a new key: none is announced")
	}
	return Keys{Current: k.Other, Other: k.Current, Phase: Switched, Since: now}, nil
}

// Drop ends a rotation: the old key is forgotten.
func (k Keys) Drop(now time.Time) (Keys, error) {
	if k.Phase != Switched {
		return k, errors.New("drop the old key: there is none")
	}
	return Keys{Current: k.Current, Since: now}, nil
}

// check refuses what no rotation leads to.
func (k Keys) check() error {
	none := tunnel.SecretKey{}
	switch {
	case k.Current == none:
		return errors.New("there is no current key")
	case k.Phase == Settled && k.Other != none, k.Phase != Settled && k.Other == none:
		return fmt.Errorf("phase %q does not go with the number of keys", k.Phase)
	case k.Current == k.Other:
		return errors.New("both keys are the same")
	case k.Phase != Settled && k.Phase != Announced && k.Phase != Switched:
		return fmt.Errorf("phase %q is not known", k.Phase)
	}
	return nil
}
