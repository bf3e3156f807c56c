//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/weft-net/weft/bench/lab/script"
)

// TestWindows runs Windows programs under Wine, on a host of the lab, whose
// network Wine shares:
//
//	windows HOST PROGRAM [ARG...]     run a Windows program; see stdout, stderr
//	on -bg=JOB HOST wine PROGRAM ...  in the background, as any other
//
// Scripts find these in their environment:
//
//	WEFT_EXE          weft.exe
//	WINDOWS_TESTS     directory of the tests of the packages that speak to Windows, as PACKAGE.exe
//	WINEPREFIX        what Wine takes for a disk; its server lives in the namespace of
//	                  the program that starts it, so a script has one host for it
func TestWindows(t *testing.T) {
	programs := t.TempDir()
	buildWindows(t, programs)
	testscript.Run(t, script.Params(script.Config{
		Dir:      "testdata/windows",
		Commands: map[string]script.Command{"windows": runWindows},
		Setup: func(env *testscript.Env) error {
			prefix := filepath.Join(env.WorkDir, "wine")
			env.Setenv("WINEPREFIX", prefix)
			env.Setenv("WINEDEBUG", "-all")
			env.Setenv("WEFT_EXE", filepath.Join(programs, "weft.exe"))
			env.Setenv("WINDOWS_TESTS", programs)
			return makePrefix(prefix, wineEnvironment(env.Getenv))
		},
	}))
}

// runWindows writes to files: Wine's own processes keep what they were started
// with open, and nobody would see the end of a pipe.
func runWindows(run *script.Run, args []string) error {
	if len(args) < 2 {
		return errors.New("usage: windows HOST PROGRAM [ARG...]")
	}
	place, err := run.Place(args[0])
	if err != nil {
		return err
	}
	work := run.Getenv("WORK")
	cmd := place.Command(context.Background(), "wine", args[1:]...)
	cmd.Dir = work
	cmd.Env = wineEnvironment(run.Getenv)
	files := map[string]*bytes.Buffer{"stdout": run.Stdout, "stderr": run.Stderr}
	for name := range files {
		file, err := os.Create(filepath.Join(work, "windows."+name))
		if err != nil {
			return err
		}
		defer file.Close()
		if name == "stdout" {
			cmd.Stdout = file
		} else {
			cmd.Stderr = file
		}
	}
	err = cmd.Run()
	for name, buffer := range files {
		text, readErr := os.ReadFile(filepath.Join(work, "windows."+name))
		buffer.Write(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")))
		err = errors.Join(err, readErr)
	}
	return err
}

// wineEnvironment is what all programs on one disk have to have in common: a
// server is found by the disk and below TMPDIR.
func wineEnvironment(getenv func(string) string) []string {
	environment := os.Environ()
	for _, name := range []string{"WINEPREFIX", "WINEDEBUG", "TMPDIR"} {
		environment = append(environment, name+"="+getenv(name))
	}
	return environment
}

// buildWindows builds weft.exe and the tests.
func buildWindows(t *testing.T, dir string) {
	t.Helper()
	commands := [][]string{{"build", "-o", filepath.Join(dir, "weft.exe"), "../../cmd/weft"}}
	for _, pkg := range []string{"control/agent", "tunnel/router", "tunnel/tundev", "tunnel/udp", "tunnel/underlay"} {
		commands = append(commands, []string{"test", "-c", "-o", filepath.Join(dir, filepath.Base(pkg)+".exe"), "../../" + pkg})
	}
	for _, words := range commands {
		cmd := exec.CommandContext(t.Context(), "go", words...)
		cmd.Env = append(os.Environ(), "GOOS=windows", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", words, err, out)
		}
	}
}

// prngSource is the library from which Go programs take random numbers, and
// which Wine lacks before release 9.
const prngSource = `#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) { return SystemFunction036(data, (ULONG)size); }
`

// makePrefix makes a disk for Wine that Go programs run on, and waits for the
// end of Wine's server, which belongs to this namespace.
func makePrefix(prefix string, environment []string) error {
	source := prefix + ".c"
	if err := os.WriteFile(source, []byte(prngSource), 0o600); err != nil {
		return err
	}
	for _, words := range [][]string{
		{"wine", "wineboot", "--init"},
		{"x86_64-w64-mingw32-gcc", "-shared", "-O2", "-o", filepath.Join(prefix, "drive_c/windows/system32/bcryptprimitives.dll"), source, "-ladvapi32"},
		{"wineserver", "--wait"},
	} {
		cmd := exec.CommandContext(context.Background(), words[0], words[1:]...)
		// The overrides keep it from looking for what only windows and browsers need.
		cmd.Env = append(environment, "WINEDLLOVERRIDES=mscoree,mshtml=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", words[0], err, out)
		}
	}
	return nil
}
