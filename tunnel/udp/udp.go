// Package udp gives the userspace engine its outer UDP sockets, batched and,
// where the system can, with runs of datagrams cut and joined by the kernel.
// It must never look into a payload, and never know peers.
package udp

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

const (
	// DefaultBuffer is the socket buffer asked for in each direction, in bytes.
	DefaultBuffer = 7 << 20
	// MaxSendSockets bounds Config.SendSockets.
	MaxSendSockets = 64

	// maxPayload is what fits a UDP datagram over IPv4 (RFC 768, RFC 791), and
	// so a run too, which the kernel builds as one datagram before cutting it.
	maxPayload = 1<<16 - 1 - 20 - 8
)

// Config says which socket Listen opens.
type Config struct {
	// Addr is a local address, or the unspecified one of a family, and the port
	// to receive on (0: any free one). IPv6 sockets carry no IPv4.
	Addr netip.AddrPort
	// SendSockets above 1 sends from that many further sockets on ports of their
	// own, picked by Datagrams.Flow, so that ECMP, receive queues and per-flow
	// limits on the way see many flows. With 0 or 1 the receiving port sends.
	SendSockets int
	// Polled makes Receive return at once, with nothing if nothing is there.
	// Descriptors is what to wait for. Linux only.
	Polled bool
	// ReceiveBuffer and SendBuffer are the socket buffers in bytes; 0 is DefaultBuffer.
	ReceiveBuffer, SendBuffer int
	// GSO and GRO are about runs that the kernel cuts and joins. Linux only.
	GSO, GRO tunnel.Switch
	// Logger is told what could not be had; nil is silent.
	Logger *slog.Logger
}

// withDefaults checks c and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	switch {
	case !c.Addr.Addr().IsValid():
		return c, errors.New("listen: Addr is not set: give a local address or 0.0.0.0 or [::], and a port")
	case c.Addr.Addr().Is4In6():
		return c, fmt.Errorf("listen: Addr %v is IPv4 written as IPv6: unmap it", c.Addr)
	case c.SendSockets < 0 || c.SendSockets > MaxSendSockets:
		return c, fmt.Errorf("listen: SendSockets is %d, want 0 to %d", c.SendSockets, MaxSendSockets)
	case c.ReceiveBuffer < 0 || c.SendBuffer < 0:
		return c, fmt.Errorf("listen: buffers are %d and %d bytes, want 0 or more", c.ReceiveBuffer, c.SendBuffer)
	}
	if c.ReceiveBuffer == 0 {
		c.ReceiveBuffer = DefaultBuffer
	}
	if c.SendBuffer == 0 {
		c.SendBuffer = DefaultBuffer
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Buffers are the socket buffers in bytes as the system granted them, of the
// sockets that receive and send.
type Buffers struct{ Receive, Send int }

// Errors that come again and again for a caller that gets them once are made once.
var (
	errArena   = fmt.Errorf("receive: arena is smaller than %d bytes", tunnel.MinArena)
	errFamily  = errors.New("send: the address is not of the socket's family")
	errPayload = fmt.Errorf("send: %w: more than %d bytes", tunnel.ErrTooBig, maxPayload)
	errRunOff  = fmt.Errorf("send run: %w: runs are off, as Offloads says", tunnel.ErrOffload)
)

// size returns the bytes in d's parts.
func size(d *tunnel.Datagrams) int {
	n := 0
	for _, part := range d.Parts {
		n += len(part)
	}
	return n
}
