package engine

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/vxlan"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// Sizes of a tx worker's memory.
const (
	txBatch   = 192 << 10 // bytes of packets that fill a batch
	txArena   = txBatch + txPackets*2*tunnel.Headroom + tunnel.MinArena
	txPackets = 64       // packets per Device read
	txSlab    = 64 << 10 // headers of segments between two flushes
	txParts   = 1024
	txRuns    = 64 // runs per Socket call
)

// maxRun bounds the bytes of one run: what a UDP datagram can hold over IPv4
// (65,507), with something to spare.
const maxRun = 65000

// icmpPerSecond bounds the ICMP errors to inner senders.
const icmpPerSecond = 100

// tx is the worker from the Device to the Sockets. Headers are written in front
// of small packets in the arena, and for the segments of super-packets into the
// slab; payload is never moved.
type tx struct {
	engine   *Engine
	device   tunnel.Device
	turns    turns
	counters counters
	arena    []byte
	packets  []tunnel.Incoming

	// Of the batch at hand.
	views  []packet.View // of its packets; the zero View stands for what is none
	peers  *peerSet
	locals []tunnel.Local
	now    time.Time

	// Filled until flush sends it all.
	boxes4, boxes6 []*outbox // by outer family
	sealed         sealer
	parts          [][]byte
	slab           []byte // what is free of slabWhole
	slabWhole      []byte
	open           openRun

	singles      []tunnel.Datagrams // a refused run, taken apart
	singleParts  [][]byte
	singleOwners []way
	scratch      []byte // one segment put together, to be fragmented
	reply        []byte // one ICMP error
	replyOut     []tunnel.Outgoing
	replyLimit   rate
	logLimit     quiet
}

// outbox is what waits for one Socket.
type outbox struct {
	socket      tunnel.Socket
	runs        []tunnel.Datagrams
	owners      []way // of runs
	maxSegments int   // datagrams per run
}

// openRun is the last run made, to which datagrams may still be added.
type openRun struct {
	way
	firstPart int
	size      int // bytes of every datagram but the last
	count     int
	bytes     int
	closed    bool // the last datagram was a short one
}

// way is how one inner packet leaves.
type way struct {
	peer *peertable.Entry
	path *path
	mtu  int // of the path
	box  *outbox
	// segments is how many datagrams a run may have.
	segments int
	flow     uint32
	ecn      uint8
	to       netip.AddrPort
	// Of a peer that gets WireGuard; session is nil while there are no keys.
	sealed  *wireguard.Peer
	session *wireguard.Session
}

// most is the largest packet to ask of the sender of v. IPv6 knows no MTU below
// its minimum, and where the path's is, smaller packets but TCP's go out larger:
// as outer fragments, if the underlay lets them pass.
func (w way) most(v packet.View) int {
	if v.Is4() {
		return w.mtu
	}
	return max(w.mtu, minMTU6)
}

func newTx(e *Engine, w *worker) *tx {
	t := &tx{
		engine:       e,
		device:       w.device,
		turns:        turns{poller: w.given.Poller},
		packets:      make([]tunnel.Incoming, txPackets),
		views:        make([]packet.View, 0, txPackets),
		parts:        make([][]byte, 0, txParts),
		slabWhole:    make([]byte, txSlab),
		singles:      make([]tunnel.Datagrams, 0, txRuns),
		singleParts:  make([][]byte, 0, 2*txRuns),
		singleOwners: make([]way, 0, txRuns),
		scratch:      make([]byte, tunnel.MaxPacket),
		reply:        make([]byte, packet.MaxTooBig),
		replyOut:     []tunnel.Outgoing{{Parts: make([][]byte, 1)}},
		replyLimit:   rate{perSecond: icmpPerSecond},
	}
	t.slab = t.slabWhole
	if g, ok := w.device.(gatherer); ok {
		t.arena = g.Arena()
	}
	if t.arena == nil {
		t.arena = make([]byte, txArena)
	}
	for _, from := range w.sources {
		box := &outbox{
			socket: from.Socket,
			runs:   make([]tunnel.Datagrams, 0, txRuns),
			owners: make([]way, 0, txRuns),
		}
		box.learnOffloads()
		switch {
		case from.sealed:
			t.sealed.add(box)
		case from.Local().Addr().Is4():
			t.boxes4 = append(t.boxes4, box)
		default:
			t.boxes6 = append(t.boxes6, box)
		}
	}
	return t
}

func (b *outbox) learnOffloads() {
	offloads := b.socket.Offloads()
	switch {
	case !offloads.UDP:
		b.maxSegments = 1
	case offloads.MaxSegments == 0:
		b.maxSegments = tunnel.MaxPacket
	default:
		b.maxSegments = offloads.MaxSegments
	}
}

// process sends one batch of packets that lie in t.arena, to completion.
func (t *tx) process(packets []tunnel.Incoming) {
	t.peers, t.locals, t.now = t.engine.peers.Load(), t.engine.localsNow(), time.Now()
	t.views = t.views[:0]
	for i := range packets {
		v, _ := packet.Parse(packets[i].Data)
		t.views = append(t.views, v)
	}
	for i := range packets {
		t.counters.add(TxPackets, 1)
		t.counters.add(TxBytes, len(packets[i].Data))
		if t.superseded(packets, i) {
			t.counters.add(TxAcksFiltered, 1)
			continue
		}
		t.packet(&packets[i], t.views[i])
	}
	t.flush()
	t.counters.add(TxBatches, 1)
	t.counters.publish()
	t.turns.after(t.datagrams(packets))
}

// datagrams is how many UDP datagrams there are in the batch at hand.
func (t *tx) datagrams(packets []tunnel.Incoming) (n int) {
	for i, v := range t.views {
		switch {
		case v.Protocol != packet.UDP:
		case packets[i].GSO == tunnel.GSOUDP:
			n += len(v.Data)/max(int(packets[i].SegmentSize), 1) + 1
		default:
			n++
		}
	}
	return n
}

func (t *tx) drop(reason Counter) { t.counters.add(reason, 1) }

// superseded reports whether the packet behind packet i makes it superfluous, an
// acknowledgement.
func (t *tx) superseded(packets []tunnel.Incoming, i int) bool {
	if t.engine.keepAcks || i+1 == len(packets) || packets[i].GSO != tunnel.GSONone || packets[i+1].GSO != tunnel.GSONone {
		return false
	}
	next := t.views[i+1]
	return next.Supersedes(t.views[i]) && (packets[i+1].NeedsChecksum || next.Valid())
}

// packet queues one packet or super-packet.
func (t *tx) packet(in *tunnel.Incoming, v packet.View) {
	if v.Data == nil {
		t.drop(TxDropMalformed)
		return
	}
	peer, ok := t.peers.Lookup(v.Destination())
	if !ok {
		t.drop(TxDropNoPeer)
		return
	}
	local := localOf(t.locals, v.Is4())
	if local == nil {
		t.drop(TxDropNoLocal)
		return
	}
	w := t.wayTo(peer, v)
	if w.box == nil {
		t.drop(TxDropNoSocket)
		return
	}
	frame := vxlan.Frame{VNI: peer.VNI, To: peer.MAC, From: local.MAC, Type: vxlan.IPv6}
	if v.Is4() {
		frame.Type = vxlan.IPv4
	}
	t.engine.prober.sent(w.path, len(v.Data))
	switch {
	case in.GSO != tunnel.GSONone:
		t.counters.add(TxSuperPackets, 1)
		t.super(in, v, w, frame)
		return
	case len(v.Data) > w.mtu && divisible(in, v):
		in.GSO, in.SegmentSize = tunnel.GSOTCP4, tunnel.MaxPacket
		t.super(in, v, w, frame)
		return
	}
	packet.ClampMSS(v, w.mtu, in.NeedsChecksum)
	if in.NeedsChecksum {
		if len(v.Data) <= w.mtu && v.Partial() {
			frame.Remote = remote(peer, in, v)
		}
		if frame.Remote.Start == 0 && packet.Finish(v.Data, int(in.ChecksumStart), int(in.ChecksumOffset)) != nil {
			t.drop(TxDropUnfinished)
			return
		}
	}
	if len(v.Data) > w.most(v) {
		t.oversize(v, w, frame)
		return
	}
	if w.sealed != nil {
		t.seal(w, t.arena[in.Offset:][:len(v.Data)])
		return
	}
	t.reserve(w.box, 0)
	datagram := t.arena[in.Offset-vxlan.Overhead : in.Offset+len(v.Data)]
	frame.Put(datagram)
	t.queue(w, datagram, nil)
}

// wayTo is how v leaves for its peer. Without a Socket for that, box is nil.
func (t *tx) wayTo(peer *peertable.Entry, v packet.View) way {
	path := t.peers.paths[peer.Number]
	w := way{peer: peer, path: path, mtu: path.MTU(), flow: v.Flow(), ecn: v.ECN(), to: peer.Endpoint}
	if peer.Encap == tunnel.EncapWireGuard {
		t.sealed.choose(&w, t.peers.sessions[peer.Number], t.now)
	} else {
		w.box = t.box(peer, w.flow)
	}
	if w.box != nil {
		w.segments = min(w.box.maxSegments, path.runs.limit())
	}
	return w
}

// remote is the checksum of v that may be left to its peer to finish, if any.
func remote(peer *peertable.Entry, in *tunnel.Incoming, v packet.View) vxlan.Remote {
	offset, ok := v.ChecksumOffset()
	start := vxlan.EthernetLen + v.Transport
	if !peer.RemoteChecksum || peer.Encap == tunnel.EncapWireGuard || !ok || !in.NeedsChecksum || start > vxlan.MaxRemoteStart || start%2 != 0 ||
		int(in.ChecksumStart) != v.Transport || int(in.ChecksumOffset) != offset {
		return vxlan.Remote{}
	}
	return vxlan.Remote{Start: start, UDP: v.Protocol == packet.UDP}
}

// box picks the Socket for a flow.
func (t *tx) box(peer *peertable.Entry, flow uint32) *outbox {
	boxes := t.boxes6
	if peer.Endpoint.Addr().Is4() {
		boxes = t.boxes4
	}
	if len(boxes) == 0 {
		return nil
	}
	return boxes[flow%uint32(len(boxes))]
}

// divisible reports whether v is TCP that its receiver does not mind in smaller
// segments, and that is known to be sound: the cut ones get new checksums.
func divisible(in *tunnel.Incoming, v packet.View) bool {
	if !v.Divisible() {
		return false
	}
	if in.NeedsChecksum {
		return v.Partial()
	}
	return v.Valid()
}

// super cuts a super-packet into segments and queues them.
func (t *tx) super(in *tunnel.Incoming, v packet.View, w way, frame vxlan.Frame) {
	protocol := uint8(packet.TCP)
	if in.GSO == tunnel.GSOUDP {
		protocol = packet.UDP
	}
	size := int(in.SegmentSize)
	frame.Remote = remote(w.peer, in, v)
	segments, err := packet.Segment(v, size, frame.Remote.Start > 0)
	if err != nil || v.Protocol != protocol {
		t.drop(TxDropUnfinished)
		return
	}
	headers := segments.HeaderLen()
	putOff := frame.Remote.Start > 0
	largest := headers + min(size, len(v.Data)-headers)
	switch {
	case largest <= w.mtu:
	case protocol == packet.TCP && headers < w.mtu:
		// A stream is just as well cut smaller: no segment need be lost, nor the
		// stream stall if its sender does not hear of the MTU.
		if v.DontFragment() && largest > w.most(v) {
			t.tellTooBig(v, w)
		}
		segments, _ = packet.Segment(v, w.mtu-headers, putOff)
	case largest <= w.most(v):
	case v.DontFragment() || headers >= w.mtu:
		t.drop(TxDropTooBig)
		t.tellTooBig(v, w)
		return
	default:
		segments, _ = packet.Segment(v, size, false)
		frame.Remote = vxlan.Remote{}
		t.fragmentSegments(&segments, w, frame)
		return
	}
	if w.sealed != nil {
		t.sealSegments(&segments, in.Offset, w)
		return
	}
	for {
		t.reserve(w.box, vxlan.Overhead+headers)
		head := t.slab[:vxlan.Overhead+headers]
		payload, ok := segments.Next(head[vxlan.Overhead:])
		if !ok {
			return
		}
		t.slab = t.slab[len(head):]
		frame.Put(head)
		t.queue(w, head, payload)
	}
}

// fragmentSegments queues segments that are too big for the path as fragments,
// and a short last one whole. It is rare enough to copy them.
func (t *tx) fragmentSegments(segments *packet.Segments, w way, frame vxlan.Frame) {
	headers := segments.HeaderLen()
	for {
		payload, ok := segments.Next(t.scratch)
		if !ok {
			return
		}
		n := headers + copy(t.scratch[headers:], payload)
		if v, err := packet.Parse(t.scratch[:n]); err == nil {
			t.oversize(v, w, frame)
		}
		t.flush()
	}
}

// oversize deals with a finished packet that is larger than the path's MTU:
// its sender is told, or it is fragmented where a router has to do that.
func (t *tx) oversize(v packet.View, w way, frame vxlan.Frame) {
	fragments, err := packet.Fragment(v, w.mtu)
	if err != nil {
		t.drop(TxDropTooBig)
		t.tellTooBig(v, w)
		return
	}
	if len(v.Data) > w.mtu {
		t.counters.add(TxFragmented, 1)
	}
	if w.sealed != nil {
		t.sealFragments(&fragments, w)
		return
	}
	headers := fragments.HeaderLen()
	for {
		t.reserve(w.box, vxlan.Overhead+headers)
		head := t.slab[:vxlan.Overhead+headers]
		payload, ok := fragments.Next(head[vxlan.Overhead:])
		if !ok {
			return
		}
		t.slab = t.slab[len(head):]
		frame.Put(head)
		t.queue(w, head, payload)
	}
}

// reserve makes sure that one more datagram with so many header bytes in the
// slab can be queued, by flushing if need be.
func (t *tx) reserve(box *outbox, headers int) {
	if len(t.parts)+2 > cap(t.parts) || len(box.runs) == cap(box.runs) || len(t.slab) < headers {
		t.flush()
	}
}

// queue adds a datagram, given in one or two parts, to the open run if it
// belongs there, and to a new one otherwise.
func (t *tx) queue(w way, head, tail []byte) {
	size, run := len(head)+len(tail), &t.open
	extends := run.way == w && !run.closed && size <= run.size &&
		run.count < w.segments && run.bytes+size <= maxRun
	if !extends {
		*run = openRun{way: w, firstPart: len(t.parts), size: size}
		w.box.runs = append(w.box.runs, tunnel.Datagrams{Addr: w.to, ECN: w.ecn, Flow: w.flow})
		w.box.owners = append(w.box.owners, w)
	}
	if last := len(t.parts) - 1; extends && follows(t.parts[last], head) {
		t.parts[last] = t.parts[last][:len(t.parts[last])+len(head)]
	} else {
		t.parts = append(t.parts, head)
	}
	if len(tail) > 0 {
		t.parts = append(t.parts, tail)
	}
	run.count++
	run.bytes += size
	run.closed = size < run.size
	datagrams := &w.box.runs[len(w.box.runs)-1]
	datagrams.Parts = t.parts[run.firstPart:len(t.parts):len(t.parts)]
	if run.count > 1 {
		datagrams.SegmentSize = run.size
	}
}

// follows reports whether b lies right behind a, in one piece of memory.
func follows(a, b []byte) bool {
	return cap(a)-len(a) >= len(b) && &a[:len(a)+1][len(a)] == &b[0]
}

// tellTooBig tells the sender of v how large its packets may be.
//
// The error comes from the peer's network address, as if the tunnel's far end
// had sent it: the host would discard an IPv4 packet from the Device that
// bears one of its own addresses (RFC 1812, 5.3.7).
func (t *tx) tellTooBig(v packet.View, w way) {
	n := packet.TooBig(t.reply, v, w.peer.Prefixes[0].Addr(), w.most(v))
	if n == 0 {
		return
	}
	if !t.replyLimit.allow(time.Now()) {
		t.counters.add(TxICMPLimited, 1)
		return
	}
	t.replyOut[0].Parts[0] = t.reply[:n]
	if _, err := t.device.Write(t.replyOut); err != nil {
		if t.logLimit.ready() {
			t.engine.logger.Warn("write of ICMP error failed", "device", t.device.Name(), "error", err)
		}
		return
	}
	t.counters.add(TxICMP, 1)
}
