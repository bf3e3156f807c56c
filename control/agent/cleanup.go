package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-net/weft/tunnel"
)

// Cleanup removes every object of ours from host, in reverse order of
// creation, and returns what it removed. With dryRun it only looks. One
// failure does not stop the rest.
func Cleanup(ctx context.Context, host Host, dryRun bool) ([]tunnel.Key, error) {
	var removed []tunnel.Key
	var errs []error
	for name, open := range map[string]func() (Driver, error){"objects": host.Objects, "firewall": host.Firewall} {
		driver, err := open()
		if err != nil {
			errs = append(errs, fmt.Errorf("open %s: %w", name, err))
			continue
		}
		keys, err := clean(ctx, driver, dryRun)
		removed = append(removed, keys...)
		errs = append(errs, err, driver.Close())
	}
	slices.SortFunc(removed, func(a, b tunnel.Key) int { return b.Compare(a) })
	return removed, errors.Join(errs...)
}

func clean(ctx context.Context, driver Driver, dryRun bool) (removed []tunnel.Key, err error) {
	have, err := driver.Observe(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for objects: %w", err)
	}
	keys := slices.SortedFunc(maps.Keys(have), func(a, b tunnel.Key) int { return b.Compare(a) })
	var errs []error
	for _, key := range keys {
		if !dryRun {
			if err := driver.Delete(ctx, have[key]); err != nil {
				errs = append(errs, fmt.Errorf("remove %s: %w", key, err))
				continue
			}
		}
		removed = append(removed, key)
	}
	return removed, errors.Join(errs...)
}
