package tundev

import (
	"errors"

	"golang.org/x/sys/windows"
)

const defaultName = "weft0"

// large: Wintun takes IP packets of any size.
const large = true

// cure says what to do about an error of opening, and whether none at all can
// be opened.
func cure(err error) (cure string, none bool) {
	switch {
	case errors.Is(err, windows.ERROR_MOD_NOT_FOUND), errors.Is(err, windows.ERROR_FILE_NOT_FOUND):
		return "wintun.dll is missing: put the one for this processor from https://www.wintun.net beside the program", true
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return "making a Wintun adapter needs an administrator", true
	}
	return "", false
}
