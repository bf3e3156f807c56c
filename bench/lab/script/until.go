package script

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is how often a condition is looked at that cannot be waited for.
const pollInterval = 50 * time.Millisecond

// final is an error that more attempts would not mend.
type final struct{ error }

// within repeats an attempt until it succeeds or the time is over.
func (r *Run) within(timeout time.Duration, attempt func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.ctx, timeout)
	defer cancel()
	if err := until(ctx, attempt); err != nil {
		return fmt.Errorf("within %v: %w", timeout, err)
	}
	return nil
}

// until repeats an attempt until it succeeds or ctx ends.
func until(ctx context.Context, attempt func(context.Context) error) error {
	var last error
	for {
		err := attempt(ctx)
		if err == nil || errors.As(err, &final{}) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err // one cut short by the end says less
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(pollInterval):
		}
	}
}
