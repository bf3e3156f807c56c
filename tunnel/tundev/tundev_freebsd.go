package tundev

import (
	"errors"

	"golang.org/x/sys/unix"
)

const defaultName = "weft0"

// large: a tun passes on no packet above its MTU.
const large = false

// cure says what to do about an error of opening, and whether none at all can
// be opened.
func cure(err error) (cure string, none bool) {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "the kernel has no TUN driver: kldload if_tuntap", true
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "making a TUN needs root", true
	case errors.Is(err, unix.EBUSY):
		return "another process has it open", false
	}
	return "", false
}
