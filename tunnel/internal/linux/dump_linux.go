package linux

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// maxDumps bounds the attempts at a consistent listing. A dump is interrupted
// when the table changes meanwhile; many attempts in a row are rare even while
// thousands of entries are programmed.
const maxDumps = 30

// Dump lists, by a call of the netlink library, until the kernel says that the
// listing was not interrupted by a change.
func Dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range maxDumps {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}
