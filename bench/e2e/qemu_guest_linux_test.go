//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// This part is the init program of an emulated machine. Its root is what it
// finds on the machine that emulates it, which it cannot write.

const (
	machineVar     = "WEFT_MACHINE"     // program of tests to run; marks the machine's init
	machineDirVar  = "WEFT_MACHINE_DIR" // where their files are
	machineModules = "/modules"         // in the initramfs, in order of loading
	machinePasses  = "machine passes"
	rootTag        = "root"
)

// runMachine runs the tests and says how they ended.
func runMachine() {
	if err := serveMachine(os.Getenv(machineVar)); err != nil {
		fmt.Println("machine fails:", err)
	} else {
		fmt.Println(machinePasses)
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("power off:", err)
	}
}

func serveMachine(tests string) error {
	modules, err := filepath.Glob(machineModules + "/*")
	if err != nil {
		return err
	}
	for _, module := range modules {
		if err := loadModule(module); err != nil {
			return err
		}
	}
	if err := takeRoot(); err != nil {
		return err
	}
	cmd := exec.Command(tests, "-test.v", "-test.run=WireGuard/kernel")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/run", "HOME=/run"}
	cmd.Dir = os.Getenv(machineDirVar)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}

// takeRoot makes the other machine's files the root, with kernel file systems
// of this one.
func takeRoot() error {
	const root = "/root"
	if err := unix.Mount(rootTag, root, "9p", unix.MS_RDONLY, "trans=virtio,version=9p2000.L,msize=262144,cache=loose"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, m := range []struct{ target, kind string }{
		{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}, {"/run", "tmpfs"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}
