package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/weft-net/weft/tunnel/userns"
)

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
	cures = append(cures, userns.Cures("user", "net", "mnt", "pid", "uts", "ipc")...)
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
