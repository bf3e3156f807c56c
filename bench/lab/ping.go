package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Probe describes an ICMP echo request.
type Probe struct {
	To           netip.Addr
	PayloadBytes int  // after the 8 bytes of the ICMP header
	DontFragment bool // too big is an error instead of fragments
	// Timeout is how long to wait for the answer; 0: a second.
	Timeout time.Duration
}

// Ping sends one ICMP echo request and returns the time to its answer. It fails
// when the context or the timeout ends, or when the request cannot be sent.
func (n *Namespace) Ping(ctx context.Context, probe Probe) (time.Duration, error) {
	rtt, err := n.ping(ctx, probe)
	if err != nil {
		return 0, fmt.Errorf("ping %s from %s: %w", probe.To, n.name, err)
	}
	return rtt, nil
}

func (n *Namespace) ping(ctx context.Context, probe Probe) (time.Duration, error) {
	network, protocol, request := "ip4:icmp", 1, icmp.Type(ipv4.ICMPTypeEcho)
	if probe.To.Is6() {
		network, protocol, request = "ip6:ipv6-icmp", 58, ipv6.ICMPTypeEchoRequest
	}
	if probe.Timeout == 0 {
		probe.Timeout = time.Second
	}
	conn, err := n.ListenPacket(ctx, network, "")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if probe.DontFragment {
		if err := setDontFragment(conn.(*net.IPConn), probe.To); err != nil {
			return 0, fmt.Errorf("forbid fragments: %w", err)
		}
	}
	echo := &icmp.Echo{ID: rand.IntN(1 << 16), Seq: rand.IntN(1 << 16), Data: make([]byte, probe.PayloadBytes)}
	message := icmp.Message{Type: request, Body: echo}
	bytes, err := message.Marshal(nil) // the kernel fills in the checksum of ICMPv6
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := conn.SetDeadline(start.Add(probe.Timeout)); err != nil {
		return 0, err
	}
	if _, err := conn.WriteTo(bytes, &net.IPAddr{IP: probe.To.AsSlice(), Zone: probe.To.Zone()}); err != nil {
		return 0, err
	}
	if err := awaitEcho(conn, protocol, echo); err != nil {
		return 0, errors.Join(err, ctx.Err())
	}
	return time.Since(start), nil
}

func awaitEcho(conn net.PacketConn, protocol int, sent *icmp.Echo) error {
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := conn.ReadFrom(buffer)
		if err != nil {
			return err
		}
		message, err := icmp.ParseMessage(protocol, buffer[:n])
		if err != nil || message.Type != ipv4.ICMPTypeEchoReply && message.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		if got, ok := message.Body.(*icmp.Echo); ok && got.ID == sent.ID && got.Seq == sent.Seq {
			return nil
		}
	}
}
