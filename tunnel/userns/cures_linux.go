package userns

import (
	"fmt"
	"os"
	"strings"
)

// Cures is what keeps ordinary users of this machine from making namespaces of
// some kinds, as in "user" and "net", each with the command that allows it.
func Cures(kinds ...string) []string { return curesIn("", kinds) }

// curesIn reads the settings below a directory.
func curesIn(root string, kinds []string) (cures []string) {
	look := func(path, forbids, setting string) {
		if value, err := os.ReadFile(root + path); err == nil && strings.TrimSpace(string(value)) == forbids {
			cures = append(cures, fmt.Sprintf("%s is %s: as root, run: sysctl -w %s", path, forbids, setting))
		}
	}
	for _, kind := range kinds {
		look("/proc/sys/user/max_"+kind+"_namespaces", "0", "user.max_"+kind+"_namespaces=10000")
	}
	look("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1")
	look("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0")
	return cures
}

// cures ends an error.
func cures() string {
	if found := Cures("user", "net"); len(found) > 0 {
		return fmt.Sprintf(" (%s)", strings.Join(found, "; "))
	}
	return " (a seccomp profile of a container may forbid it, or one of the sysctls user.max_user_namespaces, " +
		"kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)"
}
