package wireguard

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/weft-net/weft/tunnel"
)

// Where the parts of messages are: a header of type and indices, what Noise
// writes, and two codes.
const (
	macs            = 32
	initiationNoise = 8
	responseNoise   = 12
)

// attempt is a handshake we began, until it is done or given up.
type attempt struct {
	noise *noise.HandshakeState
	own   *ownKey
	key   tunnel.PublicKey // the peer's
	slot  *Session         // holds our index
	began moment
	retry moment
	tries int
}

// cookies adds the codes to messages for one key of a peer.
type cookies struct {
	key       tunnel.PublicKey
	generator device.CookieGenerator
}

// addMACs writes the codes at the end of a message.
func (u *upkeep) addMACs(message []byte, key tunnel.PublicKey) {
	i := slices.IndexFunc(u.cookies[:], func(c *cookies) bool { return c != nil && c.key == key })
	if i < 0 {
		c := &cookies{key: key}
		c.generator.Init(device.NoisePublicKey(key))
		u.cookies[1], u.cookies[0] = u.cookies[0], c
		i = 0
	}
	u.cookies[i].generator.AddMacs(message)
}

// initiate begins a handshake, or the next attempt of one.
func (h *Host) initiate(p *Peer, now moment) {
	u := h.activate(p)
	a, err := h.begin(p, u, now)
	if err != nil {
		h.log.Warn("wireguard handshake cannot begin", "peer", p.config.Load().Name, "error", err)
		h.giveUp(p)
		return
	}
	if a == nil {
		return // no peer any more
	}
	p.traversed(now)
	u.initiated = now
	to := p.Endpoint()
	if a.tries%2 == 1 {
		to = p.elsewhere() // in case the one or the other is no good any more
	}
	h.transmit(p, to, h.buffer)
}

// begin writes an initiation to h.buffer.
func (h *Host) begin(p *Peer, u *upkeep, now moment) (*attempt, error) {
	jitter := time.Duration(rand.IntN(device.RekeyTimeoutJitterMaxMs)) * time.Millisecond
	a := &attempt{own: h.ownKeys()[0], key: p.config.Load().Keys[0], began: now, retry: now + device.RekeyTimeout + jitter}
	if u.attempt != nil {
		a.began, a.tries = u.attempt.began, u.attempt.tries+1
	}
	config := h.noise
	config.Initiator, config.StaticKeypair, config.PeerStatic = true, a.own.pair, a.key[:]
	state, err := noise.NewHandshakeState(config)
	if err != nil {
		return nil, fmt.Errorf("begin handshake: %w", err)
	}
	a.noise = state
	var header [initiationNoise]byte
	stamp := h.stamp()
	message, _, _, err := state.WriteMessage(append(h.buffer[:0], header[:]...), stamp[:])
	if err != nil {
		return nil, fmt.Errorf("write initiation: %w", err)
	}
	h.drop(u)
	h.mu.Lock()
	if p.gone {
		h.mu.Unlock()
		return nil, nil
	}
	a.slot = &Session{peer: p, index: h.slots.free()}
	h.slots.put(a.slot)
	h.mu.Unlock()
	u.attempt = a
	binary.LittleEndian.PutUint32(message, device.MessageInitiationType)
	binary.LittleEndian.PutUint32(message[4:], a.slot.index)
	h.buffer = append(message, make([]byte, macs)...)
	u.addMACs(h.buffer, a.key)
	return a, nil
}

// drop ends the attempt, if there is one.
func (h *Host) drop(u *upkeep) {
	if u.attempt == nil {
		return
	}
	h.mu.Lock()
	h.slots.drop(u.attempt.slot)
	h.mu.Unlock()
	u.attempt = nil
}

// handleInitiation answers a handshake that a peer began.
func (h *Host) handleInitiation(m *message) {
	datagram := m.bytes()
	keys := h.ownKeys()
	to := slices.IndexFunc(keys, func(own *ownKey) bool { return own.checker.CheckMAC1(datagram) })
	if to < 0 || !h.admit(m, keys[to]) {
		return
	}
	config := h.noise
	config.StaticKeypair = keys[to].pair
	state, err := noise.NewHandshakeState(config)
	if err != nil {
		return
	}
	stamp, _, _, err := state.ReadMessage(nil, datagram[initiationNoise:len(datagram)-macs])
	if err != nil || len(stamp) != tai64n.TimestampSize {
		return
	}
	key := tunnel.PublicKey(state.PeerStatic())
	now := h.now()
	p := h.initiator(identity{key, m.from.Addr().Is4()}, tai64n.Timestamp(stamp), now)
	if p == nil {
		return
	}
	p.heard(now)
	if err := h.respond(p, state, key, m, now); err != nil {
		h.log.Debug("wireguard handshake not answered", "peer", p.config.Load().Name, "error", err)
	}
}

// initiator is the peer whose initiation this is, if it may come now.
func (h *Host) initiator(id identity, stamp tai64n.Timestamp, now moment) *Peer {
	h.mu.Lock()
	p := h.byKey[id]
	pass := p != nil && p.bars[slices.Index(p.config.Load().Keys[:], id.key)].pass(stamp, later(tai64n.Now(), futureLeeway))
	h.mu.Unlock()
	if !pass {
		return nil
	}
	u := h.activate(p)
	if u.answered != 0 && now-u.answered < device.HandshakeInitationRate {
		return nil
	}
	u.answered = now
	return p
}

// respond makes the session and sends the answer to where the initiation came
// from. The peer's endpoint stays until it has confirmed the session: only then
// is it known that this was no copy of an old initiation.
func (h *Host) respond(p *Peer, state *noise.HandshakeState, key tunnel.PublicKey, m *message, now moment) error {
	var header [responseNoise]byte
	message, receive, send, err := state.WriteMessage(append(h.buffer[:0], header[:]...), nil)
	if err != nil {
		return fmt.Errorf("write response: %w", err)
	}
	remote := binary.LittleEndian.Uint32(m.data[4:])
	h.mu.Lock()
	if p.gone {
		h.mu.Unlock()
		return nil
	}
	s, err := newSession(p, h.slots.free(), remote, false, send.UnsafeKey(), receive.UnsafeKey(), now)
	if err != nil {
		h.mu.Unlock()
		return err
	}
	h.slots.drop(p.next)
	p.next = s
	h.slots.put(s)
	h.mu.Unlock()
	binary.LittleEndian.PutUint32(message, device.MessageResponseType)
	binary.LittleEndian.PutUint32(message[4:], s.index)
	binary.LittleEndian.PutUint32(message[8:], remote)
	h.buffer = append(message, make([]byte, macs)...)
	p.upkeep.addMACs(h.buffer, key)
	p.traversed(now)
	h.transmit(p, m.from, h.buffer)
	return nil
}

// handleResponse completes a handshake that we began.
func (h *Host) handleResponse(m *message) {
	datagram := m.bytes()
	slot := h.slots.get(binary.LittleEndian.Uint32(datagram[8:]))
	if slot == nil || slot.peer.upkeep == nil {
		return
	}
	p := slot.peer
	a := p.upkeep.attempt
	if a == nil || a.slot != slot || !a.own.checker.CheckMAC1(datagram) || !h.admit(m, a.own) {
		return
	}
	body := datagram[responseNoise : len(datagram)-macs]
	// Noise mixes a point of low order into its state before it finds that it is
	// one. Without a look at it, one forged response would end the attempt.
	if _, err := curve25519.X25519(a.noise.LocalEphemeral().Private, body[:device.NoisePublicKeySize]); err != nil {
		return
	}
	_, send, receive, err := a.noise.ReadMessage(nil, body)
	if err != nil {
		return
	}
	now := h.now()
	s, err := newSession(p, slot.index, binary.LittleEndian.Uint32(datagram[4:]), true, send.UnsafeKey(), receive.UnsafeKey(), now)
	if err != nil {
		return
	}
	if !h.install(p, s, a) {
		return
	}
	p.upkeep.attempt = nil
	p.heard(now)
	p.move(m.from)
	p.handshaken.Store(int64(now))
	h.complete(p)
	// The peer may send when it has heard us by the new session.
	if !h.flush(p, now) {
		h.keepalive(p, now)
	}
}

// install makes the session of a handshake that we began the one to send with.
func (h *Host) install(p *Peer, s *Session, a *attempt) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.gone {
		return false
	}
	h.slots.put(s)
	p.retire(p.current.Load())
	if p.next != nil {
		// Both began at once, and both sessions may come to be in use. To not do so
		// again, one side leaves the next handshake to the other.
		if bytes.Compare(a.own.public[:], a.key[:]) < 0 {
			s.rekey += crossedRekey
		}
		p.retire(p.next)
		p.next = nil
	}
	p.current.Store(s)
	return true
}

// handshakeDue says whether a handshake that is asked for may begin now.
func (h *Host) handshakeDue(p *Peer, now moment) bool {
	u := p.upkeep
	if u.attempt != nil || u.initiated != 0 && now-u.initiated < device.RekeyTimeout {
		return false
	}
	return !h.confirming(p, now)
}

// confirming: the peer has begun a handshake, and should confirm it soon.
func (h *Host) confirming(p *Peer, now moment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return p.next != nil && now-p.next.created < confirmWithin
}
