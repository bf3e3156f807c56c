package netstack

import (
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/vxlan"
)

const (
	// linkRoom is how many packets wait for Read before their senders do: a few
	// batches, as what waits here is delay.
	linkRoom = 64
	// linkReserve is room beyond that for what must not wait.
	linkReserve = 64
)

// link is gVisor's side of the Device: a queue of what gVisor sends. A sender
// waits while it is full, in place of losing what it sends: that costs a TCP
// connection a part of its window each time.
type link struct {
	mtu atomic.Uint32

	mu       sync.Mutex
	room     sync.Cond // for senders: there may be room
	filled   sync.Cond // for the reader: there may be packets
	packets  [linkRoom + linkReserve]*stack.PacketBuffer
	first    int
	count    int
	waiting  int // senders
	attached bool
	closed   bool
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(mtu int) *link {
	l := &link{}
	l.mtu.Store(uint32(mtu))
	l.room.L, l.filled.L = &l.mu, &l.mu
	return l
}

// WritePackets implements stack.LinkEndpoint. It waits for room, see patient.
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range packets.AsSlice() {
		if err := l.put(pkt); err != nil {
			return i, err
		}
	}
	return packets.Len(), nil
}

func (l *link) put(pkt *stack.PacketBuffer) tcpip.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count >= linkRoom && !l.closed {
		if patient(pkt) {
			l.wait()
		} else if l.count == len(l.packets) {
			return &tcpip.ErrNoBufferSpace{}
		}
	}
	if l.closed {
		return &tcpip.ErrClosedForSend{}
	}
	l.packets[(l.first+l.count)%len(l.packets)] = pkt.IncRef()
	l.count++
	if l.count == 1 {
		l.filled.Signal()
	}
	return nil
}

// wait waits until there is room or the link is shut. l.mu is held.
func (l *link) wait() {
	l.waiting++
	for l.count >= linkRoom && !l.closed {
		l.room.Wait()
	}
	l.waiting--
}

// patient reports whether the sender of pkt can wait for room. What gVisor sends
// on its own in answer to a packet cannot: it does so within Stack.Write, and
// to have that wait for Stack.Read would have an engine wait for itself. That
// is ICMP, and TCP resets to closed ports; there is no loss in losing one.
func patient(pkt *stack.PacketBuffer) bool {
	network, protocol := pkt.NetworkHeader().Slice(), tcpip.TransportProtocolNumber(0)
	switch {
	case pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber && len(network) >= header.IPv4MinimumSize:
		protocol = header.IPv4(network).TransportProtocol()
	case len(network) >= header.IPv6MinimumSize:
		ip := header.IPv6(network)
		protocol = ip.TransportProtocol()
		if uint8(protocol) == uint8(header.IPv6FragmentHeader) && len(ip.Payload()) > 0 {
			protocol = tcpip.TransportProtocolNumber(ip.Payload()[0])
		}
	}
	switch protocol {
	case header.TCPProtocolNumber:
		transport := pkt.TransportHeader().Slice()
		return len(transport) < header.TCPMinimumSize || !header.TCP(transport).Flags().Contains(header.TCPFlagRst)
	case header.UDPProtocolNumber:
		return true
	}
	return false
}

// take waits for packets, then returns as many as there are, up to the capacity
// of batch and to what an arena of so many bytes holds. It returns none when shut.
func (l *link) take(batch []*stack.PacketBuffer, bytes int) []*stack.PacketBuffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.count == 0 && !l.closed {
		l.filled.Wait()
	}
	if l.closed {
		return nil
	}
	batch = batch[:0]
	for l.count > 0 && len(batch) < cap(batch) {
		pkt := l.packets[l.first]
		if bytes -= arenaBytes(pkt.Size()); bytes < 0 {
			break
		}
		batch = append(batch, pkt)
		l.packets[l.first] = nil
		l.first = (l.first + 1) % len(l.packets)
		l.count--
	}
	for range min(l.waiting, linkRoom-l.count) {
		l.room.Signal()
	}
	return batch
}

// shut ends all waiting and drops what is queued.
func (l *link) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for ; l.count > 0; l.count-- {
		l.packets[l.first].DecRef()
		l.packets[l.first] = nil
		l.first = (l.first + 1) % len(l.packets)
	}
	l.room.Broadcast()
	l.filled.Broadcast()
}

// Sizes of super-packets.
const (
	// runBytes is the run of UDP datagrams that an engine sends at once, see
	// maxRun there.
	runBytes = 65000
	// gsoReserve is what gVisor takes off GSOMaxSize to get the payload.
	gsoReserve = header.TCPTotalHeaderMaximumSize + 1
	// tcpHeaders are all headers with the options that gVisor reckons with.
	tcpHeaders = header.IPv4MinimumSize + header.TCPHeaderMaximumSize
)

// GSOMaxSize implements stack.GSOEndpoint. A super-packet has the payload of as
// many full segments as one run of UDP datagrams holds, so that none is left
// to go alone. One less makes it hold for the shorter segments of IPv6 too.
func (l *link) GSOMaxSize() uint32 {
	mtu := int(l.MTU())
	segments := max(runBytes/(mtu+vxlan.Overhead)-1, 1)
	return uint32(segments*max(mtu-tcpHeaders, 1) + gsoReserve)
}

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Capabilities implements stack.LinkEndpoint. Checksums: TCP leaves them to the
// Device where there is GSO. To claim CapabilityTXChecksumOffload besides would
// have UDP go without: gVisor then puts nothing in the field, not even the
// pseudo-header's sum, and fragments what it has not summed.
// CapabilityRXChecksumOffload is for all packets or none; Write says it of each.
func (l *link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityNone }

// MTU implements stack.LinkEndpoint.
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements stack.LinkEndpoint.
func (l *link) SetMTU(mtu uint32) { l.mtu.Store(min(mtu, tunnel.MaxPacket)) }

// Attach implements stack.LinkEndpoint. Packets come in by Stack.Write, not by
// the dispatcher.
func (l *link) Attach(dispatcher stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.attached = dispatcher != nil
}

// IsAttached implements stack.LinkEndpoint.
func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.attached
}

// The rest of stack.LinkEndpoint: there is no link layer.

func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
