package member

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/netstack/local"
)

// ErrNoStack means that this host is no member yet, or not at the moment.
var ErrNoStack = errors.New("this host is not a member of the overlay yet: 'weft status' says what it waits for")

// current is the stack of the moment, or nil.
func (m *Member) current() *netstack.Stack {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stack
}

// DialContext implements proxy.Network.
func (m *Member) DialContext(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	stack := m.current()
	if stack == nil {
		return nil, ErrNoStack
	}
	return stack.DialContext(ctx, network, to)
}

// ListenTCP implements proxy.Network.
func (m *Member) ListenTCP(at netip.AddrPort) (net.Listener, error) {
	stack := m.current()
	if stack == nil {
		return nil, ErrNoStack
	}
	return stack.ListenTCP(at)
}

// ListenUDP implements proxy.Network.
func (m *Member) ListenUDP(at netip.AddrPort) (net.PacketConn, error) {
	stack := m.current()
	if stack == nil {
		return nil, ErrNoStack
	}
	return stack.ListenUDP(at)
}

// reach is what commands reach through the agent: by name, and within the rules.
func (m *Member) reach() reach { return reach{m} }

// reach implements local.Overlay.
type reach struct{ member *Member }

func (r reach) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return r.member.dialer.DialContext(ctx, network, address)
}

func (r reach) LookupNetIP(ctx context.Context, host string) ([]netip.Addr, error) {
	return r.member.dialer.LookupNetIP(ctx, host)
}

func (r reach) Ping(ctx context.Context, to netip.Addr, size int) (time.Duration, error) {
	stack := r.member.current()
	if stack == nil {
		return 0, ErrNoStack
	}
	return stack.Ping(ctx, to, size)
}

func (r reach) Way() local.Way {
	m := r.member
	m.mu.Lock()
	defer m.mu.Unlock()
	return local.Way{Proxy: m.config.Proxy, DNS: m.dns, Search: searchOf(m.config.Domain)}
}
