package tundev

import (
	"errors"

	"golang.org/x/sys/windows"
)

const defaultName = "weft0"

// cure says what to do about an error of opening.
func cure(err error) string {
	switch {
	case errors.Is(err, windows.ERROR_MOD_NOT_FOUND), errors.Is(err, windows.ERROR_FILE_NOT_FOUND):
		return "wintun.dll is missing: put the one for this processor from https://www.wintun.net beside the program"
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return "making a Wintun adapter needs an administrator"
	}
	return ""
}
