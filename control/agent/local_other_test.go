//go:build !windows

package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// localPath is where nothing is yet, not even the directory.
func localPath(t *testing.T) string { return filepath.Join(t.TempDir(), "run", "weft.sock") }

// TestLocalSocket: the socket is for its owner only, and what a killed agent
// left is replaced.
func TestLocalSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	listener, err := listenLocal(t.Context(), path)
	if err != nil {
		t.Fatalf("after a killed agent: %v", err)
	}
	defer listener.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
}
