package kernel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deviceTable translates between names and indexes of devices. It asks the
// kernel each time: an ioctl costs a microsecond, a stale answer a foreign
// device.
type deviceTable struct {
	fd int

	mu sync.Mutex
	// verified are devices of our names that were seen to be of the right type.
	// An index is never given to another device while the kernel runs.
	verified map[string]int
}

func openDeviceTable() (*deviceTable, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket for device names: %w", err)
	}
	return &deviceTable{fd: fd, verified: make(map[string]int)}, nil
}

func (t *deviceTable) Close() error { return unix.Close(t.fd) }

// index returns a device's index; the error wraps unix.ENODEV if there is none.
func (t *deviceTable) index(name string) (int, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %q is longer than %d bytes: %w", name, maxName, unix.ENODEV)
	}
	if err := unix.IoctlIfreq(t.fd, unix.SIOCGIFINDEX, request); err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	return int(request.Uint32()), nil
}

// name returns a device's name, or "" if there is no such device.
func (t *deviceTable) name(index int) string {
	request, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	request.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(t.fd, unix.SIOCGIFNAME, request); err != nil {
		return ""
	}
	return request.Name()
}

func (t *deviceTable) isVerified(name string, index int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.verified[name] == index
}

func (t *deviceTable) verify(name string, index int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.verified[name] = index
}

// isName reports whether a device of this name is ours, if its type is right.
func (d *Driver) isName(name string) bool {
	return isVXLANName(name) || isWireGuardName(name) || name != "" && name == d.tun
}

// isOurs reports whether a device is ours.
func (d *Driver) isOurs(link netlink.Link) bool {
	name := link.Attrs().Name
	if isWireGuardName(name) {
		return link.Type() == d.wireguard.kind
	}
	switch link.(type) {
	case *netlink.Vxlan:
		return isVXLANName(name)
	case *netlink.Tuntap:
		return name != "" && name == d.tun
	}
	return false
}

// own returns the index of a device of ours. The error wraps unix.ENODEV if
// there is none; a device of another type under our name is an error as well.
func (d *Driver) own(name string) (int, error) {
	if !d.isName(name) {
		return 0, fmt.Errorf("device %s is not weft's", name)
	}
	index, err := d.devices.index(name)
	if err != nil {
		return 0, err
	}
	if d.devices.isVerified(name, index) {
		return index, nil
	}
	link, err := d.netlink.LinkByIndex(index)
	if err != nil {
		return 0, asAbsent(name, err)
	}
	if !d.isOurs(link) {
		return 0, squatterError(link)
	}
	d.devices.verify(name, index)
	return index, nil
}

// squatterError says that a device has our name but not our type.
func squatterError(link netlink.Link) error {
	name := link.Attrs().Name
	return fmt.Errorf("device %s exists, but it is of type %q and not weft's: rename or delete it (ip link delete %s)", name, link.Type(), name)
}

// asAbsent gives the library's "not found" the errno that isAbsent knows.
func asAbsent(name string, err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		err = unix.ENODEV
	}
	return fmt.Errorf("device %s: %w", name, err)
}

// find returns a device of ours, or nil if there is none of that name.
func (d *Driver) find(name string) (netlink.Link, error) {
	link, err := d.netlink.LinkByName(name)
	if err != nil {
		if err := asAbsent(name, err); !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
		return nil, nil
	}
	if !d.isOurs(link) {
		return nil, squatterError(link)
	}
	return link, nil
}
