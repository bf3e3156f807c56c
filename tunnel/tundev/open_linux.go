package tundev

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

const (
	node = "/dev/net/tun"
	// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE: no link-local address, so that
	// the kernel has nothing of its own to say on the link.
	addrGenModeNone = 1
)

// attach opens the node and makes the link, or with several queues one more
// queue of it.
func attach(name string, queues int) (fd int, actual string, err error) {
	fd, err = unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, "", openError(err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(flags)
		err = attachError(unix.IoctlIfreq(fd, unix.TUNSETIFF, request), name)
	}
	if err == nil {
		err = setHeaderSize(fd)
	}
	if err != nil {
		return -1, "", errors.Join(err, unix.Close(fd))
	}
	return fd, request.Name(), nil
}

func setHeaderSize(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, len(vnetHeader{})); err != nil {
		return fmt.Errorf("set size of the virtio header: %w", err)
	}
	return nil
}

// Usable says why this user cannot make a TUN, whatever the rights in a network
// namespace; nil if that alone would do.
func Usable() error {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return openError(err)
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close %s: %w", node, err)
	}
	return nil
}

// openError adds to an error of opening the node what to do about it.
func openError(err error) error {
	cure := map[error]string{
		unix.ENOENT: "the node is missing: modprobe tun, or mkdir -p /dev/net && mknod -m 0666 " + node + " c 10 200; in a container: --device " + node,
		unix.ENODEV: "the kernel has no TUN driver: modprobe tun",
		unix.ENXIO:  "the kernel has no TUN driver: modprobe tun",
		unix.EACCES: "this user may not open it: chmod 0666 " + node + ", or run as root; it lasts by a udev rule: KERNEL==\"tun\", MODE=\"0666\"",
		unix.EPERM:  "the device rules of this container forbid it: allow character device 10:200, or --device " + node,
	}[err]
	return withCure("open "+node, cure, err)
}

// attachError does the same for an error of making the link.
func attachError(err error, name string) error {
	if err == nil {
		return nil
	}
	cure := map[error]string{
		unix.EPERM:  "making a link needs CAP_NET_ADMIN in this network namespace, and a kept TUN its owner",
		unix.EBUSY:  "another process has this TUN open; grep -l 'iff:.*" + name + "' /proc/[0-9]*/fdinfo/* finds it",
		unix.EINVAL: "a link of that name exists and is not a TUN, or not one with as many queues: ip link show " + name,
	}[err]
	return withCure("make link", cure, err)
}

func withCure(verb, cure string, err error) error {
	if cure == "" {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return fmt.Errorf("%s: %s: %w", verb, cure, err)
}

// negotiate asks for all offloads and then for fewer until set, which is
// TUNSETOFFLOAD, accepts. That decides what the kernel hands to Read; Write
// takes the same, except for what a kernel version is known to do badly.
func negotiate(config Config, kernel linux.Version, set func(flags int) error) (o tunnel.Offloads, err error) {
	const (
		csum = unix.TUN_F_CSUM
		tso  = csum | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		uso  = tso | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	steps := []struct {
		flags int
		off   bool
		lost  string // what the next step does without
	}{
		{uso, config.USO == tunnel.Off || config.TSO == tunnel.Off, "UDP super-packets"},
		{tso, config.TSO == tunnel.Off, "TCP super-packets"},
		{csum, false, "unfinished checksums"},
		{0, false, ""},
	}
	for _, step := range steps {
		if step.off {
			o.Why = append(o.Why, "no "+step.lost+": switched off")
			continue
		}
		if err = set(step.flags); err == nil {
			o.Checksum, o.TCP, o.UDP = step.flags&csum != 0, step.flags&unix.TUN_F_TSO4 != 0, step.flags&unix.TUN_F_USO4 != 0
			break
		}
		o.Why = append(o.Why, fmt.Sprintf("no %s: TUNSETOFFLOAD: %v", step.lost, err))
	}
	if err != nil {
		return tunnel.Offloads{}, fmt.Errorf("set offloads: %w", err)
	}
	if o.UDP && config.USO != tunnel.On && !kernel.AtLeast(6, 8, 5) {
		o.UDP = false
		o.Why = append(o.Why, fmt.Sprintf("no UDP super-packets to the kernel: %v forwards them badly, use 6.8.5 or later", kernel))
	}
	return o, nil
}

// setUpLink sets what Config says of the link and brings it up. Its
// gso_max_size stays the kernel's 64 KiB: pods behind a bridge send super-packets
// of that size, and the kernel would cut whatever is larger than a bound set here
// into single packets. The engine cuts a super-packet into two runs instead.
func setUpLink(name string, config Config) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer handle.Close()
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	if err := handle.LinkSetMTU(link, config.MTU); err != nil {
		return fmt.Errorf("set MTU %d: %w", config.MTU, err)
	}
	if err := handle.LinkSetTxQLen(link, config.TxQueueLen); err != nil {
		return fmt.Errorf("set queue length %d: %w", config.TxQueueLen, err)
	}
	if err := handle.LinkSetIP6AddrGenMode(link, addrGenModeNone); err != nil {
		config.Logger.Debug("link-local address is not off", "device", name, "error", err) // as without IPv6
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	return nil
}

// linkSocket asks for the link's MTU in the namespace it was opened in.
type linkSocket struct {
	mu sync.Mutex
	fd int
}

func (s *linkSocket) open() (err error) {
	if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		s.fd = -1
		return fmt.Errorf("open socket: %w", err)
	}
	return nil
}

func (s *linkSocket) mtu(name string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return 0, tunnel.ErrClosed
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(s.fd, unix.SIOCGIFMTU, request); err != nil {
		return 0, err
	}
	return int(request.Uint32()), nil
}

func (s *linkSocket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}
