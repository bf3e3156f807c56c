//go:build !linux

package pinger

import (
	"context"
	"fmt"
	"net/netip"
)

// Pinger would send probes. No way is the kernel's on this system.
type Pinger struct{}

var errSystem = fmt.Errorf("%w: no ways are the kernel's on this system", ErrUnable)

// Open opens nothing.
func Open(Config) (*Pinger, error) { return &Pinger{}, nil }

// Ping fails.
func (p *Pinger) Ping(_, _ netip.Addr, _ int, _ uint64) error { return errSystem }

// PingVXLAN fails.
func (p *Pinger) PingVXLAN(VXLAN, netip.Addr, int, uint64) error { return errSystem }

// Run waits until ctx is done.
func (p *Pinger) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close does nothing.
func (p *Pinger) Close() error { return nil }
