package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// switches that keep ordinary users from making namespaces, with the value
// that forbids it and the command that allows it.
var namespaceSwitches = []struct{ path, forbids, cure string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
	{"/proc/sys/user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=10000"},
	{"/proc/sys/user/max_mnt_namespaces", "0", "sysctl -w user.max_mnt_namespaces=10000"},
	{"/proc/sys/user/max_pid_namespaces", "0", "sysctl -w user.max_pid_namespaces=10000"},
	{"/proc/sys/user/max_uts_namespaces", "0", "sysctl -w user.max_uts_namespaces=10000"},
	{"/proc/sys/user/max_ipc_namespaces", "0", "sysctl -w user.max_ipc_namespaces=10000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
}

// explain adds to an error of Enter what is missing and how to allow it.
func explain(err error) error {
	text := err.Error()
	var cures []string
	switch {
	case strings.Contains(text, "/dev/net/tun"):
		cures = append(cures, tunCure())
	case strings.Contains(text, "mount /proc"):
		cures = append(cures, "a container that masks parts of /proc forbids it: start the container with --security-opt systempaths=unconfined")
	}
	for _, s := range namespaceSwitches {
		if value, err := os.ReadFile(s.path); err == nil && strings.TrimSpace(string(value)) == s.forbids {
			cures = append(cures, fmt.Sprintf("%s is %s: as root, run: %s", s.path, s.forbids, s.cure))
		}
	}
	if len(cures) == 0 {
		cures = append(cures, "user, mount, network and pid namespaces must be allowed (in a container: --cap-add SYS_ADMIN --cap-add NET_ADMIN or an unconfined seccomp profile)")
	}
	return fmt.Errorf("enter lab: %w\n\t%s", err, strings.Join(cures, "\n\t"))
}

func tunCure() string {
	if _, err := os.Stat("/dev/net/tun"); errors.Is(err, os.ErrNotExist) {
		return "there is no TUN device: as root, run: modprobe tun; mkdir -p /dev/net; mknod -m 0666 /dev/net/tun c 10 200"
	}
	return "only root may open the TUN device here: as root, run: chmod 0666 /dev/net/tun"
}
