package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// Sysctls of a new namespace. rp_filter is set because the kernel copies the
// machine's; duplicate address detection only costs time here.
var (
	emptySysctls = map[string]string{
		"ipv4/conf/all/rp_filter":        "0",
		"ipv4/conf/default/rp_filter":    "0",
		"ipv6/conf/default/accept_dad":   "0",
		"ipv6/conf/default/accept_ra":    "0",
		"ipv6/conf/all/disable_ipv6":     "0",
		"ipv6/conf/default/disable_ipv6": "0",
	}
	routerSysctls = map[string]string{
		"ipv4/ip_forward":          "1",
		"ipv6/conf/all/forwarding": "1",
	}
)

func setSysctls(values map[string]string) error {
	for name, value := range values {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set net.%s: %w", strings.ReplaceAll(name, "/", "."), err)
		}
	}
	return nil
}

// setCongestionControl gives the calling thread's network namespace the first that
// the kernel allows in it.
func setCongestionControl() (err error) {
	for _, name := range CongestionControls() {
		if err = setSysctls(map[string]string{"ipv4/tcp_congestion_control": name}); err == nil {
			break
		}
	}
	return err
}

// prepareEmpty makes the calling thread's network namespace usable.
func prepareEmpty() error {
	if err := errors.Join(setSysctls(emptySysctls), setCongestionControl()); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

func prepareHost() error {
	if err := prepareEmpty(); err != nil {
		return err
	}
	return setSysctls(routerSysctls)
}

func prepareOutside() error {
	if err := prepareHost(); err != nil {
		return err
	}
	// Where br_netfilter is loaded, switched frames would pass the router's hooks.
	err := setSysctls(map[string]string{"bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0"})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// addBridge makes sure that there is a bridge that is up and has the addresses.
func addBridge(name string, mtu int, addresses []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	noSnooping := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	// Set explicitly, the MTU no longer follows the smallest port.
	if err := netlink.LinkSetMTU(bridge, mtu); err != nil {
		return fmt.Errorf("set MTU of bridge %s: %w", name, err)
	}
	return bringUp(name, addresses)
}

// bringUp adds addresses to a device of the calling thread's namespace and
// sets it up.
func bringUp(device string, addresses []netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	for _, prefix := range addresses {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", prefix, device, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	return nil
}

func addDefaultRoutes(device string, routers []netip.Addr) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	for _, router := range routers {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: router.AsSlice()}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route over %s: %w", router, err)
		}
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   prefix.Addr().AsSlice(),
		Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
	}
}

// plug makes the veth pair and puts both ends in place.
func (c *cable) plug(mtu int) error {
	err := c.outside.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = c.port, mtu
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: c.device, PeerNamespace: netlink.NsFd(int(c.host.net.Fd()))}
		if c.mac != (tunnel.MAC{}) {
			veth.PeerHardwareAddr = net.HardwareAddr(c.mac[:])
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth pair: %w", err)
		}
		bridge, err := netlink.LinkByName(c.bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", c.bridge, err)
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return fmt.Errorf("add %s to bridge %s: %w", c.port, c.bridge, err)
		}
		return bringUp(c.port, nil)
	})
	if err != nil {
		return err
	}
	c.props.MTU = mtu
	if err := c.host.Do(func() error { return bringUp(c.device, c.addresses) }); err != nil {
		return err
	}
	return c.awaitCarrier()
}

// awaitCarrier waits until frames pass: the kernel notices a carrier a little
// later, and until then drops what is sent.
func (c *cable) awaitCarrier() error {
	if err := c.outside.Do(func() error { return awaitUp(c.port, c.bridge) }); err != nil {
		return err
	}
	return c.host.Do(func() error { return awaitUp(c.device) })
}

func awaitUp(devices ...string) error {
	deadline := time.Now().Add(10 * time.Second)
	for _, device := range devices {
		for {
			link, err := netlink.LinkByName(device)
			if err != nil {
				return fmt.Errorf("find %s: %w", device, err)
			}
			state := link.Attrs().OperState
			if state == netlink.OperUp {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("wait for carrier of %s: it stays %s", device, state)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}
