package netstack

import (
	"errors"
	"fmt"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// maxAside bounds the packets that wait for deliverAside. Beyond it they are
// dropped: ICMP may be lost at any time, and so may fragments.
const maxAside = 512

// Errors of Read and Write. An engine meets them packet by packet, so they are
// made once.
var (
	errArena    = fmt.Errorf("arena is smaller than %d bytes, or there is no room for a packet", tunnel.MinArena)
	errSize     = fmt.Errorf("packet is empty or longer than %d bytes", tunnel.MaxPacket)
	errSegments = errors.New("super-packet is not whole TCP of its family, with a partial checksum and a segment size")
	errHeader   = errors.New("IPv4 header checksum is wrong")
)

// arenaBytes is what a packet takes in an arena: the headroom, and what keeps
// the next one aligned.
func arenaBytes(size int) int {
	return tunnel.Headroom + (size+tunnel.Headroom-1)&^(tunnel.Headroom-1)
}

// Read implements tunnel.Device. It copies each packet once, into the arena.
func (s *Stack) Read(packets []tunnel.Incoming, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena || len(packets) == 0 {
		return 0, fmt.Errorf("read %s: %w", s.name, errArena)
	}
	if cap(s.taken) < len(packets) {
		s.taken = make([]*stack.PacketBuffer, len(packets))
	}
	s.taken = s.link.take(s.taken[:0:len(packets)], len(arena))
	if len(s.taken) == 0 {
		return 0, fmt.Errorf("read %s: %w", s.name, tunnel.ErrClosed)
	}
	at := 0
	for i, pkt := range s.taken {
		start := at + tunnel.Headroom
		size := flatten(arena[start:], pkt)
		packets[i] = tunnel.Incoming{Offload: offloadOf(pkt), Data: arena[start : start+size : start+size], Offset: start}
		at += arenaBytes(size)
		pkt.DecRef()
		s.taken[i] = nil
	}
	return len(s.taken), nil
}

// flatten copies a packet to the start of b, which is long enough.
func flatten(b []byte, pkt *stack.PacketBuffer) (size int) {
	views, skip := pkt.AsViewList()
	for view := views.Front(); view != nil; view = view.Next() {
		piece := view.AsSlice()
		if skip >= len(piece) {
			skip -= len(piece)
			continue
		}
		size += copy(b[size:], piece[skip:])
		skip = 0
	}
	return size
}

// offloadOf is what gVisor has left to do of a packet it sends: of TCP with an
// open connection the checksum, which then is the folded sum of the
// pseudo-header, and the cutting into segments.
func offloadOf(pkt *stack.PacketBuffer) tunnel.Offload {
	gso := &pkt.GSOOptions
	if !gso.NeedsCsum {
		return tunnel.Offload{}
	}
	network, transport := len(pkt.NetworkHeader().Slice()), len(pkt.TransportHeader().Slice())
	offload := tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(network), ChecksumOffset: gso.CsumOffset}
	if pkt.Size()-network-transport > int(gso.MSS) {
		offload.SegmentSize = gso.MSS
		if offload.GSO = tunnel.GSOTCP4; gso.Type == stack.GSOTCPv6 {
			offload.GSO = tunnel.GSOTCP6
		}
	}
	return offload
}

// Write implements tunnel.Device. It copies each packet once, never waits for
// Read, and gVisor has done with most packets only after it returns.
func (s *Stack) Write(packets []tunnel.Outgoing) (int, error) {
	return tunnel.WriteEach(packets, func(out *tunnel.Outgoing) error {
		if err := s.write(out); err != nil {
			return fmt.Errorf("write %s: %w", s.name, err)
		}
		return nil
	})
}

func (s *Stack) write(out *tunnel.Outgoing) error {
	size := 0
	for _, part := range out.Parts {
		size += len(part)
	}
	switch {
	case s.closing.Load():
		return tunnel.ErrClosed
	case out.GSO == tunnel.GSOUDP:
		return tunnel.ErrOffload
	case size == 0 || size > tunnel.MaxPacket:
		return errSize
	}
	view := buffer.NewView(size)
	for _, part := range out.Parts {
		_, _ = view.Write(part) // it is large enough
	}
	v, err := packet.Parse(view.AsSlice())
	if err == nil {
		var sound bool
		if sound, err = finish(v, &out.Offload); err == nil {
			s.deliver(v, view, sound)
			return nil
		}
	}
	view.Release()
	return err
}

// finish deals with what is put off of v. Sound means that the transport
// checksum need not be looked at, as somebody has vouched for the bytes: what
// is partial was never summed, and what was joined has been looked at. That
// must not be said of fragments, which are summed when they are whole.
func finish(v packet.View, offload *tunnel.Offload) (sound bool, err error) {
	offset, ok := v.ChecksumOffset()
	if offload.GSO != tunnel.GSONone {
		family := tunnel.GSOTCP6
		if v.Is4() {
			family = tunnel.GSOTCP4
		}
		ok = ok && v.Protocol == packet.TCP && offload.GSO == family && offload.NeedsChecksum && offload.SegmentSize > 0
		if !ok {
			return false, errSegments
		}
	}
	if !offload.NeedsChecksum {
		return false, nil
	}
	start := int(offload.ChecksumStart)
	if !ok || start != v.Transport || int(offload.ChecksumOffset) != offset {
		return false, packet.Finish(v.Data, start, int(offload.ChecksumOffset))
	}
	// gVisor takes "sound" for the IPv4 header as well.
	if v.Is4() && !header.IPv4(v.Data).IsChecksumValid() {
		return false, errHeader
	}
	return true, nil
}

// deliver hands view, which v is about, over to gVisor. Whole TCP and UDP
// packets only ever take locks that nobody keeps while waiting for room in the
// link. An ICMP error takes that of the connection it concerns, which a sender
// that waits does keep; and it may come as fragments, of any kind in IPv6.
func (s *Stack) deliver(v packet.View, view *buffer.View, sound bool) {
	protocol, _ := protocolOf(v.Is4())
	headers, whole := v.PayloadOffset()
	var pkt *stack.PacketBuffer
	if whole && view.Size() > worthSplitting {
		pkt = split(view, headers)
	} else {
		pkt = stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(view)})
	}
	pkt.NetworkProtocolNumber, pkt.RXChecksumValidated = protocol, sound
	if whole {
		s.input(pkt)
		return
	}
	select {
	case s.aside <- pkt:
	default:
		pkt.DecRef()
	}
}

// worthSplitting is the size of a packet, in bytes, beyond which its headers
// get memory of their own.
const worthSplitting = 512

// split makes a packet with its headers in memory of their own: gVisor keeps a
// reference to those as it reads them, and then copies all that lies in the
// same piece of memory.
func split(view *buffer.View, headers int) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		Payload: buffer.MakeWithView(buffer.NewViewWithData(view.AsSlice()[:headers])),
	})
	view.TrimFront(headers)
	payload := buffer.MakeWithView(view)
	pkt.Data().MergeBuffer(&payload)
	return pkt
}

// deliverAside delivers what Write must not, until the Stack is closed.
func (s *Stack) deliverAside() {
	for {
		select {
		case <-s.stop:
			return
		case pkt := <-s.aside:
			s.input(pkt)
		}
	}
}

// input is where a packet enters gVisor, which drops what is not for us.
func (s *Stack) input(pkt *stack.PacketBuffer) {
	defer pkt.DecRef()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		s.input4.HandlePacket(pkt)
	} else {
		s.input6.HandlePacket(pkt)
	}
}
