package wireguard

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// PeerConfig is a peer as it is configured.
type PeerConfig struct {
	Name string // for logs
	Keys tunnel.WireGuardKeys
	// Endpoint is where the peer is until it is heard from elsewhere. Its family
	// and a key tell one peer from another.
	Endpoint  netip.AddrPort
	Keepalive time.Duration // 0: none
}

// identity is what initiations are told apart by: the same host may be a peer by
// either outer family, with sessions of its own.
type identity struct {
	key tunnel.PublicKey
	ip4 bool
}

// SetPeers replaces all peers. One that was there before, by one of its keys and
// its outer family, keeps its Peer and sessions; where it was heard from holds
// until another endpoint is configured. There is one Peer per config, in the same
// order; those that cannot be used are nil and in the error.
func (h *Host) SetPeers(configs []PeerConfig) ([]*Peer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	result := make([]*Peer, len(configs))
	byKey := make(map[identity]*Peer, len(configs))
	kept := make(map[*Peer]bool, len(h.peers))
	for i, config := range configs {
		config.Endpoint = unmap(config.Endpoint)
		if config.Keys[1] == config.Keys[0] {
			config.Keys[1] = tunnel.PublicKey{}
		}
		if err := h.check(config, byKey); err != nil {
			errs = append(errs, fmt.Errorf("use wireguard peer %s: %w", config.Name, err))
			continue
		}
		p := h.find(config, kept)
		if p == nil {
			p = &Peer{host: h}
		}
		kept[p] = true
		p.configure(config)
		for _, id := range identities(config) {
			byKey[id] = p
		}
		result[i] = p
	}
	for _, p := range h.peers {
		if !kept[p] {
			p.leave()
		}
	}
	h.byKey = byKey
	h.peers = slices.DeleteFunc(slices.Clone(result), func(p *Peer) bool { return p == nil })
	h.byAddr = make(map[netip.Addr][]*Peer, len(h.peers))
	for _, p := range h.peers {
		h.list(p)
		if p.config.Load().Keepalive > 0 {
			h.call(p)
		}
	}
	return result, errors.Join(errs...)
}

// check says why a peer cannot be used beside those that are there already.
func (h *Host) check(config PeerConfig, byKey map[identity]*Peer) error {
	addr := config.Endpoint.Addr()
	switch {
	case config.Keys[0] == (tunnel.PublicKey{}):
		return errors.New("its first key is zero; it has to publish one")
	case !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || config.Endpoint.Port() == 0:
		return fmt.Errorf("endpoint %s: want a unicast address and a port", config.Endpoint)
	case config.Keepalive < 0:
		return fmt.Errorf("keepalive %s is negative; 0 means none", config.Keepalive)
	}
	for _, id := range identities(config) {
		for _, own := range h.own {
			if own.public == id.key {
				return fmt.Errorf("key %s is this host's own; every host needs its own", id.key)
			}
		}
		if other := byKey[id]; other != nil {
			return fmt.Errorf("key %s is also that of %s; every host needs its own", id.key, other.config.Load().Name)
		}
	}
	return nil
}

func identities(config PeerConfig) []identity {
	ids := []identity{{config.Keys[0], config.Endpoint.Addr().Is4()}}
	if config.Keys[1] != (tunnel.PublicKey{}) {
		ids = append(ids, identity{config.Keys[1], ids[0].ip4})
	}
	return ids
}

// find returns the peer of before that has one of the keys.
func (h *Host) find(config PeerConfig, taken map[*Peer]bool) *Peer {
	for _, id := range identities(config) {
		if p := h.byKey[id]; p != nil && !taken[p] {
			return p
		}
	}
	return nil
}

// configure takes over a config. With host.mu.
func (p *Peer) configure(config PeerConfig) {
	old := p.config.Load()
	if old != nil && *old == config {
		return
	}
	var bars [2]bar
	for i, key := range config.Keys {
		if old == nil || key == (tunnel.PublicKey{}) {
			continue
		}
		if was := slices.Index(old.Keys[:], key); was >= 0 {
			bars[i] = p.bars[was]
		}
	}
	p.bars = bars
	p.config.Store(&config)
	if old == nil || old.Endpoint != config.Endpoint {
		p.endpoint.Store(&config.Endpoint)
		p.roamed.Store(nil)
	}
	if old != nil {
		p.reconfigured.Store(true)
		p.host.call(p)
	}
}

// leave ends what the peer has. With host.mu.
func (p *Peer) leave() {
	p.gone = true
	p.forget(func(*Session) bool { return true })
	p.host.call(p)
}

// list enters the peer where handleUnknown looks, unlist takes it out. With mu.
func (h *Host) list(p *Peer) {
	for _, addr := range p.addrs() {
		if !slices.Contains(h.byAddr[addr], p) {
			h.byAddr[addr] = append(h.byAddr[addr], p)
		}
	}
}

func (h *Host) unlist(p *Peer) {
	for _, addr := range p.addrs() {
		left := slices.DeleteFunc(h.byAddr[addr], func(other *Peer) bool { return other == p })
		if h.byAddr[addr] = left; len(left) == 0 {
			delete(h.byAddr, addr)
		}
	}
}

func (p *Peer) addrs() [2]netip.Addr {
	return [2]netip.Addr{p.config.Load().Endpoint.Addr(), p.Endpoint().Addr()}
}

// Contact is a peer as another run of the program needs to know it.
type Contact struct {
	Key      tunnel.PublicKey
	Endpoint netip.AddrPort
}

// Active is the peers that have a session, and where they are now.
func (h *Host) Active() []Contact {
	h.mu.Lock()
	defer h.mu.Unlock()
	var active []Contact
	now := h.now()
	for _, p := range h.peers {
		if p.up(now) {
			active = append(active, Contact{p.config.Load().Keys[0], p.Endpoint()})
		}
	}
	return active
}

// Greet begins handshakes with peers at once: after a restart, with those that
// were Active before, which do not know that their sessions are no more. Where
// one was is tried first, then where it is configured to be. Those that are not
// peers are passed over.
func (h *Host) Greet(contacts ...Contact) {
	for _, contact := range contacts {
		contact.Endpoint = unmap(contact.Endpoint)
		h.mu.Lock()
		p := h.byKey[identity{contact.Key, contact.Endpoint.Addr().Is4()}]
		h.mu.Unlock()
		if p != nil && contact.Endpoint.IsValid() && !p.up(h.now()) {
			p.move(contact.Endpoint)
			p.ask()
		}
	}
}
