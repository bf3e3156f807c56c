//go:build !linux

package guard

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-net/weft/tunnel"
)

// Driver exists on Linux only: elsewhere Open fails.
type Driver struct{}

func unsupported(verb string) error {
	return fmt.Errorf("%s firewall driver: %w: nftables needs Linux", verb, errors.ErrUnsupported)
}

// Open returns an error that wraps errors.ErrUnsupported.
func Open(Config) (*Driver, error) { return nil, unsupported("open") }

// Observe is for Linux.
func (*Driver) Observe(context.Context) (map[tunnel.Key]tunnel.Object, error) {
	return nil, unsupported("observe")
}

// Apply is for Linux.
func (*Driver) Apply(context.Context, tunnel.Object) error { return unsupported("apply to") }

// Delete is for Linux.
func (*Driver) Delete(context.Context, tunnel.Object) error { return unsupported("delete from") }

// Changes is for Linux.
func (*Driver) Changes() <-chan struct{} { return nil }

// Close is for Linux.
func (*Driver) Close() error { return nil }
