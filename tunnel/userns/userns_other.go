//go:build !linux

package userns

import (
	"context"
	"fmt"
)

var errOther = fmt.Errorf("%w: they need Linux", ErrUnavailable)

// Privileged is true: these systems have other rights.
func Privileged() bool { return true }

// Namespaces exist on Linux only: elsewhere Open fails.
type Namespaces struct{}

// Open returns an error that wraps ErrUnavailable.
func Open(context.Context, Config) (*Namespaces, error) { return nil, errOther }

// Find returns an error that wraps ErrUnavailable.
func Find(string) (*Namespaces, error) { return nil, errOther }

// Holder returns an error that wraps ErrUnavailable.
func Holder(string) (int, error) { return 0, errOther }

// Made is for Linux.
func (*Namespaces) Made() bool { return false }

// Enter is for Linux.
func (*Namespaces) Enter(argv, env []string) error { return errOther }

// Close is for Linux.
func (*Namespaces) Close() error { return nil }

// Inner exists on Linux only: elsewhere Inside has none.
type Inner struct{}

// Inside returns nil.
func Inside() (*Inner, error) { return nil, nil }

// Do is for Linux.
func (*Inner) Do(func() error) error { return errOther }

// Exec is for Linux.
func (*Inner) Exec(argv, env []string) error { return errOther }

// Hold is for Linux.
func Hold(context.Context) error { return errOther }

// Stop is for Linux.
func Stop(context.Context, string) error { return errOther }
