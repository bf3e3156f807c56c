package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// machineDir is where a host finds what the machine has in the directories
// that are the host's own.
const machineDir = "/run/machine"

// fresh are directories below /etc and /var/lib that start empty on a host
// even if the machine has them: what weft and CNI keep there.
var fresh = []string{
	"/etc/cni", "/etc/kube-flannel", "/etc/weft",
	"/var/lib/cni", "/var/lib/weft",
}

func mountTmpfs(path string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

// mountHost gives the calling thread's mount namespace its own /run, /etc and
// /var/lib.
func mountHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/var/lib"} {
		if err := cover(dir); err != nil {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	return nil
}

// cover puts an empty file system over a directory, with links to what was
// there before, which stays readable but can no longer be written.
func cover(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	machine := machineDir + dir
	if err := os.MkdirAll(machine, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(dir, machine, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, machine, unix.AT_RECURSIVE, readOnly); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	if err := mountTmpfs(dir); err != nil {
		return err
	}
	for _, path := range fresh {
		if filepath.Dir(path) == dir {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
		}
	}
	for _, entry := range entries {
		err := os.Symlink(filepath.Join(machine, entry.Name()), filepath.Join(dir, entry.Name()))
		if err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}
