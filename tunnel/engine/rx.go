package engine

import (
	"bytes"
	"errors"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/vxlan"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// Sizes of an rx worker's memory.
const (
	rxRuns    = 64
	rxArena   = rxRuns * (tunnel.MaxPacket + 1) // as much as they can be; what is never used takes no memory
	rxPackets = 512                             // packets between two flushes
	rxParts   = 2 * rxPackets                   // no packet takes more: a header and its payload
	rxSlab    = 32 << 10                        // headers of super-packets between two flushes
	rxCut     = 64                              // segments per Device write of a super-packet that has to be cut
)

// mtuFor is how long the Device's MTU is taken to be what it was.
const mtuFor = time.Second

// rx is the worker from Sockets to the Device. Packets that go on as they
// came are written from the arena; joined ones as a header in the slab and the
// payloads from the arena.
type rx struct {
	engine   *Engine
	device   tunnel.Device
	turns    turns
	counters counters
	arena    []byte
	batch    []tunnel.Datagrams

	offloads tunnel.Offloads // of the Device
	mtu      int             // of the Device
	mtuUntil time.Time

	// Of the batch at hand.
	peers  *peerSet
	locals []tunnel.Local
	now    time.Time
	opener opener
	// trusted: the packet at hand is what its peer has sent, for it was authentic.
	trusted bool

	// Filled until flush writes it all.
	packets   []arrival
	group     packet.Group // the last packets, from groupFrom on
	groupFrom int
	groupRun  *tunnel.Datagrams // that its first packet came in
	groupHead []byte            // what was in front of that; nil: it was sealed
	groupPeer *wireguard.Peer   // that has sealed it
	out       []tunnel.Outgoing
	spans     []span // of out
	parts     [][]byte
	slab      []byte // what is free of slabWhole
	slabWhole []byte

	cutOut   []tunnel.Outgoing
	cutParts [][]byte
	cutSlab  []byte
	logLimit quiet
}

// arrival is an accepted packet.
type arrival struct {
	packet.View
	partial bool // the transport checksum is to be finished
	size    int  // of a super-packet: payload bytes per segment
}

// span is the packets that one Outgoing was made of.
type span struct{ from, to int }

func newRx(e *Engine, w *worker) *rx {
	r := &rx{
		engine:    e,
		device:    w.device,
		turns:     turns{poller: w.given.Poller},
		arena:     make([]byte, rxArena),
		batch:     make([]tunnel.Datagrams, rxRuns),
		offloads:  w.device.Offloads(),
		packets:   make([]arrival, 0, rxPackets),
		out:       make([]tunnel.Outgoing, 0, rxPackets),
		spans:     make([]span, 0, rxPackets),
		parts:     make([][]byte, 0, rxParts),
		slabWhole: make([]byte, rxSlab),
		cutOut:    make([]tunnel.Outgoing, 0, rxCut),
		cutParts:  make([][]byte, 0, 2*rxCut),
		cutSlab:   make([]byte, rxSlab),
	}
	r.slab = r.slabWhole
	return r
}

// process writes one batch of runs to the Device, to completion.
func (r *rx) process(runs []tunnel.Datagrams, sealed bool) {
	r.peers, r.locals, r.now = r.engine.peers.Load(), r.engine.localsNow(), time.Now()
	for i := range runs {
		if sealed {
			r.unseal(&runs[i])
		} else {
			r.receive(&runs[i])
		}
	}
	r.flush()
	r.counters.add(RxBatches, 1)
	r.counters.add(RxRuns, len(runs))
	r.counters.publish()
}

func (r *rx) drop(reason Counter) { r.counters.add(reason, 1) }

// receive takes in the datagrams of one run.
func (r *rx) receive(run *tunnel.Datagrams) {
	if isSuperFrame(run) {
		r.datagram(run, run.Data, run.SegmentSize)
		return
	}
	rest, size := run.Data, run.SegmentSize
	if size == 0 {
		size = len(rest)
	}
	for len(rest) > size {
		r.datagram(run, rest[:size], 0)
		rest = rest[size:]
	}
	r.datagram(run, rest, 0)
}

// isSuperFrame reports whether what looks like a run is one datagram with a
// super-packet in it. A kernel peer on the same machine sends those: the inner
// segment size then comes in place of that of a run. In a real run no datagram
// is as long as the run.
func isSuperFrame(run *tunnel.Datagrams) bool {
	if run.SegmentSize == 0 || len(run.Data) <= max(run.SegmentSize, vxlan.Overhead) {
		return false
	}
	v, err := packet.Parse(run.Data[vxlan.Overhead:])
	return err == nil && len(v.Data)+vxlan.Overhead == len(run.Data)
}

// datagram takes in one datagram. size is the segment size of the super-packet
// in it, where that is known.
func (r *rx) datagram(run *tunnel.Datagrams, data []byte, size int) {
	r.counters.add(RxDatagrams, 1)
	if size == 0 && r.continues(run, data) {
		return
	}
	frame, err := vxlan.Parse(data)
	if err != nil {
		r.drop(dropOf(err))
		return
	}
	local := localOf(r.locals, frame.Type == vxlan.IPv4)
	switch {
	case !r.knowsVNI(frame.VNI):
		r.drop(RxDropVNI)
		return
	case local == nil || local.VNI != frame.VNI:
		r.drop(RxDropFamily)
		return
	case local.MAC != frame.To:
		r.drop(RxDropMAC)
		return
	}
	v, err := packet.Parse(frame.Packet)
	if err == nil && v.Is4() != (frame.Type == vxlan.IPv4) {
		err = packet.ErrVersion
	}
	if err != nil {
		r.drop(dropOf(err))
		return
	}
	peer, allowed := r.peers.Allowed(run.Addr.Addr(), v.Source())
	if !allowed {
		r.drop(RxDropSource)
		return
	}
	if frame.Remote.Start > 0 && !finishRemote(frame, v, run.Unsummed) {
		r.drop(RxDropRemote)
		return
	}
	path := r.peers.paths[peer.Number]
	if run.Unsummed {
		r.unsummed(peer, path)
	}
	if r.admit(run, v, local, path, size) && r.group.Count() == 1 {
		r.groupRun, r.groupHead, r.groupPeer = run, data[:vxlan.Overhead], nil
	}
}

// admit takes in a packet from the peer that path leads to, or says that it did
// not. size is as in datagram.
func (r *rx) admit(run *tunnel.Datagrams, v packet.View, local *tunnel.Local, path *path, size int) bool {
	switch {
	case !local.Subnet.Contains(v.Destination()):
		r.drop(RxDropDestination)
		return false
	case !decapsulateECN(v, run.ECN):
		r.drop(RxDropECN)
		return false
	case v.Destination() == local.Subnet.Addr() && r.engine.prober.answered(v):
		r.counters.add(ProbeAnswers, 1)
		return false
	}
	if v.SYN() {
		// The answer to a SYN is to keep to the MTU of the way back.
		packet.ClampMSS(v, path.MTU(), v.Partial())
	}
	r.counters.add(RxPackets, 1)
	r.counters.add(RxBytes, len(v.Data))
	r.accept(v, size)
	return true
}

// unsummed counts a datagram that came without a checksum, and says once what
// that costs: the kernel never joins such datagrams, and nothing but the inner
// checksum tells whether they arrived as they were sent.
func (r *rx) unsummed(peer *peertable.Entry, path *path) {
	r.counters.add(RxUnsummed, 1)
	if !path.unsummed.Load() && !path.unsummed.Swap(true) {
		r.engine.logger.Warn("peer sends without UDP checksums, which makes receiving slow: set udpcsum on its VXLAN device",
			"peer", peer.Name, "endpoint", peer.Endpoint)
	}
}

// continues takes in a datagram that was sent like the first one of the open
// group, and whose packet follows on it. Then all that was asked of the first
// is true of it as well: who sent it, to whom, and how.
func (r *rx) continues(run *tunnel.Datagrams, data []byte) bool {
	if r.group.Count() == 0 || len(r.packets) == cap(r.packets) || len(data) < vxlan.Overhead ||
		run.ECN != r.groupRun.ECN || run.Addr.Addr() != r.groupRun.Addr.Addr() || run.Unsummed != r.groupRun.Unsummed ||
		!bytes.Equal(data[:vxlan.Overhead], r.groupHead) {
		return false
	}
	v, partial, ok := r.group.Next(data[vxlan.Overhead:], false)
	if ok {
		r.joined(run, v, partial)
	}
	return ok
}

// joined takes in a packet that the open group has taken.
func (r *rx) joined(run *tunnel.Datagrams, v packet.View, partial bool) {
	r.packets = append(r.packets, arrival{View: v, partial: partial})
	r.counters.add(RxPackets, 1)
	r.counters.add(RxBytes, len(v.Data))
	if partial {
		r.counters.add(RxPartial, 1)
	}
	if run.Unsummed {
		r.counters.add(RxUnsummed, 1)
	}
}

// finishRemote deals with a checksum that the sender has put off. One where it
// is expected stays as it is, being partial like any other; one elsewhere is
// finished here. It is false where the header points to what cannot be, or where
// nothing protects the bytes meanwhile.
func finishRemote(frame vxlan.Frame, v packet.View, unsummed bool) bool {
	if unsummed {
		return false
	}
	start := frame.Remote.Start - vxlan.EthernetLen
	if offset, ok := v.ChecksumOffset(); ok && start == v.Transport && frame.Remote.Offset() == offset && v.Partial() {
		return true
	}
	return start >= 0 && packet.Finish(v.Data, start, frame.Remote.Offset()) == nil
}

func (r *rx) knowsVNI(vni uint32) bool {
	for i := range r.locals {
		if r.locals[i].VNI == vni {
			return true
		}
	}
	return false
}

// dropOf is the counter for an error of Parse, in vxlan or packet.
func dropOf(err error) Counter {
	switch {
	case errors.Is(err, vxlan.ErrTruncated), errors.Is(err, packet.ErrTruncated):
		return RxDropTruncated
	case errors.Is(err, vxlan.ErrHeader):
		return RxDropHeader
	case errors.Is(err, vxlan.ErrVLAN):
		return RxDropVLAN
	case errors.Is(err, vxlan.ErrARP):
		return RxDropARP
	case errors.Is(err, vxlan.ErrLLC):
		return RxDropLLC
	case errors.Is(err, vxlan.ErrNotIP):
		return RxDropNotIP
	case errors.Is(err, packet.ErrLength):
		return RxDropLength
	}
	return RxDropMalformed
}

// decapsulateECN combines the outer ECN bits into the inner packet (RFC 6040,
// section 4.2), or says that the packet is to be dropped.
func decapsulateECN(v packet.View, outer uint8) bool {
	inner := v.ECN()
	switch {
	case outer == packet.CE && inner == packet.NotECT:
		return false
	case outer == packet.CE && inner != packet.CE,
		outer == packet.ECT1 && inner == packet.ECT0:
		v.SetECN(outer)
	}
	return true
}

// accept queues a packet for the Device, joined to those before it if it can be.
func (r *rx) accept(v packet.View, size int) {
	r.reserve()
	a := arrival{View: v, partial: v.Partial(), size: r.segmentSize(v, size)}
	if a.partial {
		r.counters.add(RxPartial, 1)
	}
	joins := v.Protocol == packet.TCP && r.offloads.TCP || v.Protocol == packet.UDP && r.offloads.UDP
	sound := (joins || a.size > 0) && (a.partial || r.trusted || v.Valid())
	switch {
	case a.size > 0 && sound:
		r.closeGroup()
		r.counters.add(RxSuperFrames, 1)
		r.super(a, joins)
	case joins && sound && r.group.Add(v):
		r.packets = append(r.packets, a)
	case r.supersedes(&a):
		r.replace(a)
	default:
		r.closeGroup()
		r.groupFrom = len(r.packets)
		r.packets = append(r.packets, a)
		if !joins || !sound || !r.group.Start(v) {
			r.single(r.groupFrom)
		}
	}
}

// supersedes reports whether a makes the packet before it superfluous, an acknowledgement
// that waits to be written.
func (r *rx) supersedes(a *arrival) bool {
	last := len(r.packets) - 1
	return last >= 0 && !r.engine.keepAcks && a.Supersedes(r.packets[last].View) && (a.partial || r.trusted || a.Valid())
}

// replace queues a in place of the packet before it, which is in no group.
func (r *rx) replace(a arrival) {
	r.counters.add(RxAcksFiltered, 1)
	r.packets = append(r.packets[:len(r.packets)-1], a)
	r.out, r.spans, r.parts = r.out[:len(r.out)-1], r.spans[:len(r.spans)-1], r.parts[:len(r.parts)-1]
	r.single(len(r.packets) - 1)
}

// segmentSize is the payload per segment of what came as a super-packet, and 0
// for others. Where a UDP super-packet is cut matters, so its size has to be
// known; a TCP packet larger than the Device's MTU is cut to fit it.
func (r *rx) segmentSize(v packet.View, known int) int {
	headers, ok := v.PayloadOffset()
	switch {
	case !ok || v.Protocol == packet.UDP && known == 0:
		return 0
	case known > 0 && known >= len(v.Data)-headers:
		return 0
	case known > 0:
		return known
	case len(v.Data) > r.mtu:
		r.learnMTU()
	}
	if len(v.Data) <= r.mtu {
		return 0
	}
	return max(r.mtu-headers, 0)
}

func (r *rx) learnMTU() {
	now := time.Now()
	if now.Before(r.mtuUntil) {
		return
	}
	r.mtuUntil = now.Add(mtuFor)
	mtu, err := r.device.MTU()
	switch {
	case err == nil:
		r.mtu = mtu
	case r.mtu == 0:
		r.mtu = tunnel.MaxPacket
	}
}

// reserve makes sure that one more packet, and the group it may close, can be
// queued, by flushing if need be. Headers are never longer than half the slab,
// as packet.Parse bounds the walk along them.
func (r *rx) reserve() {
	if len(r.packets) == cap(r.packets) || len(r.slab) < rxSlab/2 {
		r.flush()
	}
}
