package wireguard

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Peer is one other host by one outer family. Its methods may be called from any
// goroutine.
type Peer struct {
	host     *Host
	current  atomic.Pointer[Session] // to send with
	endpoint atomic.Pointer[netip.AddrPort]
	roamed   atomic.Pointer[netip.AddrPort] // where it was heard last, if that is not as configured; nil: nowhere
	config   atomic.Pointer[PeerConfig]     // valid, its endpoint unmapped

	// Moments, of any goroutine.
	sent       atomic.Int64 // anything authenticated
	received   atomic.Int64 // anything authenticated
	unanswered atomic.Int64 // data sent first since anything was received
	owed       atomic.Int64 // data received first since anything was sent
	handshaken atomic.Int64

	asked     atomic.Bool // a handshake is wanted; Run takes it back
	called    atomic.Bool // in Host.called
	completed atomic.Bool // a worker has seen the session confirmed
	// reconfigured: a handshake in flight is to begin anew.
	reconfigured atomic.Bool

	staging     sync.Mutex
	staged      [][]byte
	stagedBytes int

	// With host.mu.
	gone     bool
	next     *Session    // of a responder, unconfirmed
	previous [2]*Session // the younger first; two, as crossing handshakes replace two at once
	bars     [2]bar      // of the keys in config, in their order

	// Of Run alone.
	upkeep *upkeep // nil: not active
	told   told
}

// told is what the log had last of a peer.
type told uint8

const (
	toldNothing told = iota
	toldUp
	toldSilent
)

// Session is the session to send with. It is nil when there is none; then a
// handshake has been asked for.
func (p *Peer) Session(now time.Time) *Session {
	s := p.current.Load()
	if s == nil {
		p.ask()
		return nil
	}
	age, counter := p.host.at(now)-s.created, s.counter.Load()
	if age >= device.RejectAfterTime || counter >= device.RejectAfterMessages {
		p.ask()
		return nil
	}
	if s.initiator && age >= s.rekey || counter >= device.RekeyAfterMessages {
		p.ask()
	}
	return s
}

// Endpoint is where to send: where the peer was last heard from, or where it is
// configured to be.
func (p *Peer) Endpoint() netip.AddrPort { return *p.endpoint.Load() }

// elsewhere is where else the peer may be.
func (p *Peer) elsewhere() netip.AddrPort {
	home := p.config.Load().Endpoint
	if roamed := p.roamed.Load(); roamed != nil && p.Endpoint() == home {
		return *roamed
	}
	return home
}

// Sent tells, once for a run of datagrams, that data was sent.
func (p *Peer) Sent(now time.Time) {
	at := p.host.at(now)
	p.traversed(at)
	if p.unanswered.Load() == 0 {
		p.unanswered.Store(int64(at))
	}
}

// traversed notes that something authenticated was sent.
func (p *Peer) traversed(at moment) {
	p.sent.Store(int64(at))
	if p.owed.Load() != 0 {
		p.owed.Store(0)
	}
}

// heard notes that something authenticated was received.
func (p *Peer) heard(at moment) {
	p.received.Store(int64(at))
	if p.unanswered.Load() != 0 {
		p.unanswered.Store(0)
	}
}

// Status is what is known of a peer.
type Status struct {
	Endpoint      netip.AddrPort
	Up            bool      // there is a session to send with
	LastHandshake time.Time // zero: none
	LastReceived  time.Time // anything authenticated; zero: nothing
}

// Status is for people; it does not ask for a session.
func (p *Peer) Status() Status {
	return Status{
		Endpoint:      p.Endpoint(),
		Up:            p.up(p.host.now()),
		LastHandshake: p.host.time(moment(p.handshaken.Load())),
		LastReceived:  p.host.time(moment(p.received.Load())),
	}
}

func (p *Peer) up(now moment) bool {
	s := p.current.Load()
	return s != nil && now-s.created < device.RejectAfterTime
}

// ask has Run see to a handshake. It stays asked for until one is done or given
// up, so that a peer that does not answer wakes nobody with every packet.
func (p *Peer) ask() {
	if !p.asked.Load() && p.asked.CompareAndSwap(false, true) {
		p.host.call(p)
	}
}

// Stage keeps a copy of a packet for when there is a session. It says false when
// there is too much already.
func (p *Peer) Stage(packet []byte) bool {
	if !p.keep(packet) {
		return false
	}
	// The session may have come before the packet was there to be seen.
	if p.current.Load() != nil {
		p.host.call(p)
	} else {
		p.ask()
	}
	return true
}

func (p *Peer) keep(packet []byte) bool {
	p.staging.Lock()
	defer p.staging.Unlock()
	size := len(packet)
	if len(p.staged) >= stagedPackets || p.stagedBytes+size > stagedBytes {
		return false
	}
	if p.host.staged.Add(int64(size)) > stagedInAll {
		p.host.staged.Add(int64(-size))
		return false
	}
	p.staged = append(p.staged, append([]byte(nil), packet...))
	p.stagedBytes += size
	return true
}

// unstage takes out what is staged.
func (p *Peer) unstage() [][]byte {
	p.staging.Lock()
	defer p.staging.Unlock()
	staged := p.staged
	p.host.staged.Add(int64(-p.stagedBytes))
	p.staged, p.stagedBytes = nil, 0
	return staged
}

// confirm makes the session that the initiator has used the one to send with.
func (p *Peer) confirm(s *Session, at moment) {
	h := p.host
	h.mu.Lock()
	s.unconfirmed.Store(false)
	promoted := p.next == s
	if promoted {
		p.retire(p.current.Load())
		p.current.Store(s)
		p.next = nil
	}
	h.mu.Unlock()
	if promoted {
		p.handshaken.Store(int64(at))
		p.completed.Store(true)
		h.call(p)
	}
}

// retire keeps a session for what is still on its way. With host.mu.
func (p *Peer) retire(s *Session) {
	if s == nil {
		return
	}
	p.host.slots.drop(p.previous[1])
	p.previous[1], p.previous[0] = p.previous[0], s
}

// forget drops the sessions for which f says so. With host.mu.
func (p *Peer) forget(f func(*Session) bool) (left int) {
	slots := &p.host.slots
	for _, at := range []**Session{&p.next, &p.previous[0], &p.previous[1]} {
		switch {
		case *at == nil:
		case f(*at):
			slots.drop(*at)
			*at = nil
		default:
			left++
		}
	}
	if s := p.current.Load(); s != nil {
		if !f(s) {
			return left + 1
		}
		slots.drop(s)
		p.current.Store(nil)
	}
	return left
}

// move makes from the endpoint. A peer does not leave its outer family, by which
// it is told from another with the same key.
func (p *Peer) move(from netip.AddrPort) {
	if at := p.Endpoint(); at == from || at == unmap(from) || at.Addr().Is4() != unmap(from).Addr().Is4() {
		return
	}
	h := p.host
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.gone {
		return
	}
	moved := unmap(from)
	h.unlist(p)
	p.endpoint.Store(&moved)
	if moved != p.config.Load().Endpoint {
		p.roamed.Store(&moved)
	}
	h.list(p)
}

func unmap(at netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}
