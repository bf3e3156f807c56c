package router

import (
	"errors"
	"fmt"
)

// newSystem fails: Linux has a driver of its own.
func newSystem() (System, error) {
	return nil, fmt.Errorf("%w: on Linux package kernel keeps addresses and routes", errors.ErrUnsupported)
}
