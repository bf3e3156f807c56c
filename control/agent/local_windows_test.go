package agent

import (
	"fmt"
	"os"
	"testing"
)

// localPath is a pipe's own name: nothing of it lies in the file system.
func localPath(t *testing.T) string { return fmt.Sprintf("weft-%s-%d", t.Name(), os.Getpid()) }

func TestPipeName(t *testing.T) {
	for path, want := range map[string]string{
		"/run/weft/weft.sock":           `\\.\PIPE\run-weft-weft.sock`,
		`C:\ProgramData\weft\weft.sock`: `\\.\PIPE\C--ProgramData-weft-weft.sock`,
		`\\.\pipe\weft`:                 `\\.\PIPE\weft`,
		`\\.\PIPE\ProtectedPrefix\weft`: `\\.\PIPE\ProtectedPrefix\weft`,
	} {
		if got := pipeName(path); got != want {
			t.Errorf("pipeName(%s) = %s, want %s", path, got, want)
		}
	}
}
