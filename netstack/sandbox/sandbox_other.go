//go:build !linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
)

// Run fails: there are no network namespaces here.
func Run(context.Context, Config, []string) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, errors.ErrUnsupported)
}

// Inside fails.
func Inside(context.Context, Config) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, errors.ErrUnsupported)
}
