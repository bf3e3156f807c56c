//go:build !windows

package main

import (
	"context"
	"errors"
)

// needsRoot says why a user may not change a service.
func needsRoot(o serviceOptions, user int) error {
	switch {
	case o.user && user == 0:
		return usageError{errors.New("--user as root would be root's own service: leave --user out")}
	case !o.user && user != 0:
		return errors.New("a service of the system needs root: use sudo, or --user for a service of your own")
	}
	return nil
}

// managed runs the program. Managers of these systems end it by a signal.
func managed(ctx context.Context, run func(context.Context) int) int { return run(ctx) }
