package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
)

// associate serves UDP ASSOCIATE (RFC 1928, 7) until the client closes its
// connection.
func (c *socksClient) associate() {
	s := c.server
	client, ok := c.Conn.RemoteAddr().(*net.TCPAddr)
	local, ok2 := c.Conn.LocalAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		_, _ = c.Conn.Write(appendSOCKSReply(nil, socksFailed, netip.AddrPort{}))
		return
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: local.IP, Zone: local.Zone})
	if err != nil {
		s.config.Logger.Warn("cannot open UDP socket for SOCKS5 client", "err", err)
		_, _ = c.Conn.Write(appendSOCKSReply(nil, socksFailed, netip.AddrPort{}))
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	a := &association{socket: socket, host: client.AddrPort().Addr().Unmap()}
	a.flows = flows[string]{
		ctx: ctx, group: &s.group, count: &s.count, max: maxFlows,
		dial: func(ctx context.Context, target string) (net.Conn, error) {
			return s.config.Dialer.DialContext(ctx, UDP, socksHostPort([]byte(target)))
		},
		reply: a.reply,
		failed: func(err error) {
			if !a.logged.Swap(true) {
				s.config.Logger.Info("SOCKS5 datagram dropped; further ones of this client are only counted", "client", client.String(), "err", err)
			}
		},
	}
	defer socket.Close()
	defer closeOn(ctx, socket)()
	bound := socket.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := c.Conn.Write(appendSOCKSReply(nil, socksSucceeded, bound)); err != nil {
		return
	}
	s.group.Go(a.serve)
	_, _ = io.Copy(io.Discard, c.Conn)
}

// association is the UDP side of one SOCKS5 client.
type association struct {
	socket *net.UDPConn
	host   netip.Addr // of the client; nobody else is served
	// client is where the first datagram came from, and then the only place.
	client atomic.Pointer[netip.AddrPort]
	// flows has as key the target in SOCKS5's own form, which goes back with answers.
	flows  flows[string]
	logged atomic.Bool
}

// serve takes datagrams until the socket is closed.
func (a *association) serve() {
	buffer := make([]byte, maxDatagram)
	var pause backoff
	for {
		n, from, err := a.socket.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Some systems report here that an earlier answer found nobody.
			if !pause.wait(a.flows.ctx) {
				return
			}
			continue
		}
		pause = 0
		if err := a.take(buffer[:n], from); err != nil {
			a.flows.drop(err)
		}
	}
}

// take sends one datagram of the client on its way.
func (a *association) take(datagram []byte, from netip.AddrPort) error {
	from = netip.AddrPortFrom(from.Addr().WithZone("").Unmap(), from.Port())
	if from.Addr() != a.host.WithZone("") {
		return fmt.Errorf("datagram from %s, which is not the client", from)
	}
	target, payload, err := parseSOCKSDatagram(datagram)
	if err != nil {
		return err
	}
	if !a.client.CompareAndSwap(nil, &from) && *a.client.Load() != from {
		return fmt.Errorf("datagram from %s: the client has sent from another port", from)
	}
	a.flows.send(string(target), payload)
	return nil
}

// reply sends back what a target has answered.
func (a *association) reply(target string, payload []byte) error {
	datagram := append(append([]byte{0, 0, 0}, target...), payload...)
	_, err := a.socket.WriteToUDPAddrPort(datagram, *a.client.Load())
	return err
}

// parseSOCKSDatagram takes a client's datagram apart: target as in
// readSOCKSAddress. Fragments are refused, as RFC 1928 allows.
func parseSOCKSDatagram(datagram []byte) (target, payload []byte, err error) {
	switch {
	case len(datagram) < 4 || datagram[0] != 0 || datagram[1] != 0:
		return nil, nil, errors.New("datagram has no SOCKS5 header")
	case datagram[2] != 0:
		return nil, nil, errors.New("datagram is a fragment (FRAG is not 0), which is not supported")
	}
	reader := bytes.NewReader(datagram[3:])
	target, err = readSOCKSAddress(reader)
	if err != nil {
		return nil, nil, fmt.Errorf("datagram's target: %w", err)
	}
	return target, datagram[3+len(target):], nil
}
