//go:build !linux

package udp

import (
	"errors"
	"fmt"
	"net/netip"
)

// ProbeSocket would send datagrams that are fragmented nowhere. It is not done
// on this system, and OpenProbe never returns one.
type ProbeSocket struct{}

var errNoProbe = fmt.Errorf("datagrams that are not fragmented: %w on this system", errors.ErrUnsupported)

// OpenProbe fails.
func OpenProbe(local netip.Addr, _ bool) (*ProbeSocket, error) {
	return nil, fmt.Errorf("open probe socket on %v: %w", local, errNoProbe)
}

// Local is not an address.
func (s *ProbeSocket) Local() netip.Addr { return netip.Addr{} }

// Send fails.
func (s *ProbeSocket) Send(netip.AddrPort, []byte) error { return errNoProbe }

// SendRun fails.
func (s *ProbeSocket) SendRun(netip.AddrPort, []byte, int) error { return errNoProbe }

// PathMTU fails.
func (s *ProbeSocket) PathMTU(netip.Addr) (int, error) { return 0, errNoProbe }

// Close does nothing.
func (s *ProbeSocket) Close() error { return nil }
