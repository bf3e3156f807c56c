package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"tailscale.com/net/socks5"
)

// SOCKS5 in numbers (RFC 1928).
const (
	socksVersion = 5

	socksAssociate = 3

	socksIPv4 = 1
	socksName = 3
	socksIPv6 = 4

	socksSucceeded          = 0
	socksFailed             = 1
	socksNotAllowed         = 2
	socksHostUnreachable    = 4
	socksRefused            = 5
	socksAddressUnsupported = 8
)

// socksClient is a SOCKS5 client's connection as the library sees it. The
// library negotiates, authenticates and answers CONNECT. What it does not do
// as clients need is done here, around it: a client that stops in the middle
// of the negotiation is left after handshakeTimeout; a request that fails is
// answered with the reason; an end of one direction is passed on, where the
// library would close both; and UDP associations are ours altogether, as its
// own take fragments for whole datagrams, cut what is longer than 8 KiB, answer
// whoever sends to them, keep every target for ever and dial one after another.
type socksClient struct {
	net.Conn
	server *Server
	below  *counted
	// asking: the next bytes read are the request.
	asking bool
	// request holds those of its bytes that the library has not read yet.
	request []byte
	done    bool // nothing is read or written for the library any more
	// failure is the reply code that goes out in place of a general failure.
	failure byte
}

// serveSOCKS serves a client until its connection or association has ended.
func (s *Server) serveSOCKS(below *counted, conn net.Conn) {
	client := &socksClient{Conn: conn, server: s, below: below}
	log := s.config.Logger
	library := socks5.Server{
		Username: s.config.Username, Password: s.config.Password,
		Dialer: client.dial,
		Logf: func(format string, args ...any) {
			log.Debug("SOCKS5 client failed", "client", conn.RemoteAddr().String(), "err", fmt.Sprintf(format, args...))
		},
	}
	_ = library.Serve(&single{conn: client}) // returns as soon as it has taken the one connection
	<-below.gone
}

// Write passes the library's replies on and learns from them how far the
// negotiation is: method accepted, or password accepted.
func (c *socksClient) Write(p []byte) (int, error) {
	if c.done {
		return len(p), nil
	}
	negotiating := c.request == nil
	switch {
	case negotiating && string(p) == "\x05\x00", negotiating && string(p) == "\x01\x00":
		c.asking = true
	case !negotiating && c.failure != 0 && len(p) > 1 && p[1] == socksFailed:
		p = append([]byte{p[0], c.failure}, p[2:]...)
	}
	return c.Conn.Write(p)
}

// Read gives the library what the client sends, except for a request to
// associate, which is served here to its end.
func (c *socksClient) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if c.asking {
		c.asking = false
		if c.readRequest(); c.done {
			return 0, io.EOF
		}
	}
	if len(c.request) > 0 {
		n := copy(p, c.request)
		c.request = c.request[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// readRequest reads the request and serves it if the library cannot.
func (c *socksClient) readRequest() {
	header := make([]byte, 3) // version, command, reserved
	n, err := io.ReadFull(c.Conn, header)
	c.request = header[:n]
	if err != nil {
		return
	}
	address, err := readSOCKSAddress(c.Conn)
	c.request = append(c.request, address...)
	if errors.Is(err, errAddressType) {
		c.failure = socksAddressUnsupported
	}
	if err != nil {
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	if header[0] == socksVersion && header[1] == socksAssociate {
		c.associate()
		c.done = true
	}
}

// dial connects the client to its target. The library copies between the two
// with io.Copy, which leaves the copying to what dial returns.
func (c *socksClient) dial(_ context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(c.server.ctx, dialTimeout)
	defer cancel()
	far, err := c.server.config.Dialer.DialContext(ctx, network, address)
	if err != nil {
		c.failure = socksReply(err)
		return nil, err
	}
	return &socksTarget{Conn: far, client: c, relayed: make(chan struct{})}, nil
}

// socksTarget is the far end of a CONNECT.
type socksTarget struct {
	net.Conn
	client  *socksClient
	relayed chan struct{}
}

// LocalAddr is what the library answers with. It wants "address:port", which a
// connection that broke meanwhile may not have any more.
func (t *socksTarget) LocalAddr() net.Addr {
	if addr, ok := t.Conn.LocalAddr().(*net.TCPAddr); ok {
		return addr
	}
	return &net.TCPAddr{IP: net.IPv4zero}
}

// WriteTo relays both directions to their end: io.Copy from the target calls it.
func (t *socksTarget) WriteTo(io.Writer) (int64, error) {
	defer close(t.relayed)
	relay(t.client.server.ctx, t.client.Conn, t.Conn)
	return 0, nil
}

// WriteTo waits for the target's: io.Copy from the client calls it.
func (c *socksClient) WriteTo(w io.Writer) (int64, error) {
	target, ok := w.(*socksTarget)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	<-target.relayed
	return 0, nil
}

// socksReply says in SOCKS5's numbers why a dial failed.
func socksReply(err error) byte {
	switch {
	case errors.Is(err, ErrOutside):
		return socksNotAllowed
	case errors.Is(err, ErrNoName), errors.Is(err, ErrNoAnswer), errors.Is(err, ErrNoBackend), isTimeout(err):
		return socksHostUnreachable
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksRefused
	}
	return socksFailed
}

var errAddressType = errors.New("SOCKS5 address: unknown type")

// readSOCKSAddress reads ATYP, ADDR and PORT and returns these bytes; on an
// error those read so far.
func readSOCKSAddress(from io.Reader) ([]byte, error) {
	address := make([]byte, 1, 1+1+255+2)
	if _, err := io.ReadFull(from, address); err != nil {
		return nil, err
	}
	var rest int
	switch address[0] {
	case socksIPv4:
		rest = 4
	case socksIPv6:
		rest = 16
	case socksName:
		address = address[:2]
		if _, err := io.ReadFull(from, address[1:]); err != nil {
			return address[:1], err
		}
		rest = int(address[1])
	default:
		return address, errAddressType
	}
	have := len(address)
	n, err := io.ReadFull(from, address[have:have+rest+2])
	return address[:have+n], err
}

// socksHostPort is "host:port" of what readSOCKSAddress returned.
func socksHostPort(address []byte) string {
	end := len(address) - 2
	port := strconv.Itoa(int(binary.BigEndian.Uint16(address[end:])))
	if address[0] == socksName {
		return net.JoinHostPort(string(address[2:end]), port)
	}
	ip, _ := netip.AddrFromSlice(address[1:end])
	return net.JoinHostPort(ip.Unmap().String(), port)
}

// appendSOCKSReply appends a reply with the address bound.
func appendSOCKSReply(to []byte, code byte, bound netip.AddrPort) []byte {
	to = append(to, socksVersion, code, 0)
	if addr := bound.Addr().Unmap(); addr.Is6() {
		to = append(append(to, socksIPv6), addr.AsSlice()...)
	} else if addr.Is4() {
		to = append(append(to, socksIPv4), addr.AsSlice()...)
	} else {
		to = append(to, socksIPv4, 0, 0, 0, 0)
	}
	return binary.BigEndian.AppendUint16(to, bound.Port())
}
