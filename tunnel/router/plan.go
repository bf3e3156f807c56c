package router

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weft-net/weft/tunnel"
)

// errNoLink comes and goes with the engine, which opens the TUN.
var errNoLink = errors.New("the TUN is not open yet")

// Plan says how a link gets from have to having want; no steps mean that it is
// in place. Only the TUN itself, addresses on it and routes over it are done.
func Plan(device string, want tunnel.Object, have State) ([]Step, error) {
	switch want := want.(type) {
	case tunnel.Link:
		switch {
		case want.Name != device || want.Type != tunnel.LinkTUN:
			return nil, unsupported(device, want)
		case !have.Exists:
			return nil, errNoLink
		case want.MTU != have.MTU:
			return []Step{{Action: SetMTU, MTU: want.MTU}}, nil
		}
		return nil, nil
	case tunnel.Address:
		switch {
		case want.Link != device:
			return nil, unsupported(device, want)
		case !have.Exists:
			return nil, errNoLink
		case slices.Contains(have.Addresses, want.Prefix):
			return nil, nil
		}
		var steps []Step
		for _, other := range have.Addresses {
			if other.Addr() == want.Prefix.Addr() { // with another length
				steps = append(steps, Step{Action: RemoveAddress, Prefix: other})
			}
		}
		return append(steps, Step{Action: AddAddress, Prefix: want.Prefix}), nil
	case tunnel.Route:
		switch {
		case want.Link != device || want.Via.IsValid() || want.Blackhole:
			return nil, unsupported(device, want)
		case !have.Exists:
			return nil, errNoLink
		case slices.Contains(have.Routes, want.Prefix.Masked()):
			return nil, nil
		}
		return []Step{{Action: AddRoute, Prefix: want.Prefix.Masked()}}, nil
	}
	return nil, unsupported(device, want)
}

// PlanRemoval says how a link gets rid of an object. The TUN itself is the
// engine's to close.
func PlanRemoval(device string, gone tunnel.Object, have State) ([]Step, error) {
	switch gone := gone.(type) {
	case tunnel.Link:
		return nil, nil
	case tunnel.Address:
		if gone.Link == device && slices.Contains(have.Addresses, gone.Prefix) {
			return []Step{{Action: RemoveAddress, Prefix: gone.Prefix}}, nil
		}
		return nil, nil
	case tunnel.Route:
		if gone.Link == device && slices.Contains(have.Routes, gone.Prefix.Masked()) {
			return []Step{{Action: RemoveRoute, Prefix: gone.Prefix.Masked()}}, nil
		}
		return nil, nil
	}
	return nil, unsupported(device, gone)
}

func unsupported(device string, object tunnel.Object) error {
	return fmt.Errorf("%w: on this system only %s, addresses on it and routes over it are kept, not %s", errors.ErrUnsupported, device, object.Key())
}
