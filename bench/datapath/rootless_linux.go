package datapath

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/userns"
)

// inNetwork runs f in the network namespace of a file.
func inNetwork(path string, f func() error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return userns.OnThread(func() error {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join %s: %w", path, err)
		}
		return f()
	})
}
