package engine

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// opener is what rx needs to receive by WireGuard: the session that the last
// datagrams came in, for others are likely to follow.
type opener struct {
	scratch wireguard.Scratch
	session *wireguard.Session
	index   uint32         // of session
	from    netip.AddrPort // of the run at hand
	heard   bool           // session had something that was authentic
	data    bool           // and was more than a keepalive
}

// transport is how a message with data begins (WireGuard whitepaper, 5.4.6): its
// type, and three bytes that are zero.
const transport = 4

// unseal takes in the datagrams of one run that came to a Socket for WireGuard.
func (r *rx) unseal(run *tunnel.Datagrams) {
	rest, size := run.Data, run.SegmentSize
	if size == 0 {
		size = len(rest)
	}
	r.opener.from = run.Addr
	for len(rest) > size {
		r.unsealOne(run, rest[:size:size])
		rest = rest[size:]
	}
	r.unsealOne(run, rest)
	r.leaveSession()
}

// unsealOne takes in one datagram.
func (r *rx) unsealOne(run *tunnel.Datagrams, data []byte) {
	r.counters.add(RxDatagrams, 1)
	if len(data) < wireguard.Overhead {
		r.drop(RxDropTruncated)
		return
	}
	if binary.LittleEndian.Uint32(data) != transport {
		r.counters.add(RxHandshakes, 1)
		r.engine.wireguard.Handshake(data, run.Addr)
		return
	}
	if !r.enterSession(binary.LittleEndian.Uint32(data[4:])) {
		r.engine.wireguard.Unknown(run.Addr)
		r.drop(RxDropSession)
		return
	}
	o := &r.opener
	plain, counter, ok := o.session.Open(data, &o.scratch)
	if !ok {
		r.drop(RxDropForged)
		return
	}
	if !o.session.Fresh(counter) {
		r.drop(RxDropReplayed)
		return
	}
	o.heard = true
	if len(plain) > 0 {
		o.data = true
		r.unsealed(run, plain)
	}
}

// enterSession makes the session with an index the one at hand, and locks its
// replay window, once for all datagrams of a run that came in it.
func (r *rx) enterSession(index uint32) bool {
	o := &r.opener
	if o.session != nil && o.index == index {
		return true
	}
	r.leaveSession()
	session := r.engine.wireguard.Lookup(index)
	if session == nil {
		return false
	}
	o.session, o.index = session, index
	session.LockReplay()
	return true
}

// leaveSession ends that, and tells the session what came.
func (r *rx) leaveSession() {
	o := &r.opener
	if o.session == nil {
		return
	}
	o.session.UnlockReplay()
	if o.heard {
		o.session.Received(r.now, o.from, o.data)
	}
	o.session, o.heard, o.data = nil, false, false
}

// unsealed takes in an authentic packet. What its peer may send it may send in
// whatever order, so that only the inner source is to be looked at.
func (r *rx) unsealed(run *tunnel.Datagrams, plain []byte) {
	session := r.opener.session
	if r.group.Count() > 0 && r.groupPeer == session.Peer() && len(r.packets) < cap(r.packets) && run.ECN == r.groupRun.ECN {
		if v, partial, ok := r.group.Next(plain, true); ok {
			r.joined(run, v, partial)
			return
		}
	}
	v, err := packet.Parse(plain)
	if err != nil {
		r.drop(dropOf(err))
		return
	}
	local := localOf(r.locals, v.Is4())
	if local == nil {
		r.drop(RxDropFamily)
		return
	}
	peer, ok := r.peers.Lookup(v.Source())
	if !ok || r.peers.sessions[peer.Number] != session.Peer() {
		r.drop(RxDropSource)
		return
	}
	r.trusted = true
	admitted := r.admit(run, v, local, r.peers.paths[peer.Number], 0)
	r.trusted = false
	if admitted && r.group.Count() == 1 {
		r.groupRun, r.groupHead, r.groupPeer = run, nil, session.Peer()
	}
}
