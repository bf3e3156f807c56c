//go:build !e2e

package kernel

import "testing"

// kernelHosts are none: not every kernel has WireGuard.
var kernelHosts map[string]func(*testing.T) *wireguardHost
