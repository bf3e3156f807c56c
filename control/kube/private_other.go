//go:build !windows

package kube

import (
	"fmt"
	"os"
)

// checkPrivate refuses a file that users other than owner and group may read or
// write: who has the token is the guest.
func checkPrivate(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at permissions: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return fmt.Errorf("every user of this machine can use it (mode %04o) and be the guest in your place: chmod 600 %s", mode, file.Name())
	}
	return nil
}
