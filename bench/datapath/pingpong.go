package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	pingBytes = 64
	pingPort  = 5202
	// pingWait is how long to wait for an answer: much longer than any takes.
	pingWait = 200 * time.Millisecond
	// pingSamples bounds what is kept; no path is that fast for that long.
	pingSamples = 1 << 20
)

// pingPong sends a datagram to and fro, one at a time. Both sides are threads
// in blocking system calls, so that no scheduler but the kernel's is measured,
// and on processors of their own, as on two machines: where both share one,
// which the kernel decides as it likes, a trip takes a third of the time.
func pingPong(ctx context.Context, b *bench, w *way) (o outcome, err error) {
	var trips []time.Duration
	ready := make(chan error, 1)
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() error {
		return w.to.Do(func() error { return errors.Join(pin(1), pong(ctx, netip.AddrPortFrom(w.addr, pingPort), ready)) })
	})
	group.Go(func() error {
		defer cancel()
		if err := <-ready; err != nil {
			return nil // the other side says so
		}
		return w.from.Do(func() (err error) {
			if err := pin(0); err != nil {
				return err
			}
			trips, err = ping(ctx, netip.AddrPortFrom(w.addr, pingPort), b.Duration)
			return err
		})
	})
	if err := group.Wait(); err != nil {
		return outcome{}, fmt.Errorf("ping-pong: %w", err)
	}
	if len(trips) == 0 {
		return outcome{}, errors.New("ping-pong: no answer came")
	}
	slices.Sort(trips)
	return outcome{
		half50: trips[len(trips)/2] / 2, half99: trips[len(trips)*99/100] / 2,
		packets: 2 * float64(len(trips)), bits: 2 * 8 * pingBytes * float64(len(trips)), seconds: b.Duration.Seconds(),
	}, nil
}
