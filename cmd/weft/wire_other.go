//go:build !linux

package main

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/weft-net/weft/control/agent"
)

// newHost says what is missing: addresses and routes are programmed on Linux
// only so far.
func newHost(hostConfig) (agent.Host, error) {
	return nil, fmt.Errorf("make this %s host a member: %w: weft programs addresses and routes on Linux only", runtime.GOOS, errors.ErrUnsupported)
}
