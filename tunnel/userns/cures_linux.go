package userns

import (
	"fmt"
	"os"
	"strings"
)

// switches that keep ordinary users from making namespaces, with the value
// that forbids it and the setting that allows it.
var switches = []struct{ path, forbids, cure string }{
	{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"},
	{"/proc/sys/user/max_net_namespaces", "0", "user.max_net_namespaces=10000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"},
}

// cures is what allows user namespaces on this machine, in words for the end of
// an error.
func cures() string { return curesIn("") }

// curesIn reads the switches below a directory.
func curesIn(root string) string {
	var found []string
	for _, s := range switches {
		if value, err := os.ReadFile(root + s.path); err == nil && strings.TrimSpace(string(value)) == s.forbids {
			found = append(found, "as root, run: sysctl -w "+s.cure)
		}
	}
	if len(found) == 0 {
		return " (a seccomp profile of a container may forbid it, or one of the sysctls user.max_user_namespaces, " +
			"kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns)"
	}
	return fmt.Sprintf(" (%s)", strings.Join(found, "; "))
}
