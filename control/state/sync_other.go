//go:build !windows

package state

import "os"

// syncDir makes a rename in dir survive a power cut. Some file systems refuse
// to flush a directory; the file is in place all the same.
func syncDir(dir string) {
	if handle, err := os.Open(dir); err == nil {
		_ = handle.Sync()
		_ = handle.Close()
	}
}
