package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// errNoSocket is why a handshake does not leave.
var errNoSocket = errors.New("send handshake: no socket of the peer's outer family")

// openWireGuard makes the sessions' home, where there are Sockets for it.
func (e *Engine) openWireGuard(config Config) (err error) {
	var sockets [2]tunnel.Socket // by outer family, IPv4 first
	for _, worker := range config.Workers {
		for _, socket := range worker.Sealed {
			if of := &sockets[familyIndex(socket.Local().Addr().Is4())]; *of == nil {
				*of = socket
			}
		}
	}
	if sockets == ([2]tunnel.Socket{}) {
		return nil
	}
	keys := config.WireGuard
	keys.Logger = config.Logger
	keys.Send = func(to netip.AddrPort, datagram []byte) error {
		socket := sockets[familyIndex(to.Addr().Is4())]
		if socket == nil {
			return errNoSocket
		}
		_, err := socket.Send([]tunnel.Datagrams{{Addr: to, Parts: [][]byte{datagram}}})
		return err
	}
	if e.wireguard, err = wireguard.New(keys); err != nil {
		return fmt.Errorf("open WireGuard: %w", err)
	}
	return nil
}

// sessionsOf is every peer as WireGuard knows it; nil for those without keys.
func (e *Engine) sessionsOf(entries []*peertable.Entry) ([]*wireguard.Peer, error) {
	sessions := make([]*wireguard.Peer, len(entries))
	if e.wireguard == nil {
		return sessions, nil
	}
	// A host's two inner families have one session where they share the outer one.
	type place struct {
		keys tunnel.WireGuardKeys
		at   netip.AddrPort
	}
	var configs []wireguard.PeerConfig
	numbers, of := map[place]int{}, make([]int, len(entries)) // of configs, counted from 1
	for i, entry := range entries {
		if !entry.WireGuard.IsValid() {
			continue
		}
		at := place{entry.Keys, entry.WireGuard}
		if numbers[at] == 0 {
			configs = append(configs, wireguard.PeerConfig{
				Name: entry.Name, Keys: entry.Keys, Endpoint: entry.WireGuard, Keepalive: time.Duration(entry.Keepalive) * time.Second,
			})
			numbers[at] = len(configs)
		}
		of[i] = numbers[at]
	}
	peers, err := e.wireguard.SetPeers(configs)
	for i, number := range of {
		if number > 0 {
			sessions[i] = peers[number-1]
		}
	}
	return sessions, err
}

// WireGuard are the sessions, for their status and keys; nil where there are none.
func (e *Engine) WireGuard() *wireguard.Host { return e.wireguard }

// Sessions is how WireGuard stands with each peer that has it, by the first of
// the peer's prefixes.
func (e *Engine) Sessions() map[netip.Prefix]wireguard.Status {
	peers := e.peers.Load()
	sessions := map[netip.Prefix]wireguard.Status{}
	for i, peer := range peers.Entries() {
		if session := peers.sessions[i]; session != nil {
			sessions[peer.Prefixes[0]] = session.Status()
		}
	}
	return sessions
}
