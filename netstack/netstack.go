// Package netstack is a tunnel.Device made of gVisor: a whole TCP/IP host in
// this process, for machines with neither rights nor a TUN device. Programs
// dial and listen on it as they would on package net; an engine carries its
// packets. It alone imports gVisor. It must never import control, call the
// operating system, or forward a packet that is not its own.
package netstack

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/weft-net/weft/tunnel"
)

// The smallest MTUs: what every IPv4 link must carry (RFC 791), and every IPv6
// link (RFC 8200, section 5).
const (
	minMTU4 = 68
	minMTU6 = 1280
)

// Config says what New makes.
type Config struct {
	Name string // of the Device, for logs and status
	MTU  int    // largest inner packet in bytes, IP header included
	// Addresses are what the Stack answers to, and nothing else: one or more of
	// either family or both. The first of a family is the source of what is
	// dialled. A subnet's network address is as good as any other.
	Addresses []netip.Addr
	Logger    *slog.Logger // nil is silent
}

// Stack is a TCP/IP host in this process. All methods may be called
// concurrently, Read and Write each by one goroutine at a time.
type Stack struct {
	name   string
	logger *slog.Logger
	stack  *stack.Stack
	link   *link
	// addresses are all there are, source the first of each family, by whether it
	// is IPv4.
	addresses []netip.Addr
	source    map[bool]netip.Addr
	// input4 and input6 are where packets of each family enter gVisor.
	input4, input6 stack.NetworkEndpoint

	taken []*stack.PacketBuffer    // Read's own
	aside chan *stack.PacketBuffer // from Write to deliverAside

	closing atomic.Bool
	closed  chan struct{} // everything has ended
	stop    chan struct{} // deliverAside is to end
	aided   sync.WaitGroup
}

var _ tunnel.Device = (*Stack)(nil)

// nicID is that of the only interface.
const nicID tcpip.NICID = 1

// New makes a Stack that is up. Somebody has to Read what it sends.
func New(config Config) (*Stack, error) {
	// A program may dial its own host.
	const ownHost = true
	return newStack(config, ownHost)
}

// newStack makes a Stack. With handleLocal what is sent to an address of the
// Stack does not leave it.
func newStack(config Config, handleLocal bool) (*Stack, error) {
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("make netstack: %w", err)
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	log.SetTarget(logTo{config.Logger})
	s := &Stack{
		name: config.Name, logger: config.Logger, link: newLink(config.MTU),
		stack: stack.New(stack.Options{
			NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{
				tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
			},
			HandleLocal: handleLocal,
		}),
		addresses: slices.Clone(config.Addresses), source: map[bool]netip.Addr{},
		aside:  make(chan *stack.PacketBuffer, maxAside),
		closed: make(chan struct{}),
		stop:   make(chan struct{}),
	}
	if err := s.configure(config); err != nil {
		s.shut()
		return nil, fmt.Errorf("make netstack: %w", err)
	}
	s.aided.Go(s.deliverAside)
	return s, nil
}

func (c Config) check() error {
	if c.Name == "" {
		return errors.New("Name is empty: want what logs call the device, as in weft0")
	}
	if len(c.Addresses) == 0 {
		return errors.New("Addresses is empty: want at least one of the host's inner addresses")
	}
	seen := map[netip.Addr]bool{}
	for _, addr := range c.Addresses {
		switch {
		case !addr.IsValid(), addr.Is4In6(), addr.Zone() != "", addr.IsUnspecified(), addr.IsMulticast(), addr.IsLoopback():
			return fmt.Errorf("Addresses has %v: want unicast addresses without a zone, IPv4 not written as IPv6", addr)
		case seen[addr]:
			return fmt.Errorf("Addresses has %v twice", addr)
		}
		seen[addr] = true
	}
	return checkMTU(c.MTU, c.has(false))
}

// has reports whether there is an address of a family.
func (c Config) has(is4 bool) bool {
	for _, addr := range c.Addresses {
		if addr.Is4() == is4 {
			return true
		}
	}
	return false
}

func checkMTU(mtu int, has6 bool) error {
	switch {
	case mtu < minMTU4 || mtu > tunnel.MaxPacket:
		return fmt.Errorf("MTU is %d: want %d to %d", mtu, minMTU4, tunnel.MaxPacket)
	case has6 && mtu < minMTU6:
		return fmt.Errorf("MTU is %d: IPv6 wants at least %d; raise it or leave IPv6 addresses out", mtu, minMTU6)
	}
	return nil
}

// configure brings the interface up with its addresses and routes.
func (s *Stack) configure(config Config) error {
	if err := s.tune(); err != nil {
		return err
	}
	if err := s.stack.CreateNICWithOptions(nicID, s.link, stack.NICOptions{Name: config.Name}); err != nil {
		return fmt.Errorf("make interface: %w", asError(err))
	}
	var routes []tcpip.Route
	for _, addr := range config.Addresses {
		behaviour := stack.NeverPrimaryEndpoint
		protocol, everywhere := protocolOf(addr.Is4())
		if _, ok := s.source[addr.Is4()]; !ok {
			behaviour = stack.FirstPrimaryEndpoint
			s.source[addr.Is4()] = addr
			routes = append(routes, tcpip.Route{Destination: everywhere, NIC: nicID})
		}
		// A full-length prefix: with a shorter one gVisor would take the subnet's
		// first address for a broadcast address.
		full := tcpip.ProtocolAddress{Protocol: protocol, AddressWithPrefix: tcpip.AddrFromSlice(addr.AsSlice()).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nicID, full, stack.AddressProperties{PEB: behaviour}); err != nil {
			return fmt.Errorf("add address %v: %w", addr, asError(err))
		}
	}
	s.stack.SetRouteTable(routes)
	for _, input := range []struct {
		is4 bool
		to  *stack.NetworkEndpoint
	}{{true, &s.input4}, {false, &s.input6}} {
		protocol, _ := protocolOf(input.is4)
		endpoint, err := s.stack.GetNetworkEndpoint(nicID, protocol)
		if err != nil {
			return fmt.Errorf("find input: %w", asError(err))
		}
		*input.to = endpoint
	}
	return nil
}

// protocolOf is gVisor's number for a family, and all of that family.
func protocolOf(is4 bool) (tcpip.NetworkProtocolNumber, tcpip.Subnet) {
	if is4 {
		return header.IPv4ProtocolNumber, header.IPv4EmptySubnet
	}
	return header.IPv6ProtocolNumber, header.IPv6EmptySubnet
}

// Name implements tunnel.Device.
func (s *Stack) Name() string { return s.name }

// MTU implements tunnel.Device.
func (s *Stack) MTU() (int, error) { return int(s.link.MTU()), nil }

// SetMTU changes the MTU, in bytes. Connections that are open keep their segment
// size until they are told of a smaller one by ICMP, as an engine does.
func (s *Stack) SetMTU(mtu int) error {
	if err := checkMTU(mtu, s.source[false].IsValid()); err != nil {
		return fmt.Errorf("set MTU of %s: %w", s.name, err)
	}
	s.link.SetMTU(uint32(mtu))
	return nil
}

// Offloads implements tunnel.Device.
func (s *Stack) Offloads() tunnel.Offloads {
	return tunnel.Offloads{
		Checksum: true, TCP: true,
		Why: []string{"UDP segmentation: gVisor takes datagrams one by one"},
	}
}

// Close ends every Read, Write, dial, connection and listener, waits for all
// goroutines of the Stack, and may be called again.
func (s *Stack) Close() error {
	if s.closing.Swap(true) {
		<-s.closed
		return nil
	}
	s.shut()
	return nil
}

// shut closes the link first: nothing that waits for room in it may be left
// when gVisor is asked to stop.
func (s *Stack) shut() {
	s.link.shut()
	close(s.stop)
	s.aided.Wait()
	s.stack.Close()
	s.stack.Wait()
	close(s.closed)
}
