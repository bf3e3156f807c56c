package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Forward is a port of this host that leads into the overlay.
type Forward struct {
	Protocol string // TCP or UDP
	// Local is where to listen. The zero Addr is this host's loopback, of both
	// families where there are; port 0 any that is free.
	Local  netip.AddrPort
	Remote string // "host:port", dialled through the Dialer for each connection
}

// Expose is a port of this host's overlay addresses that leads to this host.
type Expose struct {
	Protocol string // TCP or UDP
	Port     uint16
	Target   string // "host:port", dialled by the operating system; empty: 127.0.0.1 and Port
}

// ParseForward parses "[udp:]LOCAL=HOST:PORT", where LOCAL is PORT, which is on
// loopback alone, or ADDRESS:PORT.
func ParseForward(s string) (Forward, error) {
	f, err := parseForward(s)
	if err != nil {
		return Forward{}, fmt.Errorf("forward %.300q: %w", s, err)
	}
	return f, nil
}

func parseForward(s string) (f Forward, err error) {
	f.Protocol, s = cutProtocol(s)
	local, remote, ok := strings.Cut(s, "=")
	if !ok {
		return Forward{}, errors.New("want [udp:]LOCAL=HOST:PORT, as in 8080=web.default:80")
	}
	f.Local, err = parseLocal(local)
	if err != nil {
		return Forward{}, err
	}
	f.Remote, err = canonicalHostPort(remote)
	return f, err
}

// parseLocal parses PORT and ADDRESS:PORT.
func parseLocal(s string) (netip.AddrPort, error) {
	if isDigits(s) {
		port, err := parsePort(s)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("LOCAL %q: want a port from 0 (any) to 65535", s)
		}
		return netip.AddrPortFrom(netip.Addr{}, port), nil
	}
	local, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("LOCAL %q: want PORT or ADDRESS:PORT, as in 8080, 0.0.0.0:8080 or [::1]:8080", s)
	}
	return netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), nil
}

// String is what ParseForward parses.
func (f Forward) String() string {
	local := strconv.Itoa(int(f.Local.Port()))
	if f.Local.Addr().IsValid() {
		local = f.Local.String()
	}
	return prefixProtocol(f.Protocol) + local + "=" + f.Remote
}

// check says which field is wrong.
func (f Forward) check() error {
	if err := checkProtocol(f.Protocol); err != nil {
		return err
	}
	if _, _, err := splitHostPort(f.Remote); err != nil {
		return fmt.Errorf("Remote: %w", err)
	}
	return nil
}

// ParseExpose parses "[udp:]PORT[=HOST:PORT]"; without a target it is the same
// port of 127.0.0.1.
func ParseExpose(s string) (Expose, error) {
	e, err := parseExpose(s)
	if err != nil {
		return Expose{}, fmt.Errorf("expose %.300q: %w", s, err)
	}
	return e, nil
}

func parseExpose(s string) (e Expose, err error) {
	e.Protocol, s = cutProtocol(s)
	port, target, targeted := strings.Cut(s, "=")
	e.Port, err = parsePort(port)
	if err != nil || e.Port == 0 || !isDigits(port) {
		return Expose{}, fmt.Errorf("PORT %q: want a number from 1 to 65535, as in 8080 or 80=127.0.0.1:8080", port)
	}
	if !targeted {
		return e.withDefaults(), nil
	}
	e.Target, err = canonicalHostPort(target)
	return e, err
}

// String is what ParseExpose parses.
func (e Expose) String() string {
	e = e.withDefaults()
	return prefixProtocol(e.Protocol) + strconv.Itoa(int(e.Port)) + "=" + e.Target
}

func (e Expose) withDefaults() Expose {
	if e.Target == "" {
		e.Target = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(e.Port)))
	}
	return e
}

// check says which field is wrong.
func (e Expose) check() error {
	if err := checkProtocol(e.Protocol); err != nil {
		return err
	}
	if e.Port == 0 {
		return errors.New("Port is 0: want 1 to 65535")
	}
	if _, _, err := splitHostPort(e.Target); err != nil {
		return fmt.Errorf("Target: %w", err)
	}
	return nil
}

func checkProtocol(protocol string) error {
	if protocol != TCP && protocol != UDP {
		return fmt.Errorf("Protocol %q: want tcp or udp", protocol)
	}
	return nil
}

// cutProtocol takes "tcp:" or "udp:" off; tcp is the default.
func cutProtocol(s string) (protocol, rest string) {
	for _, protocol := range []string{TCP, UDP} {
		if rest, ok := strings.CutPrefix(s, protocol+":"); ok {
			return protocol, rest
		}
	}
	return TCP, s
}

func prefixProtocol(protocol string) string {
	if protocol == TCP {
		return ""
	}
	return protocol + ":"
}

// canonicalHostPort checks "host:port" and writes it in one way.
func canonicalHostPort(s string) (string, error) {
	host, port, err := splitHostPort(s)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
