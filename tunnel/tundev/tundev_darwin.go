package tundev

import (
	"errors"

	"golang.org/x/sys/unix"
)

// defaultName lets the system number the utun.
const defaultName = "utun"

// cure says what to do about an error of opening.
func cure(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "making a utun needs root: use sudo"
	case errors.Is(err, unix.EBUSY):
		return "the name is in use: choose another number or plain utun"
	}
	return ""
}
