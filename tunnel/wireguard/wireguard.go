// Package wireguard speaks the WireGuard protocol for the userspace engine. It
// opens no socket and reads no packet: the engine seals and opens transport data
// on its own workers with the sessions it gets from here, and Host.Run does the
// handshakes and timers of all peers in one goroutine.
//
// The handshake is Noise_IKpsk2 of github.com/flynn/noise, the replay window,
// cookies, rate limit and timestamps are those of golang.zx2c4.com/wireguard.
// Its device is not used: it has goroutines and queues for every peer and keeps
// the session keys to itself.
package wireguard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flynn/noise"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ratelimiter"
	"golang.zx2c4.com/wireguard/tai64n"

	"github.com/weft-net/weft/tunnel"
)

const (
	// HeaderLen is what stands before the ciphertext of transport data.
	HeaderLen = device.MessageTransportHeaderSize
	// Overhead is by how much a datagram is longer than its packet: header and tag.
	Overhead = device.MessageTransportSize

	tickEvery      = 250 * time.Millisecond
	queueLen       = 1024        // handshake messages that wait for Run
	unknownLen     = 64          // sources of unknown transport data that wait for Run
	stagedPackets  = 64          // per peer
	stagedBytes    = 96 << 10    // per peer
	stagedInAll    = 8 << 20     // bytes of all peers
	unknownEvery   = time.Second // what one peer's unknown datagrams may bring about
	confirmWithin  = time.Second // after which a responder with data to send begins a handshake itself
	crossedRekey   = 10 * time.Second
	futureLeeway   = time.Minute
	silentAfter    = device.KeepaliveTimeout + device.RekeyTimeout
	lastRekeyAfter = device.RejectAfterTime - device.KeepaliveTimeout - device.RekeyTimeout
)

// Config says what New makes.
type Config struct {
	// Key is what this host goes by and begins handshakes with. Handshakes that
	// others begin may go to Next as well; zero: none.
	Key, Next tunnel.SecretKey
	// Preshared is of all hosts; zero: none.
	Preshared tunnel.SecretKey
	// Send sends one datagram. It may be called from any goroutine and must not
	// keep the slice.
	Send   func(to netip.AddrPort, datagram []byte) error
	Logger *slog.Logger
}

// Host holds the peers and sessions of this host. Its methods may be called
// from any goroutine.
type Host struct {
	send  func(to netip.AddrPort, datagram []byte) error
	log   *slog.Logger
	epoch time.Time    // moments are counted from here, on the monotonic clock
	noise noise.Config // what all handshakes have in common

	slots   table
	queue   chan message
	unknown chan netip.AddrPort
	wake    chan struct{} // one in it: called is not empty
	staged  atomic.Int64  // bytes

	calling sync.Mutex
	called  []*Peer

	mu     sync.Mutex // no message is computed and nothing sent under it
	own    []*ownKey  // the one to begin handshakes with comes first
	peers  []*Peer
	byKey  map[identity]*Peer
	byAddr map[netip.Addr][]*Peer // of configured and of current endpoints

	// Of Run alone.
	active      map[*Peer]struct{}
	limiter     ratelimiter.Ratelimiter
	loadedUntil moment
	stamped     tai64n.Timestamp
	scratch     Scratch
	buffer      []byte
}

// ownKey is one of the keys this host goes by.
type ownKey struct {
	public  tunnel.PublicKey
	pair    noise.DHKey
	checker device.CookieChecker
}

// New returns a Host without peers.
func New(config Config) (*Host, error) {
	if config.Send == nil || config.Logger == nil {
		return nil, errors.New("make wireguard host: Send and Logger must be set")
	}
	h := &Host{
		send: config.Send, log: config.Logger,
		// A little before now, so that no moment is zero, which means never.
		epoch: time.Now().Add(-time.Second),
		noise: noise.Config{
			CipherSuite: noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s),
			Pattern:     noise.HandshakeIK,
			Prologue:    []byte(device.WGIdentifier),
			// Without a key of that kind it is all zero.
			PresharedKey: config.Preshared[:], PresharedKeyPlacement: 2,
		},
		queue:   make(chan message, queueLen),
		unknown: make(chan netip.AddrPort, unknownLen),
		wake:    make(chan struct{}, 1),
		active:  map[*Peer]struct{}{},
	}
	h.slots.init()
	if err := h.SetKeys(config.Key, config.Next); err != nil {
		return nil, fmt.Errorf("make wireguard host: %w", err)
	}
	return h, nil
}

// SetKeys replaces the keys this host goes by. Sessions go on.
func (h *Host) SetKeys(key, next tunnel.SecretKey) error {
	if key == (tunnel.SecretKey{}) {
		return errors.New("set wireguard keys: Key is zero; make one, as wg genkey does")
	}
	secrets := []tunnel.SecretKey{key}
	if next != (tunnel.SecretKey{}) && next != key {
		secrets = append(secrets, next)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	own := make([]*ownKey, len(secrets))
	for i, secret := range secrets {
		public := secret.Public()
		for _, known := range h.own {
			if known.public == public {
				own[i] = known // and the cookies it has handed out hold
			}
		}
		if own[i] == nil {
			own[i] = &ownKey{public: public, pair: noise.DHKey{Private: secret[:], Public: public[:]}}
			own[i].checker.Init(device.NoisePublicKey(public))
		}
	}
	h.own = own
	return nil
}

func (h *Host) ownKeys() []*ownKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.own
}

// Run does handshakes and timers until ctx is done, and returns nil. It is
// called once.
func (h *Host) Run(ctx context.Context) error {
	h.limiter.Init()
	defer h.limiter.Close()
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	ticking := true
	for {
		// Without an active peer nothing comes due.
		if want := len(h.active) > 0; want != ticking {
			if ticking = want; want {
				ticker.Reset(tickEvery)
			} else {
				ticker.Stop()
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
			h.attendCalled()
		case message := <-h.queue:
			h.handle(&message)
		case from := <-h.unknown:
			h.handleUnknown(from)
		case <-ticker.C:
			h.tick()
		}
	}
}

// call has Run attend to the peer.
func (h *Host) call(p *Peer) {
	if p.called.Swap(true) {
		return
	}
	h.calling.Lock()
	h.called = append(h.called, p)
	h.calling.Unlock()
	h.signal()
}

func (h *Host) signal() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *Host) attendCalled() {
	// A few at a time, so that answers are not left waiting behind many handshakes
	// that begin at once.
	const few = 16
	h.calling.Lock()
	called := slices.Clone(h.called[:min(len(h.called), few)])
	h.called = slices.Delete(h.called, 0, len(called))
	more := len(h.called) > 0
	if !more {
		h.called = nil
	}
	h.calling.Unlock()
	for _, p := range called {
		p.called.Store(false)
		h.attend(p, h.now())
	}
	if more {
		h.signal()
	}
}

// moment is a point in time as the duration since Host.epoch; zero is never.
type moment = time.Duration

func (h *Host) now() moment             { return h.at(time.Now()) }
func (h *Host) at(now time.Time) moment { return now.Sub(h.epoch) }
func (h *Host) time(at moment) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return h.epoch.Add(at)
}

// transmit sends what Run has to send. That a datagram does not go out is not
// different from its loss, which the timers see to.
func (h *Host) transmit(p *Peer, to netip.AddrPort, datagram []byte) {
	if err := h.send(to, datagram); err != nil {
		h.log.Debug("wireguard datagram not sent", "peer", p.config.Load().Name, "to", to, "error", err)
	}
}
