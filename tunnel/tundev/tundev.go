// Package tundev gives the userspace engine its TUN device: on Linux with the
// virtio-net header, so that the kernel's super-packets pass whole, elsewhere
// packet by packet. It must never look into a packet beyond its headers, and
// never add an address or a route.
package tundev

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/weft-net/weft/tunnel"
)

const (
	// DefaultTxQueueLen is the packets the kernel queues for Read. It is the
	// only buffer there is, so it is a bound on latency too.
	DefaultTxQueueLen = 1000
	// MaxMTU leaves room for the encapsulation in one UDP datagram.
	MaxMTU = maxPayload - encapsulation

	maxQueues     = 256                // MAX_TAP_QUEUES of the kernel
	minMTU        = 68                 // RFC 791
	maxName       = 15                 // IFNAMSIZ without its end
	maxPayload    = 1<<16 - 1 - 20 - 8 // of a UDP datagram over IPv4
	encapsulation = 8 + 14             // VXLAN and inner Ethernet header
)

// Config says which device Open opens.
type Config struct {
	// Name of the link; empty is the system's usual one. macOS only knows
	// "utun" and "utun7"; Device.Name says what it became.
	Name string
	// MTU is the largest inner packet in bytes.
	MTU int
	// Queues is how many Devices OpenQueues opens on the link; 0 is one. The
	// kernel keeps a flow on the queue that it was last written to. Linux only.
	Queues int
	// Polled makes Read return at once, with nothing if nothing is there.
	// Descriptor is what to wait for. Linux only.
	Polled bool
	// TxQueueLen is in packets; 0 is DefaultTxQueueLen. Linux only.
	TxQueueLen int
	// TSO and USO are about TCP and UDP super-packets. Without the first there is
	// no second. Linux only.
	TSO, USO tunnel.Switch
	// Logger is told what could not be had; nil is silent.
	Logger *slog.Logger
}

// withDefaults checks c and fills in what is empty.
func (c Config) withDefaults(name string) (Config, error) {
	if c.Name == "" {
		c.Name = name
	}
	switch {
	case len(c.Name) > maxName || c.Name == "." || c.Name == ".." || strings.ContainsAny(c.Name, "/:% \t\n\x00"):
		return c, fmt.Errorf("open TUN: Name %q: want at most %d letters, digits or dashes", c.Name, maxName)
	case c.MTU < minMTU || c.MTU > MaxMTU:
		return c, fmt.Errorf("open TUN %s: MTU is %d, want %d to %d", c.Name, c.MTU, minMTU, MaxMTU)
	case c.Queues < 0 || c.Queues > maxQueues:
		return c, fmt.Errorf("open TUN %s: Queues is %d, want 0 to %d", c.Name, c.Queues, maxQueues)
	case c.TxQueueLen < 0:
		return c, fmt.Errorf("open TUN %s: TxQueueLen is %d, want 0 or more", c.Name, c.TxQueueLen)
	}
	c.Queues = max(c.Queues, 1)
	if c.TxQueueLen == 0 {
		c.TxQueueLen = DefaultTxQueueLen
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
