package wireguard

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/replay"
)

// Scratch is what Seal and Open work with, one per goroutine.
type Scratch struct {
	nonce [chacha20poly1305.NonceSize]byte
}

// Session is one pair of transport keys. Its methods may be called from any
// goroutine; none of them allocates, unless the peer has moved.
type Session struct {
	peer      *Peer
	index     uint32 // ours, which datagrams to us carry
	remote    uint32 // the peer's
	initiator bool
	created   moment
	rekey     time.Duration // age at which the initiator asks for the next session
	seal      cipher.AEAD
	open      cipher.AEAD // nil: an initiation in flight
	// unconfirmed: nothing of the initiator has come yet, and the responder may
	// not send.
	unconfirmed atomic.Bool

	_       cpu.CacheLinePad
	counter atomic.Uint64
	_       cpu.CacheLinePad
	window  sync.Mutex
	filter  replay.Filter
}

func newSession(p *Peer, index, remote uint32, initiator bool, send, receive [32]byte, now moment) (*Session, error) {
	seal, err := chacha20poly1305.New(send[:])
	if err != nil {
		return nil, fmt.Errorf("make session: %w", err)
	}
	open, err := chacha20poly1305.New(receive[:])
	if err != nil {
		return nil, fmt.Errorf("make session: %w", err)
	}
	s := &Session{
		peer: p, index: index, remote: remote, initiator: initiator,
		created: now, rekey: device.RekeyAfterTime, seal: seal, open: open,
	}
	s.unconfirmed.Store(!initiator)
	return s, nil
}

// Peer is whose session it is.
func (s *Session) Peer() *Peer { return s.peer }

// Reserve takes n counters in a row, of which it returns the first. It says
// false at the limit of messages, where the session is of no use any more.
func (s *Session) Reserve(n int) (counter uint64, ok bool) {
	end := s.counter.Add(uint64(n))
	return end - uint64(n), end <= device.RejectAfterMessages
}

// Seal writes the datagram that carries plaintext to dst: len(plaintext)+Overhead
// bytes that do not overlap plaintext. The counter is a reserved one and is used
// once. Nothing is padded; who wants that hands over a padded plaintext.
func (s *Session) Seal(dst, plaintext []byte, counter uint64, scratch *Scratch) {
	binary.LittleEndian.PutUint32(dst, device.MessageTransportType)
	binary.LittleEndian.PutUint32(dst[device.MessageTransportOffsetReceiver:], s.remote)
	binary.LittleEndian.PutUint64(dst[device.MessageTransportOffsetCounter:], counter)
	binary.LittleEndian.PutUint64(scratch.nonce[4:], counter)
	s.seal.Seal(dst[HeaderLen:HeaderLen], scratch.nonce[:], plaintext, nil)
}

// Open authenticates a datagram of transport data and decrypts it in place.
// Plaintext lies in datagram; it is empty for a keepalive, and may end in padding
// of zeros. Whether it came before is for Fresh to say.
func (s *Session) Open(datagram []byte, scratch *Scratch) (plaintext []byte, counter uint64, ok bool) {
	if len(datagram) < Overhead || binary.LittleEndian.Uint32(datagram) != device.MessageTransportType {
		return nil, 0, false
	}
	counter = binary.LittleEndian.Uint64(datagram[device.MessageTransportOffsetCounter:])
	binary.LittleEndian.PutUint64(scratch.nonce[4:], counter)
	plaintext, err := s.open.Open(datagram[HeaderLen:HeaderLen], scratch.nonce[:], datagram[HeaderLen:], nil)
	return plaintext, counter, err == nil
}

// LockReplay locks the replay window for a run of calls of Fresh.
func (s *Session) LockReplay() { s.window.Lock() }

// UnlockReplay ends what LockReplay began.
func (s *Session) UnlockReplay() { s.window.Unlock() }

// Fresh says whether an opened datagram with this counter is the first, and not
// too old to tell. The replay window is locked.
func (s *Session) Fresh(counter uint64) bool {
	return s.filter.ValidateCounter(counter, device.RejectAfterMessages)
}

// Received tells, once for a run of datagrams of which at least one was fresh,
// that the peer was heard; data: not only keepalives. A session that waited for
// that is now the one to send with, and the peer's endpoint is where it came from.
func (s *Session) Received(now time.Time, from netip.AddrPort, data bool) {
	p := s.peer
	at := p.host.at(now)
	if s.unconfirmed.Load() {
		p.confirm(s, at)
	}
	p.heard(at)
	if data && p.owed.Load() == 0 {
		p.owed.Store(int64(at))
	}
	p.move(from)
	if s.initiator && at-s.created >= lastRekeyAfter && p.current.Load() == s {
		p.ask()
	}
}
