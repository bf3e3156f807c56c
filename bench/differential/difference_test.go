package differential

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// direction is the way that packets take through a tunnel.
type direction string

const (
	transmit direction = "transmit"
	receive  direction = "receive"
)

// difference is one way in which the engine differs from kernel VXLAN.
type difference struct {
	where  direction
	name   string
	reason string
	// expect turns what the kernel gave for a case into what the engine has to
	// give, where it differs in this way. It changes neither slice.
	expect func(c *testCase, kernel, engine []output) []output
}

// differences is every way in which the engine may differ, and has to: what it
// gives is what the kernel gives, passed through all of these in turn.
var differences = []difference{
	{
		receive, "reserved VXLAN bits",
		"Linux refuses a header with bits for which the device has no extension. RFC 7348, section 5, says that they are " +
			"ignored; a peer that has an extension is not to be cut off by it.",
		expectPlain(func(c *testCase) bool { return c.reserved }),
	},
	{
		receive, "frame from the own MAC",
		"Linux takes it for its own frame, come back by multicast. The engine has no multicast, and lets a packet in by its " +
			"outer and inner source, not by a MAC that anybody can write.",
		expectPlain(func(c *testCase) bool { return c.loop }),
	},
	{
		receive, "no UDP checksum over IPv6",
		"Linux drops it unless the device says udp6zerocsumrx. The engine lets it in (RFC 6935), as it does over IPv4: " +
			"tunnels of some vendors send no other, and the inner packet has a checksum of its own.",
		expectPlain(func(c *testCase) bool { return c.unsummed }),
	},
	{
		receive, "forged inner source",
		"Linux lets any outer source bring any inner source. The engine lets a packet in only if its inner source belongs to " +
			"the peer that sent it; kernel hosts have an nftables table for that.",
		dropForged,
	},
	{
		receive, "destination outside the own subnet",
		"Linux routes whatever comes out of the tunnel. Peers are told what is here, and the engine does not make the host " +
			"a router for anything else.",
		expectNothing(func(c *testCase) bool { return c.stray }),
	},
	{
		receive, "VLAN tag",
		"Linux takes a tag of VLAN 0 off. No host of the network sends tagged frames, and behind a tag the inner source is " +
			"not where it is looked for.",
		expectNothing(func(c *testCase) bool { return len(c.tags) > 0 }),
	},
	{
		receive, "IPv6 length of zero",
		"It announces a jumbogram (RFC 2675), and Linux forwards the packet with all that follows, though the option that " +
			"tells the length is missing. The engine takes the length at its word, and the host then drops a packet without content.",
		expectNothing(func(c *testCase) bool { return isJumbo(c.sent[0], c.is4) }),
	},
	{
		receive, "TCP packet larger than the device's MTU",
		"Kernel peers on the same machine send a super-packet in one frame. The engine cuts it to the MTU of its device; the " +
			"stream is the same.",
		cutLarge,
	},
	{
		receive, "order of a packet with a wrong checksum",
		"Linux lets it overtake the packets of its flow that it is joining. The engine keeps the order.",
		orderAsSent,
	},
	{
		receive, "superseded acknowledgements",
		"Linux delivers every acknowledgement by itself. Of those that wait one behind the other the engine delivers the last (RFC 3449, " +
			"section 5.2.1), as Linux itself does with those that wait for a busy socket.",
		leaveOut(0),
	},
	{
		receive, "unfinished checksum",
		"Kernel peers on the same machine send checksums that were left to a network card which never comes. The engine knows " +
			"them by the sum of the pseudo-header and has them finished; a kernel VXLAN device knows nothing of it once they have been on a wire.",
		finishPartial,
	},
	{
		receive, "MSS of a SYN",
		"Linux leaves it to the sender's path MTU discovery. The engine lowers it to what fits the tunnel, both ways.",
		clampMSS(0),
	},
	{
		receive, "form of a zero checksum",
		"A TCP checksum of zero can be written as 0 or as 0xffff (RFC 1624, section 3). Packets that were joined get the one " +
			"that Linux writes, others keep theirs; Linux and the engine do not join the same ones.",
		takeZeros(0),
	},
	{
		receive, "identification of joined packets",
		"With DF it means nothing (RFC 6864, section 4.1), and the engine joins packets whatever it is: cut again, they count " +
			"up. Linux joins packets that all have the same one, also without DF, and counts up too; then the engine leaves them as they were.",
		takeIDs,
	},
	{
		transmit, "superseded acknowledgements",
		"As on the way in.",
		leaveOut(overhead),
	},
	{
		transmit, "outer ECN of a packet with CE",
		"Linux sends it on as ECT(0) (RFC 3168, section 9.1.1), the engine as CE (RFC 6040, section 4.1). The receiver gives " +
			"the packet CE either way.",
		copyCE,
	},
	{
		transmit, "MSS of a SYN",
		"As on the way in.",
		clampMSS(overhead),
	},
	{
		transmit, "form of a zero checksum",
		"As before: Linux writes 0 where it cuts a super-packet, and 0xffff where it finishes a single packet; the engine always 0xffff.",
		takeZeros(overhead),
	},
	{
		transmit, "checksum put off behind odd headers",
		"Linux puts a checksum off wherever it is. The engine finishes it where it does not see the transport header of a whole " +
			"packet (fragment and source route headers), or would not know it for unfinished on the way in.",
		finishHidden,
	},
	{
		transmit, "not a packet that a router sends",
		"A VXLAN device is a switch and carries any frame that a program writes to it. A TUN is a router's link: what is no " +
			"IP packet, or is shorter than it says, cannot be from one.",
		expectNothing(func(c *testCase) bool { return c.direct && !sound(c.sent[0], c.is4) }),
	},
	{
		transmit, "bytes after the end of the packet",
		"A switch carries them too. A router cuts them off; Linux does not after an IPv6 length of zero.",
		cutTrailer,
	},
}

// expectNothing is for cases that the engine lets nothing out of.
func expectNothing(applies func(*testCase) bool) func(c *testCase, kernel, _ []output) []output {
	return func(c *testCase, kernel, _ []output) []output {
		if applies(c) {
			return nil
		}
		return kernel
	}
}

// expectPlain is for cases in which the engine lets more through.
func expectPlain(applies func(*testCase) bool) func(c *testCase, kernel, _ []output) []output {
	return func(c *testCase, kernel, _ []output) []output {
		if applies(c) {
			return outputs(c.plain)
		}
		return kernel
	}
}

// outputs are packets behind the tunnel.
func outputs(packets [][]byte) (outputs []output) {
	for _, b := range packets {
		outputs = append(outputs, output{packet: b})
	}
	return outputs
}

// dropForged leaves what is from the peer.
func dropForged(c *testCase, kernel, _ []output) (genuine []output) {
	switch {
	case c.forged:
		return nil
	case c.genuine == 0:
		return kernel
	}
	left := slices.Clone(c.sent[:c.genuine])
	for _, o := range kernel {
		i := slices.IndexFunc(left, func(b []byte) bool { return samePacket(b, o.packet) })
		if i >= 0 {
			genuine, left = append(genuine, o), slices.Delete(left, i, i+1)
		}
	}
	return genuine
}

// leaveOut leaves out what the next packet supersedes and the engine has left
// out. Outputs begin with so many bytes of other headers.
func leaveOut(skip int) func(_ *testCase, kernel, engine []output) []output {
	return func(_ *testCase, kernel, engine []output) (left []output) {
		for i, o := range kernel {
			b := o.packet[skip:]
			switch {
			case len(engine) > 0 && samePacket(engine[0].packet[skip:], b):
				engine = engine[1:]
			case i+1 < len(kernel) && supersedes(kernel[i+1].packet[skip:], b):
				continue
			}
			left = append(left, o)
		}
		return left
	}
}

// supersedes reports whether next is a whole acknowledgement and nothing else, and
// b the same but for a lower number.
func supersedes(next, b []byte) bool {
	v, err := packet.Parse(next)
	headers, ok := v.PayloadOffset()
	if err != nil || !ok || len(next) != headers || len(b) != headers || v.Protocol != packet.TCP || !v.Valid() {
		return false
	}
	options := next[v.Transport+20:]
	if next[v.Transport+13] != tunneltest.ACK || len(options) > 0 && !bytes.HasPrefix(options, []byte{1, 1, 8, 10}) {
		return false
	}
	number := func(b []byte) uint32 { return binary.BigEndian.Uint32(b[v.Transport+8:]) }
	rest := func(b []byte) []byte {
		b = bytes.Clone(b)
		clear(b[v.Transport+8 : v.Transport+12])
		clear(b[v.Transport+16 : v.Transport+18])
		if v.Is4() {
			clear(b[4:6])
			clear(b[10:12])
		}
		return b
	}
	return int32(number(next)-number(b)) > 0 && bytes.Equal(rest(next), rest(b))
}

// isJumbo reports whether an IPv6 packet tells no length and begins with the
// header that could hold it.
func isJumbo(b []byte, is4 bool) bool {
	return !is4 && len(b) >= 40 && b[0]>>4 == 6 && b[4] == 0 && b[5] == 0 && b[6] == hopByHop
}

// finishPartial finishes the checksums that c marks.
func finishPartial(c *testCase, kernel, _ []output) []output {
	if !slices.Contains(c.partial, true) {
		return kernel
	}
	kernel = slices.Clone(kernel)
	for i, o := range kernel {
		sent := 0
		if len(c.sent) > 1 { // a single one may have options, which routers change
			sent = slices.IndexFunc(c.sent, func(b []byte) bool { return samePacket(b, o.packet) })
		}
		v, err := packet.Parse(o.packet)
		offset, ok := v.ChecksumOffset()
		if sent < 0 || !c.partial[sent] || err != nil || !ok {
			continue
		}
		offload := tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(v.Transport), ChecksumOffset: uint16(offset)}
		if finished, err := tunneltest.Finish(o.packet, offload); err == nil {
			kernel[i].packet = finished[0]
		}
	}
	return kernel
}

// samePacket compares packets without options but for what routers and joining
// change: the TTL, ECN, the IPv4 identification and checksum, and the form of a
// TCP checksum of zero.
func samePacket(a, b []byte) bool { return bytes.Equal(essence(a), essence(b)) }

func essence(b []byte) []byte {
	b = bytes.Clone(b)
	v, err := packet.Parse(b)
	if err != nil {
		return b
	}
	setTTL(b, 0)
	v.SetECN(0)
	if v.Is4() {
		clear(b[4:6])
		clear(b[10:12])
	}
	if offset, ok := v.ChecksumOffset(); ok && v.Protocol == packet.TCP {
		if check := b[v.Transport+offset:][:2]; isZero(check) {
			clear(check)
		}
	}
	return b
}

// cutLarge is the large packet of c as the engine cuts it.
func cutLarge(c *testCase, kernel, _ []output) []output {
	if c.large == nil || len(kernel) == 0 {
		return kernel
	}
	data, offload := c.large.Super(c.largeSize)
	segments, err := tunneltest.Finish(data, offload)
	if err != nil {
		return kernel
	}
	for i := range segments {
		segments[i] = routed(segments[i])
	}
	return outputs(segments)
}

// orderAsSent is the packets of a case with a wrong checksum in their order.
func orderAsSent(c *testCase, kernel, _ []output) []output {
	if !c.wrong {
		return kernel
	}
	left, ordered := slices.Clone(kernel), []output(nil)
	for _, b := range c.sent {
		i := slices.IndexFunc(left, func(o output) bool { return samePacket(b, o.packet) })
		if i >= 0 {
			ordered, left = append(ordered, left[i]), slices.Delete(left, i, i+1)
		}
	}
	return append(ordered, left...)
}

// clampMSS lowers the MSS of SYN packets. Outputs begin with so many bytes of
// other headers.
func clampMSS(skip int) func(c *testCase, kernel, _ []output) []output {
	return func(c *testCase, kernel, _ []output) []output {
		kernel = slices.Clone(kernel)
		for i, o := range kernel {
			b := bytes.Clone(o.packet)
			v, err := packet.Parse(b[skip:])
			partial := skip == overhead && b[1]&remoteChecksum != 0
			if err == nil && c.gso == tunnel.GSONone && packet.ClampMSS(v, c.mtu, partial) {
				kernel[i].packet = b
			}
		}
		return kernel
	}
}

// takeZeros takes the engine's form of a TCP checksum that is zero. Outputs
// begin with so many bytes of other headers.
func takeZeros(skip int) func(_ *testCase, kernel, engine []output) []output {
	return func(_ *testCase, kernel, engine []output) []output {
		if len(kernel) != len(engine) {
			return kernel
		}
		kernel = slices.Clone(kernel)
		for i, o := range engine {
			v, err := packet.Parse(kernel[i].packet[skip:])
			_, ok := v.PayloadOffset()
			at := skip + v.Transport + 16
			if err != nil || !ok || v.Protocol != packet.TCP || len(o.packet) != len(kernel[i].packet) {
				continue
			}
			if form := o.packet[at : at+2]; isZero(form) && isZero(kernel[i].packet[at:at+2]) {
				b := bytes.Clone(kernel[i].packet)
				copy(b[at:], form)
				kernel[i].packet = b
			}
		}
		return kernel
	}
}

// isZero reports whether a checksum is zero, in either form.
func isZero(check []byte) bool {
	return string(check) == "\x00\x00" || string(check) == "\xff\xff"
}

// takeIDs takes the engine's identifications over if they mean nothing, or are
// those that were sent.
func takeIDs(c *testCase, kernel, engine []output) []output {
	if !c.is4 || len(c.sent) < 2 || len(kernel) != len(engine) {
		return kernel
	}
	kernel = slices.Clone(kernel)
	for i, o := range engine {
		wasSent := func(b []byte) bool { return bytes.Equal(b[4:6], o.packet[4:6]) && samePacket(b, o.packet) }
		atomic := binary.BigEndian.Uint16(o.packet[6:]) == 0x4000
		if samePacket(kernel[i].packet, o.packet) && (atomic || slices.ContainsFunc(c.sent, wasSent)) {
			b := bytes.Clone(kernel[i].packet)
			copy(b[4:6], o.packet[4:6])
			sumHeader(b)
			kernel[i].packet = b
		}
	}
	return kernel
}

// copyCE is what the outer header says of a packet that met congestion before.
func copyCE(_ *testCase, kernel, _ []output) []output {
	kernel = slices.Clone(kernel)
	for i, o := range kernel {
		v, err := packet.Parse(o.packet[overhead:])
		if err == nil && v.ECN() == packet.CE && o.outer.tos == packet.ECT0 {
			kernel[i].outer.tos = packet.CE
		}
	}
	return kernel
}

// finishHidden finishes put-off checksums of packets whose transport header is
// not plain to see.
func finishHidden(_ *testCase, kernel, _ []output) []output {
	kernel = slices.Clone(kernel)
	for i, o := range kernel {
		v, err := packet.Parse(o.packet[overhead:])
		start := int(o.packet[7]&^remoteUDP)*2 - ethernet
		if _, plain := v.ChecksumOffset(); err != nil || plain && v.Transport == start || o.packet[1]&remoteChecksum == 0 {
			continue
		}
		offload := tunnel.Offload{NeedsChecksum: true, ChecksumStart: uint16(start), ChecksumOffset: 16}
		if o.packet[7]&remoteUDP != 0 {
			offload.ChecksumOffset = 6
		}
		if finished, err := tunneltest.Finish(v.Data, offload); err == nil {
			b := bytes.Clone(o.packet[:overhead])
			b[1], b[7] = 0, 0
			kernel[i].packet = append(b, finished[0]...)
		}
	}
	return kernel
}

// cutTrailer ends every packet where its IP header says.
func cutTrailer(_ *testCase, kernel, _ []output) []output {
	kernel = slices.Clone(kernel)
	for i, o := range kernel {
		if v, err := packet.Parse(o.packet[overhead:]); err == nil {
			kernel[i].packet = o.packet[:overhead+len(v.Data)]
		}
	}
	return kernel
}
