package differential

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// maxTrain bounds the packets of a train.
const maxTrain = 44

// train is what a sender of a stream, or of equal datagrams, sends in one go,
// often with one packet among them that does not fit in. It fills in c.
func (g generator) train(c *testCase, source, destination netip.Addr) {
	if g.chance(15) {
		g.acknowledgments(c, source, destination)
		return
	}
	p := g.simple(source, destination, 0)
	p.TOS, p.DontFragment = uint8(g.Uint32()), g.chance(60)
	if p.Protocol == tunneltest.TCP && g.chance(50) {
		p.TCPOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	}
	size := g.trainSize(p)
	count := 2 + g.IntN(maxTrain-2)
	odd, ids, zeros := -1, pick(g, 0, 1, 1, 1, 2), g.chance(10) && !c.putOff
	if g.chance(45) {
		odd = g.IntN(count)
	}
	for i := range count {
		next := p
		if next.Payload = g.bytes(size); i == count-1 {
			next.Payload = next.Payload[:1+g.IntN(size)]
		}
		if i == count-1 && g.chance(50) {
			next.Flags |= tunneltest.PSH
		}
		b, isPartial := next.Bytes(), false
		switch {
		case i == odd:
			b, isPartial = g.deviate(&next, !c.putOff)
			c.wrong = tunneltest.Check(b) != nil
		case zeros:
			g.sumToZero(next, b)
		}
		c.sent, c.partial = append(c.sent, b), append(c.partial, isPartial)
		p.Sequence = next.Sequence + uint32(len(next.Payload))
		switch ids {
		case 1:
			p.ID++
		case 2:
			p.ID = uint16(g.Uint32())
		}
	}
}

// acknowledgments is a train of TCP packets without data that mostly acknowledge
// more and more, some of them odd. It fills in c.
func (g generator) acknowledgments(c *testCase, source, destination netip.Addr) {
	p := g.simple(source, destination, 0)
	p.Protocol, p.TOS, p.DontFragment, p.Acknowledgment = tunneltest.TCP, uint8(g.Uint32()), g.chance(60), g.Uint32()
	if g.chance(60) {
		p.TCPOptions = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	}
	count := 2 + g.IntN(maxTrain-2)
	c.partial = make([]bool, count)
	for range count {
		next, sound := p, true
		b := next.Bytes()
		if g.chance(15) {
			b, sound = g.oddAcknowledgment(&next, !c.putOff)
		}
		c.sent, c.wrong = append(c.sent, b), c.wrong || !sound
		p.ID++
		p.Acknowledgment += g.Uint32N(3000)
	}
}

// oddAcknowledgment makes an acknowledgement that says something else, too, says
// less, or is not sound.
func (g generator) oddAcknowledgment(p *tunneltest.Packet, checksums bool) (b []byte, sound bool) {
	kinds := 7
	if checksums {
		kinds = 8
	}
	switch g.IntN(kinds) {
	case 0:
		p.Flags |= pick[uint8](g, tunneltest.FIN, tunneltest.SYN, tunneltest.RST, tunneltest.PSH, tunneltest.URG, tunneltest.ECE, tunneltest.CWR)
	case 1:
		p.Sequence += pick[uint32](g, 1, 5000, ^uint32(0))
	case 2:
		p.Payload = []byte{1}
	case 3:
		p.TCPOptions = []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9}
	case 4:
		p.TOS ^= 1 << g.IntN(8)
	case 5:
		p.Acknowledgment -= g.Uint32N(5000)
	case 6:
		b = p.Bytes()
		setTTL(b, pick[uint8](g, 1, 63, 65))
		return b, true
	case 7:
		b = p.Bytes()
		checksumOf(*p, b)[0] ^= 1
		return b, false
	}
	return p.Bytes(), true
}

// trainSize is the payload of each packet of a train.
func (g generator) trainSize(p tunneltest.Packet) int {
	most := g.mtu - len(p.Bytes())
	return pick(g, most, most, 1, 1+g.IntN(64), 1+g.IntN(most), g.IntN(most)|1)
}

// deviate makes a packet of a train with something that ends the run, which may
// be its checksum.
func (g generator) deviate(p *tunneltest.Packet, checksums bool) (b []byte, partial bool) {
	kinds := 11
	if checksums {
		kinds = 13
	}
	switch g.IntN(kinds) {
	case 0:
		p.Flags |= pick[uint8](g, tunneltest.FIN, tunneltest.SYN, tunneltest.RST, tunneltest.URG, tunneltest.ECE, tunneltest.CWR)
	case 1:
		p.Flags |= tunneltest.PSH
	case 2:
		p.Sequence += pick[uint32](g, 1, 5000, 1<<31, ^uint32(0))
	case 3:
		p.Acknowledgment++
	case 4:
		p.Payload = nil
	case 5:
		p.Payload = p.Payload[:1+g.IntN(len(p.Payload))]
	case 6:
		p.Payload = append(p.Payload, g.bytes(min(1+g.IntN(9), g.mtu-len(p.Bytes())))...)
	case 7:
		p.TOS ^= 1 << g.IntN(8)
	case 8:
		p.DontFragment = !p.DontFragment
	case 9:
		p.TCPOptions = pick(g, nil, g.tcpOptions())
		p.Payload = p.Payload[:min(len(p.Payload), g.mtu-len(p.Bytes())+len(p.Payload))]
	case 10:
		b = p.Bytes()
		setTTL(b, pick[uint8](g, 1, 63, 65))
		return b, false
	case 11:
		b, _ = p.Partial()
		return b, true
	case 12:
		b = p.Bytes()
		return b, g.spoilChecksum(*p, b)
	}
	return p.Bytes(), false
}

// super is a packet for the sender's kernel to cut, as TCP makes them, and UDP
// where the sender asks for segments.
func (g generator) super(source, destination netip.Addr) ([]byte, tunnel.Offload) {
	protocol := pick[uint8](g, tunneltest.TCP, tunneltest.UDP)
	p := g.packet(source, destination, protocol, 0)
	for !cuttable(p) {
		p = g.packet(source, destination, protocol, 0)
	}
	size := g.trainSize(p)
	// Never as little as one packet holds: kernels do not cut that, nor let it pass.
	p.Payload = g.bytes(min(size*(1+g.IntN(maxTrain-1))+1+g.IntN(size), tunnel.MaxPacket-len(p.Bytes())))
	data, offload := p.Super(size)
	g.leaveRoute(p, data)
	offload.ECN = offload.ECN && protocol == tunneltest.TCP
	if cut, err := tunneltest.Finish(data, offload); err == nil && len(cut) > 0 && size > 1 && g.chance(20) {
		// The checksum of one of the packets becomes zero.
		i := g.IntN(len(cut))
		check, payload := checksumOf(p, cut[i]), data[len(data)-len(p.Payload)+i*size:]
		addTo(payload, check)
	}
	return data, offload
}

// unfinished is a packet whose checksum is left to the network card.
func (g generator) unfinished(source, destination netip.Addr) ([]byte, tunnel.Offload) {
	p := g.packet(source, destination, pick[uint8](g, tunneltest.TCP, tunneltest.UDP), g.size(g.mtu))
	data, offload := p.Partial()
	g.leaveRoute(p, data)
	return data, offload
}

// leaveRoute makes the pseudo-header sum of a packet on a source route that of
// another destination than the next one, which is in its IP header.
func (g generator) leaveRoute(p tunneltest.Packet, data []byte) {
	next, rest := p.FirstExtension, p.Extensions
	for len(rest) >= 8 {
		length := 8 + int(rest[1])*8
		if next == routing && rest[3] > 0 {
			check := checksumOf(p, data)
			sum := uint64(binary.BigEndian.Uint16(check)) + uint64(g.Uint32N(1<<16))
			binary.BigEndian.PutUint16(check, packet.Fold(sum))
			return
		}
		next, rest = rest[0], rest[min(length, len(rest)):]
	}
}

// cuttable reports whether a kernel has packets with p's extension headers cut
// late: not with those that differ from packet to packet, and a socket has no
// more than four.
func cuttable(p tunneltest.Packet) bool {
	next, rest := p.FirstExtension, p.Extensions
	for count := 0; len(rest) > 0; count++ {
		length := 8 + int(rest[1])*8
		if next == fragment || next == authHeader || length > len(rest) || count == 4 {
			return false
		}
		next, rest = rest[0], rest[length:]
	}
	return true
}
