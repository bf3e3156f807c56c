// Package linux holds what several drivers ask of the Linux kernel: which
// version it is, a wait on a file descriptor that Close can end, and a listing
// that no change interrupted. It must never read or write the descriptor it
// waits for, and never change the kernel's state.
package linux

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is a kernel version. The zero Version is older than every kernel:
// nothing that has to be proven by version is assumed of it.
type Version struct{ Major, Minor, Patch int }

// ParseVersion reads a release as uname gives it, such as "6.8.0-45-generic",
// "7.0.0-rc3" or "5.15". What follows the numbers is the vendor's and ignored.
func ParseVersion(release string) (Version, error) {
	var v Version
	rest := release
	for i, field := range []*int{&v.Major, &v.Minor, &v.Patch} {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(rest)
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil {
			if i == 2 {
				return v, nil // no patch level
			}
			return Version{}, fmt.Errorf("parse kernel release %q: want numbers, as in 6.8.0", release)
		}
		*field = n
		rest = strings.TrimPrefix(rest[end:], ".")
	}
	return v, nil
}

// AtLeast reports whether v is the given version or a later one.
func (v Version) AtLeast(major, minor, patch int) bool {
	if v.Major != major {
		return v.Major > major
	}
	if v.Minor != minor {
		return v.Minor > minor
	}
	return v.Patch >= patch
}

// String returns the version as in "6.8.5".
func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
}
