package netstack

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/weft-net/weft/tunnel"
)

// GateConfig says what NewGate makes.
type GateConfig struct {
	Name string // of the Device, for logs
	MTU  int    // largest packet in bytes, IP header included
	// Address is one that nobody else has, of each family that is carried.
	Addresses []netip.Addr
	// TCP is called, in a goroutine of its own, for a connection that somebody
	// opens to an address. It accepts it by calling accept, whose result it then
	// owns; if it returns without, the connection is refused.
	TCP func(to netip.AddrPort, accept func() (net.Conn, error))
	// UDP is the same for the first datagram from one port to another, with which
	// the connection that it gets and owns begins.
	UDP    func(to netip.AddrPort, conn net.Conn)
	Logger *slog.Logger // nil is silent
}

// maxOpening bounds the connections that wait for accept.
const maxOpening = 1024

// Gate is a Stack that answers for every address there is, so that whatever is
// sent through it comes to be connections in this process. ICMP is not answered.
type Gate struct {
	*Stack
	group sync.WaitGroup
}

// NewGate makes a Gate that is up. Somebody has to Read what it sends.
func NewGate(config GateConfig) (*Gate, error) {
	if config.TCP == nil || config.UDP == nil {
		return nil, errors.New("make gate: TCP and UDP: want what takes the connections")
	}
	// Every address is the Stack's here, so that nothing would ever leave it.
	s, err := newStack(Config{Name: config.Name, MTU: config.MTU, Addresses: config.Addresses, Logger: config.Logger}, false)
	if err != nil {
		return nil, err
	}
	g := &Gate{Stack: s}
	if err := g.openUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("make gate: %w", err), s.Close())
	}
	streams := tcp.NewForwarder(s.stack, 0, maxOpening, func(request *tcp.ForwarderRequest) { g.stream(request, config.TCP) })
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, streams.HandlePacket)
	flows := udp.NewForwarder(s.stack, func(request *udp.ForwarderRequest) bool { return g.flow(request, config.UDP) })
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, flows.HandlePacket)
	return g, nil
}

// openUp lets the interface take, and answer from, every address.
func (g *Gate) openUp() error {
	if err := g.stack.SetPromiscuousMode(nicID, true); err != nil {
		return asError(err)
	}
	if err := g.stack.SetSpoofing(nicID, true); err != nil {
		return asError(err)
	}
	return nil
}

// stream runs in a goroutine of gVisor's.
func (g *Gate) stream(request *tcp.ForwarderRequest, take func(netip.AddrPort, func() (net.Conn, error))) {
	accepted := false
	take(wantedBy(request.ID()), func() (net.Conn, error) {
		accepted = true
		queue := new(waiter.Queue)
		ep, err := request.CreateEndpoint(queue)
		request.Complete(err != nil)
		if err != nil {
			return nil, asError(err)
		}
		return g.newEndpoint("tcp", ep, queue).stream(), nil
	})
	if !accepted {
		request.Complete(true)
	}
}

// flow runs where the datagram came in.
func (g *Gate) flow(request *udp.ForwarderRequest, take func(netip.AddrPort, net.Conn)) bool {
	queue := new(waiter.Queue)
	ep, err := request.CreateEndpoint(queue)
	if err != nil {
		return false
	}
	conn := datagrams{g.newEndpoint("udp", ep, queue)}
	to := wantedBy(request.ID())
	g.group.Go(func() { take(to, conn) })
	return true
}

// wantedBy is where a flow is going.
func wantedBy(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
}

func addrOf(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr.Unmap()
}

// Close ends all connections and returns when UDP's are given up by their owners.
func (g *Gate) Close() error {
	err := g.Stack.Close()
	g.group.Wait()
	return err
}

// Carry writes what is read of one Device to another, until either is closed.
func Carry(to, from tunnel.Device) {
	packets, arena := make([]tunnel.Incoming, 64), make([]byte, 4*tunnel.MinArena)
	out := make([]tunnel.Outgoing, len(packets))
	for {
		n, err := from.Read(packets, arena)
		if err != nil {
			return
		}
		for i, p := range packets[:n] {
			out[i] = tunnel.Outgoing{Offload: p.Offload, Parts: [][]byte{p.Data}}
		}
		for rest := out[:n]; len(rest) > 0; {
			done, err := to.Write(rest)
			if errors.Is(err, tunnel.ErrClosed) {
				return
			}
			if err == nil {
				break
			}
			rest = rest[done+1:] // what cannot be taken is lost, as on any link
		}
	}
}
