// Package kernel is the Linux driver for the kernel's own forwarding: VXLAN and
// WireGuard devices, and the addresses, neighbours, forwarding entries, peers
// and routes on them. It keeps no list of what it made: an object is weft's because of its
// device's name or its route protocol number, so that the next process knows
// it again. It must never touch an object that is not.
package kernel

import (
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// RouteProtocol marks those routes of ours that do not lead to a device of
// ours: direct routes over the underlay and blackholes. It is 'w' in ASCII; no
// routing daemon has this number in iproute2's rt_protos.
const RouteProtocol = 119

// Config configures a Driver.
type Config struct {
	Logger *slog.Logger
	// TUN is the name of the TUN device that the userspace engine opens, such as
	// "weft0". Empty: there is none.
	TUN string
	// WireGuard are the keys of WireGuard devices. To observe and to delete takes
	// none.
	WireGuard WireGuard
}

// WireGuard are the secrets of WireGuard devices. The zero value: there are none.
type WireGuard struct {
	Key       tunnel.SecretKey // private key of every device
	Preshared tunnel.SecretKey // with every peer; zero: none
}

// WireGuardSession is the state of a peer of a WireGuard device.
type WireGuardSession struct {
	Endpoint       netip.AddrPort // where packets to it go now; zero: nowhere
	LastHandshake  time.Time      // zero: never
	Received, Sent uint64         // outer bytes
}

// maxName is the longest name of a network device.
const maxName = 15

// The WireGuard devices are flannel's as well, one for each inner family.
const (
	wireguardName  = "flannel-wg"
	wireguardName6 = "flannel-wg-v6"
)

// isWireGuardName reports whether a device of this name is ours, if it is a
// WireGuard device.
func isWireGuardName(name string) bool { return name == wireguardName || name == wireguardName6 }

// isVXLANName reports whether a device of this name is ours, if it is a VXLAN
// device: flannel's names for IPv4 and IPv6, so that either agent takes over
// from the other.
func isVXLANName(name string) bool {
	digits, ok := strings.CutPrefix(name, "flannel.")
	if !ok {
		digits, ok = strings.CutPrefix(name, "flannel-v6.")
	}
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}
