// Package kernel is the Linux driver for the kernel's own forwarding: VXLAN
// devices, and the addresses, neighbours, forwarding entries and routes on
// them. It keeps no list of what it made: an object is weft's because of its
// device's name or its route protocol number, so that the next process knows
// it again. It must never touch an object that is not.
package kernel

import (
	"log/slog"
	"strings"
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
}

// maxName is the longest name of a network device.
const maxName = 15

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
