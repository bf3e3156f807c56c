package tundev

import (
	"errors"

	"golang.org/x/sys/unix"
)

// defaultName lets the system number the utun.
const defaultName = "utun"

// large: a utun passes on no packet above its MTU.
const large = false

// cure says what to do about an error of opening, and whether none at all can
// be opened.
func cure(err error) (cure string, none bool) {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "making a utun needs root: use sudo", true
	case errors.Is(err, unix.EBUSY):
		return "the name is in use: choose another number or plain utun", false
	}
	return "", false
}
