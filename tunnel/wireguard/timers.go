package wireguard

import (
	"golang.zx2c4.com/wireguard/device"
)

// upkeep is what Run keeps of an active peer: one with a session, a handshake to
// do, or keepalives to send.
type upkeep struct {
	attempt   *attempt    // nil: none
	initiated moment      // our last initiation
	answered  moment      // the peer's last initiation
	greeted   moment      // the last time unknown data brought anything about
	cookies   [2]*cookies // of its keys that were used, the younger first
}

// activate has the tick look after the peer.
func (h *Host) activate(p *Peer) *upkeep {
	if p.upkeep == nil {
		p.upkeep = &upkeep{}
		h.active[p] = struct{}{}
	}
	return p.upkeep
}

// attend does at once what a worker has asked for.
func (h *Host) attend(p *Peer, now moment) {
	h.activate(p)
	if p.completed.Swap(false) {
		h.complete(p)
	}
	if p.reconfigured.Swap(false) && p.upkeep.attempt != nil {
		h.initiate(p, now) // to another place, or for another key
	}
	if p.current.Load() != nil {
		h.flush(p, now)
	}
	if !h.look(p, now) {
		h.deactivate(p)
	}
}

// complete notes that a handshake is done.
func (h *Host) complete(p *Peer) {
	h.drop(p.upkeep)
	p.asked.Store(false)
	if p.told != toldUp {
		p.told = toldUp
		h.log.Info("wireguard session up", "peer", p.config.Load().Name, "endpoint", p.Endpoint())
	}
}

// silent notes that the peer does not answer.
func (h *Host) silent(p *Peer, why string) {
	if p.told != toldSilent {
		p.told = toldSilent
		h.log.Warn("wireguard peer silent", "peer", p.config.Load().Name, "endpoint", p.Endpoint(), "after", why)
	}
}

func (h *Host) tick() {
	for p := range h.active {
		if !h.look(p, h.now()) {
			h.deactivate(p)
		}
		// Where many handshakes are begun, many answers come.
		select {
		case m := <-h.queue:
			h.handle(&m)
		default:
		}
	}
}

func (h *Host) deactivate(p *Peer) {
	h.drop(p.upkeep)
	p.upkeep = nil
	delete(h.active, p)
}

// look does what is due for a peer, and says whether it is active still.
func (h *Host) look(p *Peer, now moment) bool {
	u := p.upkeep
	sessions, gone := h.expire(p, now)
	if gone {
		p.unstage()
		p.asked.Store(false)
		return false
	}
	if first := moment(p.unanswered.Load()); first != 0 && now-first >= silentAfter {
		p.unanswered.Store(0)
		h.silent(p, "data without an answer")
		h.comeHome(p)
		p.asked.Store(true)
	}
	if last := moment(p.received.Load()); last != 0 && now-last >= device.RejectAfterTime {
		h.comeHome(p)
	}
	if owed := moment(p.owed.Load()); owed != 0 && now-owed >= device.KeepaliveTimeout {
		p.owed.Store(0)
		h.keepalive(p, now)
	}
	every := p.config.Load().Keepalive
	if last := moment(max(p.sent.Load(), p.received.Load())); every > 0 && (last == 0 || now-last >= every) {
		if !h.keepalive(p, now) {
			p.asked.Store(true)
		}
	}
	if a := u.attempt; a != nil && now >= a.retry {
		if now-a.began >= device.RekeyAttemptTime {
			h.giveUp(p)
		} else {
			h.initiate(p, now)
		}
	}
	if p.asked.Load() && h.handshakeDue(p, now) {
		h.initiate(p, now)
	}
	return sessions > 0 || u.attempt != nil || p.asked.Load() || every > 0
}

// expire drops the sessions that neither side accepts any more, and with them
// their keys.
func (h *Host) expire(p *Peer, now moment) (left int, gone bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	left = p.forget(func(s *Session) bool { return now-s.created >= device.RejectAfterTime })
	return left, p.gone
}

// giveUp ends a handshake without success; whoever has data next begins anew.
func (h *Host) giveUp(p *Peer) {
	h.drop(p.upkeep)
	p.asked.Store(false)
	p.unstage()
	h.silent(p, "handshakes without an answer")
	h.comeHome(p)
	p.roamed.Store(nil)
}

// comeHome has a peer be where it is configured to be, as it was not heard for
// some time from where it was heard last: an address that is no more, or one by
// which only packets from it get through. Handshakes try there for a while yet.
func (h *Host) comeHome(p *Peer) {
	from, home := p.Endpoint(), p.config.Load().Endpoint
	if from == home {
		return
	}
	p.move(home)
	h.log.Info("wireguard peer taken to be where it is configured", "peer", p.config.Load().Name, "from", from, "to", home)
}

// keepalive sends an empty packet, if there is a session.
func (h *Host) keepalive(p *Peer, now moment) bool {
	s := p.current.Load()
	if s == nil || !p.up(now) {
		return false
	}
	h.seal(p, s, nil)
	p.traversed(now)
	return true
}

// flush sends what was staged, and says whether there was anything.
func (h *Host) flush(p *Peer, now moment) bool {
	s := p.Session(h.epoch.Add(now))
	if s == nil {
		return false
	}
	staged := p.unstage()
	for _, packet := range staged {
		h.seal(p, s, packet)
	}
	if len(staged) > 0 {
		p.Sent(h.epoch.Add(now))
	}
	return len(staged) > 0
}

func (h *Host) seal(p *Peer, s *Session, packet []byte) {
	counter, ok := s.Reserve(1)
	if !ok {
		return
	}
	size := len(packet) + Overhead
	if cap(h.buffer) < size {
		h.buffer = make([]byte, size)
	}
	h.buffer = h.buffer[:size]
	s.Seal(h.buffer, packet, counter, &h.scratch)
	h.transmit(p, p.Endpoint(), h.buffer)
}
