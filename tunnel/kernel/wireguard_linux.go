package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/userns"
)

// control is what is asked of the kernel's WireGuard beside the link itself. A
// device that is not there is os.ErrNotExist.
type control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, config wgtypes.Config) error
	Close() error
}

// wireguard is the part of a Driver for WireGuard devices.
type wireguard struct {
	kind string // type of our links
	// connect opens the control, at the first use: the kernel would load its
	// module for it.
	connect func() (control, error)

	mu      sync.Mutex
	control control
	keys    WireGuard
	// published are the endpoints that Apply was given last.
	published map[tunnel.Key]netip.AddrPort
	// live are the peers that the last Observe found to have a session.
	live map[tunnel.Key]bool
}

func newWireGuard(keys WireGuard) *wireguard {
	return &wireguard{kind: (*netlink.Wireguard)(nil).Type(), keys: keys, published: make(map[tunnel.Key]netip.AddrPort)}
}

// connectIn returns a function that opens the control in a network namespace.
// The thread it is called on may be in another one.
func connectIn(namespace *os.File) func() (control, error) {
	return func() (opened control, err error) {
		err = userns.OnThread(func() error {
			here, err := os.Stat(threadNamespace)
			if err != nil {
				return err
			}
			there, err := namespace.Stat()
			if err != nil {
				return err
			}
			if !os.SameFile(here, there) { // to join takes rights, even the same one
				if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
					return fmt.Errorf("join network namespace: %w", err)
				}
			}
			opened, err = wgctrl.New()
			return err
		})
		return opened, err
	}
}

const threadNamespace = "/proc/thread-self/ns/net"

func (w *wireguard) open() (control, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control == nil {
		opened, err := w.connect()
		if err != nil {
			return nil, fmt.Errorf("open WireGuard control: %w", err)
		}
		w.control = opened
	}
	return w.control, nil
}

func (w *wireguard) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.control == nil {
		return nil
	}
	return w.control.Close()
}

// device reads a device; the error wraps unix.ENODEV if there is none.
func (w *wireguard) device(name string) (*wgtypes.Device, error) {
	control, err := w.open()
	if err != nil {
		return nil, err
	}
	device, err := control.Device(name)
	if err != nil {
		return nil, fmt.Errorf("read WireGuard device %s: %w", name, asNoDevice(err))
	}
	return device, nil
}

func (w *wireguard) configure(name string, config wgtypes.Config) error {
	control, err := w.open()
	if err != nil {
		return err
	}
	if err := control.ConfigureDevice(name, config); err != nil {
		return fmt.Errorf("configure WireGuard device %s: %w", name, asNoDevice(err))
	}
	return nil
}

// asNoDevice gives the library's "not there" the errno that isAbsent knows.
func asNoDevice(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return unix.ENODEV
	}
	return err
}

// SetWireGuard replaces the keys. Devices and peers get them when they are
// applied next; until then Observe shows those that have others as not in
// place. A new private key keeps the peers, and ends their sessions.
func (d *Driver) SetWireGuard(keys WireGuard) {
	d.wireguard.mu.Lock()
	defer d.wireguard.mu.Unlock()
	d.wireguard.keys = keys
}

func (w *wireguard) currentKeys() WireGuard {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.keys
}

// checkWireGuard names the field that cannot be.
func checkWireGuard(want tunnel.Link, key tunnel.SecretKey) error {
	switch {
	case !isWireGuardName(want.Name):
		return fmt.Errorf("name %q: want %s or %s", want.Name, wireguardName, wireguardName6)
	case want.Port == 0:
		return fieldError("port", errUnset)
	case want.MTU <= 0:
		return fieldError("MTU", errUnset)
	case want.PublicKey == (tunnel.PublicKey{}):
		return fieldError("public key", errUnset)
	case key == (tunnel.SecretKey{}):
		return errors.New("the driver was given no private key for WireGuard")
	case want.PublicKey != key.Public():
		return fmt.Errorf("public key %s: the driver's private key has %s", want.PublicKey, key.Public())
	}
	return nil
}

// applyWireGuard changes a device in place, whoever made it: to make it anew
// would cost every session.
func (d *Driver) applyWireGuard(want tunnel.Link) error {
	key := d.wireguard.currentKeys().Key
	if err := checkWireGuard(want, key); err != nil {
		return err
	}
	link, err := d.find(want.Name)
	if err != nil {
		return err
	}
	if link == nil {
		if link, err = d.createWireGuard(want); err != nil {
			return err
		}
	}
	have, err := d.wireguard.device(want.Name)
	if err != nil {
		return err
	}
	if config, differs := deviceConfig(have, want, key); differs {
		err := d.wireguard.configure(want.Name, config)
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("%w: another program or device has UDP port %d", err, want.Port)
		}
		if err != nil {
			return err
		}
	}
	return d.tune(link, want)
}

// deviceConfig is what has to be changed on a device. Its peers stay.
func deviceConfig(have *wgtypes.Device, want tunnel.Link, key tunnel.SecretKey) (config wgtypes.Config, differs bool) {
	if tunnel.PublicKey(have.PublicKey) != want.PublicKey {
		private := wgtypes.Key(key)
		config.PrivateKey, differs = &private, true
	}
	if have.ListenPort != int(want.Port) {
		port := int(want.Port)
		config.ListenPort, differs = &port, true
	}
	if have.FirewallMark != 0 {
		config.FirewallMark, differs = new(int), true
	}
	return config, differs
}

func (d *Driver) createWireGuard(want tunnel.Link) (netlink.Link, error) {
	link := d.wireguard.newLink(want.Name)
	link.MTU = want.MTU
	if err := d.netlink.LinkAdd(link); err != nil {
		return nil, d.wireguard.explainCreate(err)
	}
	made, err := d.find(want.Name)
	if err == nil && made == nil {
		err = fmt.Errorf("device %s vanished after it was made: %w", want.Name, unix.ENODEV)
	}
	return made, err
}

func (w *wireguard) newLink(name string) *netlink.GenericLink {
	link := &netlink.GenericLink{LinkAttrs: netlink.NewLinkAttrs(), LinkType: w.kind}
	link.Name = name
	return link
}

// explainCreate says why a WireGuard device could not be made, and what helps.
func (w *wireguard) explainCreate(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("kernel: RTM_NEWLINK %s: %w: this kernel has no WireGuard: load the module (modprobe wireguard); "+
			"Linux has it from 5.6 on, where it is built in or packaged", w.kind, err)
	}
	return fmt.Errorf("kernel: RTM_NEWLINK %s: %w", w.kind, err)
}

// checkPeer names the field that cannot be.
func checkPeer(want tunnel.WireGuardPeer, own tunnel.SecretKey) error {
	switch {
	case want.PublicKey == (tunnel.PublicKey{}):
		return fieldError("public key", errUnset)
	case own != (tunnel.SecretKey{}) && want.PublicKey == own.Public():
		return errors.New("public key: it is this host's own, which the kernel takes for no peer")
	case !want.Endpoint.IsValid() || want.Endpoint.Port() == 0:
		return fieldError("endpoint", errUnset)
	case want.Endpoint.Addr() != want.Endpoint.Addr().Unmap().WithZone(""):
		return fmt.Errorf("endpoint %s: want an address without a zone, and IPv4 as such", want.Endpoint)
	case !want.Subnet.IsValid():
		return fieldError("subnet", errUnset)
	case want.Subnet != want.Subnet.Masked():
		return fmt.Errorf("subnet %s has bits beyond its length: want %s", want.Subnet, want.Subnet.Masked())
	case want.Keepalive < 0 || want.Keepalive > maxKeepalive:
		return fmt.Errorf("keepalive %d: want 0 to %d seconds", want.Keepalive, maxKeepalive)
	}
	return nil
}

const maxKeepalive = 1<<16 - 1

// applyPeer adds a peer, or changes it within its session. The kernel takes
// the subnet from whichever peer has it: what moves, as at a change of the
// peer's key, is the new peer's at once.
func (d *Driver) applyPeer(want tunnel.WireGuardPeer) error {
	keys := d.wireguard.currentKeys()
	if err := checkPeer(want, keys.Key); err != nil {
		return err
	}
	if _, err := d.own(want.Link); err != nil {
		return err
	}
	preshared := wgtypes.Key(keys.Preshared)
	keepalive := time.Duration(want.Keepalive) * time.Second
	peer := wgtypes.PeerConfig{
		PublicKey:                   wgtypes.Key(want.PublicKey),
		PresharedKey:                &preshared,
		PersistentKeepaliveInterval: &keepalive,
		ReplaceAllowedIPs:           true,
		AllowedIPs:                  []net.IPNet{*ipNet(want.Subnet)},
	}
	if d.wireguard.directs(want) {
		peer.Endpoint = net.UDPAddrFromAddrPort(want.Endpoint)
	}
	if err := d.wireguard.configure(want.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}}); err != nil {
		return err
	}
	d.wireguard.publish(want)
	return nil
}

// deletePeer relies on the kernel to take the absence of a peer for success.
func (d *Driver) deletePeer(have tunnel.WireGuardPeer) error {
	if _, err := d.own(have.Link); err != nil {
		return err
	}
	peer := wgtypes.PeerConfig{PublicKey: wgtypes.Key(have.PublicKey), Remove: true, UpdateOnly: true}
	if err := d.wireguard.configure(have.Link, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}}); err != nil {
		return err
	}
	d.wireguard.forget(func(key tunnel.Key) bool { return key == have.Key() })
	return nil
}
