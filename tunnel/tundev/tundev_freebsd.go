package tundev

import (
	"errors"

	"golang.org/x/sys/unix"
)

const defaultName = "weft0"

// cure says what to do about an error of opening.
func cure(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "the kernel has no TUN driver: kldload if_tuntap"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "making a TUN needs root"
	case errors.Is(err, unix.EBUSY):
		return "another process has it open"
	}
	return ""
}
