//go:build !linux

package demo

import (
	"errors"
	"fmt"

	"github.com/weft-net/weft/bench/lab"
)

func publish(_ *lab.Namespace, name string) error {
	return fmt.Errorf("open %s to others: %w", name, errors.ErrUnsupported)
}

// Step needs Linux namespaces.
func Step(place Place, _, _ string, _ ...string) error {
	if err := place.check(); err != nil {
		return err
	}
	return fmt.Errorf("step into %s: labs need Linux namespaces: %w", place.Name, errors.ErrUnsupported)
}
