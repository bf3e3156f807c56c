//go:build !linux

package kernel

import (
	"context"
	"errors"
	"fmt"

	"github.com/weft-net/weft/tunnel"
)

// Driver exists on Linux only: elsewhere Open fails.
type Driver struct{}

func unsupported(verb string) error {
	return fmt.Errorf("%s kernel driver: %w: kernel VXLAN and WireGuard need Linux", verb, errors.ErrUnsupported)
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

// Probe is for Linux.
func (*Driver) Probe(context.Context) error { return unsupported("probe") }

// ProbeWireGuard is for Linux.
func (*Driver) ProbeWireGuard(context.Context) error { return unsupported("probe") }

// SetWireGuard is for Linux.
func (*Driver) SetWireGuard(WireGuard) {}

// WireGuardSessions is for Linux.
func (*Driver) WireGuardSessions(context.Context) (map[tunnel.Key]WireGuardSession, error) {
	return nil, unsupported("ask")
}

// ExistingMAC is for Linux.
func (*Driver) ExistingMAC(tunnel.Link) (tunnel.MAC, bool, error) {
	return tunnel.MAC{}, false, unsupported("ask")
}

// Close is for Linux.
func (*Driver) Close() error { return nil }
