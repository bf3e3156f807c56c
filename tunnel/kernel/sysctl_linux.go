package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// openSysctl opens net.ipv6.conf of this network namespace; nil if the kernel
// has no IPv6.
func openSysctl() (*os.Root, error) {
	root, err := os.OpenRoot("/proc/sys/net/ipv6/conf")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open IPv6 settings: %w", err)
	}
	return root, nil
}

func acceptRA(device string) string { return device + "/accept_ra" }

// acceptsRouters reports whether a device listens to router advertisements: no
// peer is a router of ours.
func (d *Driver) acceptsRouters(device string) bool {
	if d.sysctl == nil {
		return false
	}
	value, err := d.sysctl.ReadFile(acceptRA(device))
	return err == nil && strings.TrimSpace(string(value)) != "0"
}

// refuseRouters sets accept_ra=0. In a container the settings are often
// read-only: that is logged and not an error, because with forwarding on the
// kernel ignores advertisements anyhow.
func (d *Driver) refuseRouters(device string) {
	if !d.acceptsRouters(device) {
		return
	}
	file, err := d.openAcceptRA(device)
	if err == nil {
		_, err = file.WriteString("0\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		d.log.Warn("cannot make the device ignore router advertisements", "device", device, "err", err)
	}
}

// canRefuseRouters reports whether refuseRouters would succeed.
func (d *Driver) canRefuseRouters(device string) bool {
	file, err := d.openAcceptRA(device)
	if err != nil {
		return false
	}
	return file.Close() == nil
}

func (d *Driver) openAcceptRA(device string) (*os.File, error) {
	return d.sysctl.OpenFile(acceptRA(device), os.O_WRONLY, 0)
}
