package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"

	"github.com/weft-net/weft/tunnel"
)

// icmpLen is the ICMP echo header, and maxPing what an IPv4 packet holds besides.
const (
	icmpLen = header.ICMPv4MinimumSize
	maxPing = tunnel.MaxPacket - header.IPv4MinimumSize - icmpLen
)

// Ping sends one ICMP echo request with size bytes of data and waits for its
// answer until ctx is done. What is too large for the MTU goes in fragments.
func (s *Stack) Ping(ctx context.Context, to netip.Addr, size int) (rtt time.Duration, err error) {
	to = to.Unmap()
	if rtt, err = s.ping(ctx, to, size); err != nil {
		return 0, fmt.Errorf("ping %v: %w", to, err)
	}
	return rtt, nil
}

func (s *Stack) ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error) {
	if size < 0 || size > maxPing {
		return 0, fmt.Errorf("size is %d: want 0 to %d", size, maxPing)
	}
	if err := s.reaches(to); err != nil {
		return 0, err
	}
	protocol, request := icmp.ProtocolNumber6, byte(header.ICMPv6EchoRequest)
	if to.Is4() {
		protocol, request = icmp.ProtocolNumber4, byte(header.ICMPv4Echo)
	}
	e, err := s.open("ping", protocol, to.Is4())
	if err != nil {
		return 0, err
	}
	defer e.abandon()
	if err := e.connect(ctx, netip.AddrPortFrom(to, 0)); err != nil {
		return 0, err
	}
	defer context.AfterFunc(ctx, func() { _ = e.SetDeadline(time.Unix(1, 0)) })()
	sent := make([]byte, icmpLen+size)
	sent[0] = request
	for i := range sent[icmpLen:] {
		sent[icmpLen+i] = byte(i)
	}
	start := time.Now()
	if _, err := e.send(sent, tcpip.WriteOptions{}); err != nil {
		return 0, err
	}
	if err := e.awaitEcho(sent); err != nil {
		if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			err = ctx.Err()
		}
		return 0, err
	}
	return time.Since(start), nil
}

// awaitEcho waits for the answer to what was sent. gVisor hands over those to
// this endpoint's identifier only.
func (e *endpoint) awaitEcho(sent []byte) error {
	got := make([]byte, len(sent)+1)
	for {
		n, err := e.receive(got, nil)
		if err != nil {
			return err
		}
		if n == len(sent) && string(got[icmpLen:n]) == string(sent[icmpLen:]) &&
			binary.BigEndian.Uint16(got[6:]) == binary.BigEndian.Uint16(sent[6:]) {
			return nil
		}
	}
}
