package wireguard

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.zx2c4.com/wireguard/device"
)

// message is a handshake message that waits for Run.
type message struct {
	from netip.AddrPort
	size int
	data [device.MessageHandshakeSize]byte
}

func (m *message) bytes() []byte { return m.data[:m.size] }

// Handshake takes any datagram that is not transport data. It is copied; when
// too many wait it is dropped.
func (h *Host) Handshake(datagram []byte, from netip.AddrPort) {
	if len(datagram) < 4 {
		return
	}
	var size int
	switch binary.LittleEndian.Uint32(datagram) {
	case device.MessageInitiationType:
		size = device.MessageInitiationSize
	case device.MessageResponseType:
		size = device.MessageResponseSize
	case device.MessageCookieReplyType:
		size = device.MessageCookieReplySize
	}
	if len(datagram) != size {
		return
	}
	m := message{from: unmap(from), size: size}
	copy(m.data[:], datagram)
	select {
	case h.queue <- m:
	default:
	}
}

// Lookup finds the session that a datagram of transport data belongs to by its
// receiver index; nil: there is none.
func (h *Host) Lookup(index uint32) *Session {
	if s := h.slots.get(index); s != nil && s.open != nil {
		return s
	}
	return nil
}

// Unknown tells that transport data came for an index that nobody has. A peer at
// that place has a session that this host lost in a restart.
func (h *Host) Unknown(from netip.AddrPort) {
	select {
	case h.unknown <- from:
	default:
	}
}

func (h *Host) handle(m *message) {
	switch m.data[0] {
	case device.MessageInitiationType:
		h.handleInitiation(m)
	case device.MessageResponseType:
		h.handleResponse(m)
	case device.MessageCookieReplyType:
		h.handleCookie(m)
	}
}

// admit says whether a message whose first code is right, so that its sender knows
// our key, is worth what it costs. Under load the second code has to show that the
// sender receives at its address, which then has a rate limit.
func (h *Host) admit(m *message, own *ownKey) bool {
	if !h.loaded() {
		return true
	}
	datagram := m.bytes()
	source := binary.BigEndian.AppendUint16(m.from.Addr().AsSlice(), m.from.Port())
	if own.checker.CheckMAC2(datagram, source) {
		return h.limiter.Allow(m.from.Addr())
	}
	sender := binary.LittleEndian.Uint32(datagram[4:])
	reply, err := own.checker.CreateReply(datagram, sender, source)
	if err != nil {
		return false
	}
	h.buffer, err = binary.Append(h.buffer[:0], binary.LittleEndian, reply)
	if err == nil {
		err = h.send(m.from, h.buffer)
	}
	if err != nil {
		h.log.Debug("wireguard cookie not sent", "to", m.from, "error", err)
	}
	return false
}

// loaded says whether more initiations come than are answered, now or a moment ago.
func (h *Host) loaded() bool {
	now := h.now()
	if len(h.queue) >= cap(h.queue)/8 {
		h.loadedUntil = now + device.UnderLoadAfterTime
	}
	return now < h.loadedUntil
}

func (h *Host) handleCookie(m *message) {
	var reply device.MessageCookieReply
	if _, err := binary.Decode(m.bytes(), binary.LittleEndian, &reply); err != nil {
		return
	}
	s := h.slots.get(reply.Receiver)
	if s == nil || s.peer.upkeep == nil {
		return
	}
	for _, c := range s.peer.upkeep.cookies {
		// The next message carries it, when the usual time has passed.
		if c != nil && c.generator.ConsumeReply(&reply) {
			return
		}
	}
}

// handleUnknown sees to the peer that sends for a session we do not have.
func (h *Host) handleUnknown(from netip.AddrPort) {
	now := h.now()
	for _, p := range h.peersAt(unmap(from)) {
		u := h.activate(p)
		if now-u.greeted < unknownEvery && u.greeted != 0 {
			continue
		}
		u.greeted = now
		s := p.current.Load()
		switch {
		case !p.up(now):
			p.asked.Store(true)
			if (u.initiated == 0 || now-u.initiated >= unknownEvery) && !h.confirming(p, now) {
				h.initiate(p, now)
			}
		case now-s.created < device.RekeyTimeout:
			// It may wait for us to confirm the new session.
			h.keepalive(p, now)
		default:
			p.ask()
		}
	}
}

// peersAt is who has this endpoint. A translator may have given the datagram
// another port; then it is all who are at that address.
func (h *Host) peersAt(from netip.AddrPort) []*Peer {
	const most = 16
	h.mu.Lock()
	defer h.mu.Unlock()
	at := h.byAddr[from.Addr()]
	for _, p := range at {
		if p.Endpoint() == from || p.config.Load().Endpoint == from {
			return []*Peer{p}
		}
	}
	return slices.Clone(at[:min(len(at), most)])
}
