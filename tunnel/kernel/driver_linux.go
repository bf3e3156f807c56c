package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/watch"
)

// Driver makes host objects true in the network namespace it was opened in. It
// may be used from several goroutines.
type Driver struct {
	log       *slog.Logger
	tun       string
	namespace *os.File // the network namespace
	netlink   *netlink.Handle
	raw       *nl.SocketHandle // for requests that the library does not make
	devices   *deviceTable
	sysctl    *os.Root // net.ipv6.conf; nil where the kernel has no IPv6
	wireguard *wireguard
	watcher   *watch.Watcher
	closed    atomic.Bool

	mu sync.Mutex
	// altered are the routes that the last Observe found in a form that a plain
	// replace does not mend: more than one version, or a foreign metric.
	altered map[tunnel.Key]bool
}

// Open opens a Driver. It changes nothing and needs no rights; Probe tells
// whether the rights are there.
func Open(config Config) (*Driver, error) {
	d := &Driver{log: config.Logger, tun: config.TUN, wireguard: newWireGuard(config.WireGuard)}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open kernel driver: %w", err), d.Close())
	}
	return d, nil
}

func (d *Driver) open() (err error) {
	if d.namespace, err = os.Open(threadNamespace); err != nil {
		return err
	}
	d.wireguard.connect = connectIn(d.namespace)
	if d.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if err := d.netlink.SetSocketTimeout(socketTimeout); err != nil {
		return err
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	d.raw = &nl.SocketHandle{Socket: socket}
	if d.devices, err = openDeviceTable(); err != nil {
		return err
	}
	if d.sysctl, err = openSysctl(); err != nil {
		return err
	}
	d.watcher, err = d.watch()
	return err
}

// socketTimeout is for a kernel that does not answer, which is a bug of it.
const socketTimeout = 10 * time.Second

// Close stops listening for changes. It leaves every object in place.
func (d *Driver) Close() (err error) {
	if d.closed.Swap(true) {
		return nil
	}
	if d.watcher != nil {
		err = d.watcher.Close()
	}
	err = errors.Join(err, d.wireguard.Close())
	if d.sysctl != nil {
		err = errors.Join(err, d.sysctl.Close())
	}
	if d.devices != nil {
		err = errors.Join(err, d.devices.Close())
	}
	if d.raw != nil {
		d.raw.Close()
	}
	if d.netlink != nil {
		d.netlink.Close()
	}
	if d.namespace != nil {
		err = errors.Join(err, d.namespace.Close())
	}
	return err
}

// ready reports why nothing may be started any more. The library would go on
// after Close, in whatever namespace the thread is in.
func (d *Driver) ready(ctx context.Context) error {
	if d.closed.Load() {
		return errClosed
	}
	return ctx.Err()
}

var errClosed = errors.New("kernel driver is closed")

// Changes has a token when something of ours may have changed, whoever
// did it. It is never closed.
func (d *Driver) Changes() <-chan struct{} { return d.watcher.Tokens() }

// Apply makes one object exist as wanted. What has to exist before it (the
// link of an address, the underlay of a link) is not made.
func (d *Driver) Apply(ctx context.Context, want tunnel.Object) error {
	err := d.ready(ctx)
	if err != nil {
		return fmt.Errorf("apply %s: %w", want.Key(), err)
	}
	switch want := want.(type) {
	case tunnel.Link:
		err = d.applyLink(want)
	case tunnel.Address:
		err = d.applyAddress(want)
	case tunnel.Neighbor:
		err = d.applyNeighbor(want)
	case tunnel.FDBEntry:
		err = d.applyFDB(want)
	case tunnel.WireGuardPeer:
		err = d.applyPeer(want)
	case tunnel.Route:
		err = d.applyRoute(want)
	default:
		err = fmt.Errorf("the kernel driver makes no %T: %w", want, errors.ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("apply %s: %w", want.Key(), explainRights(err))
	}
	return nil
}

// Delete removes one object of ours. That it is not there is no error.
func (d *Driver) Delete(ctx context.Context, have tunnel.Object) error {
	err := d.ready(ctx)
	if err != nil {
		return fmt.Errorf("delete %s: %w", have.Key(), err)
	}
	switch have := have.(type) {
	case tunnel.Link:
		err = d.deleteLink(have)
	case tunnel.Address:
		err = d.deleteAddress(have)
	case tunnel.Neighbor:
		err = d.deleteNeighbor(have)
	case tunnel.FDBEntry:
		err = d.deleteFDB(have)
	case tunnel.WireGuardPeer:
		err = d.deletePeer(have)
	case tunnel.Route:
		err = d.deleteRoute(have)
	default:
		err = fmt.Errorf("the kernel driver makes no %T: %w", have, errors.ErrUnsupported)
	}
	if err != nil && !isAbsent(err) {
		return fmt.Errorf("delete %s: %w", have.Key(), explainRights(err))
	}
	return nil
}

// isAbsent reports whether err says that the object, or its device, is not there.
func isAbsent(err error) bool {
	for _, absent := range []syscall.Errno{unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL} {
		if errors.Is(err, absent) {
			return true
		}
	}
	return false
}

// explainRights adds the cure to a refusal.
func explainRights(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN in this network namespace)", err)
	}
	return err
}
