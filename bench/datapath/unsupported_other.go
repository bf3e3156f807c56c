//go:build !linux

package datapath

import (
	"context"
	"net/netip"
	"os"
	"time"
)

func openPlainTUN(string) (*os.File, error) { return nil, ErrUnsupported }

func inNetwork(string, func() error) error { return ErrUnsupported }

func pin(int) error { return ErrUnsupported }

func tryCongestionControl(string) error { return ErrUnsupported }

func pong(_ context.Context, _ netip.AddrPort, ready chan<- error) error {
	ready <- ErrUnsupported
	return ErrUnsupported
}

func ping(context.Context, netip.AddrPort, time.Duration) ([]time.Duration, error) {
	return nil, ErrUnsupported
}
