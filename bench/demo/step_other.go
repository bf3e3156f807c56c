//go:build !linux

package demo

import (
	"errors"
	"fmt"
)

// Step needs Linux namespaces.
func Step(place Place, _, _ string, _ ...string) error {
	return fmt.Errorf("step into %s: labs need Linux namespaces: %w", place.Name, errors.ErrUnsupported)
}
