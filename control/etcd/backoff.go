package etcd

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is a pause that doubles from minPause to maxPause, with jitter so
// that hosts that failed together do not come back together.
type backoff struct {
	next time.Duration
}

// wait pauses until either context ends, which is its error.
func (b *backoff) wait(ctx, other context.Context) error {
	b.next = min(max(b.next*2, minPause), maxPause)
	timer := time.NewTimer(b.next/2 + rand.N(b.next/2+1))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-other.Done():
		return errClosed
	case <-timer.C:
		return nil
	}
}

func (b *backoff) reset() { b.next = 0 }
