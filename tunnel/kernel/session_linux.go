package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/tunnel"
)

// sessionLife is how long a WireGuard session lasts after its handshake; the
// protocol refuses older keys, and renews them before while there is traffic.
const sessionLife = 3 * time.Minute

// isLive reports whether a peer has a session. A handshake in the future is
// that of a clock that was set back.
func isLive(peer wgtypes.Peer) bool {
	return !peer.LastHandshakeTime.IsZero() && time.Since(peer.LastHandshakeTime) < sessionLife
}

// endpointOf returns where packets to the peer go now; zero: nowhere.
func endpointOf(peer wgtypes.Peer) netip.AddrPort {
	if peer.Endpoint == nil {
		return netip.AddrPort{}
	}
	endpoint := peer.Endpoint.AddrPort()
	return netip.AddrPortFrom(endpoint.Addr().Unmap().WithZone(""), endpoint.Port())
}

// directs reports whether Apply is to set the peer's endpoint. The kernel sends
// to where a peer was last heard from. While there is a session, that is right,
// even if it is not what the peer has published: it may be behind NAT, and has
// proven by its key that it is there. A session that is over proves nothing: the
// peer may never answer there again, and would be lost for good although its
// lease says where it is. So an endpoint is set when it is news, or when there
// is no session to go by.
func (w *wireguard) directs(want tunnel.WireGuardPeer) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	published, known := w.published[want.Key()]
	return !w.live[want.Key()] || known && published != want.Endpoint
}

func (w *wireguard) publish(want tunnel.WireGuardPeer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.published[want.Key()] = want.Endpoint
}

// forget drops what is remembered of peers that are gone.
func (w *wireguard) forget(gone func(tunnel.Key) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.published, func(key tunnel.Key, _ netip.AddrPort) bool { return gone(key) })
	maps.DeleteFunc(w.live, func(key tunnel.Key, _ bool) bool { return gone(key) })
}

// peerOf returns a peer as an object: with the endpoint it was given, as long
// as it has a session, wherever it has roamed to.
func (w *wireguard) peerOf(link string, peer wgtypes.Peer) tunnel.WireGuardPeer {
	have := tunnel.WireGuardPeer{
		Link: link, PublicKey: tunnel.PublicKey(peer.PublicKey), Endpoint: endpointOf(peer),
		Keepalive: int(peer.PersistentKeepaliveInterval / time.Second),
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if published, known := w.published[have.Key()]; known && isLive(peer) {
		have.Endpoint = published
	}
	if len(peer.AllowedIPs) == 1 {
		have.Subnet, _ = prefixOf(&peer.AllowedIPs[0])
	}
	if tunnel.SecretKey(peer.PresharedKey) != w.keys.Preshared || !have.Subnet.IsValid() {
		have.Keepalive = notAsWanted
	}
	return have
}

// wireguard fills in the devices that were found, and lists their peers.
func (o *observation) wireguard() error {
	w := o.driver.wireguard
	live := make(map[tunnel.Key]bool)
	for _, name := range []string{wireguardName, wireguardName6} {
		key := tunnel.Key{Kind: tunnel.KindLink, Name: name}
		link, found := o.objects[key].(tunnel.Link)
		if !found {
			continue
		}
		device, err := w.device(name)
		if errors.Is(err, unix.ENODEV) {
			delete(o.objects, key) // gone since it was listed
			continue
		}
		if err != nil {
			return explainRights(err)
		}
		link.Port, link.PublicKey = uint16(device.ListenPort), tunnel.PublicKey(device.PublicKey)
		if device.FirewallMark != 0 {
			link.MTU = notAsWanted
		}
		o.objects[key] = link
		for _, peer := range device.Peers {
			have := w.peerOf(name, peer)
			o.objects[have.Key()] = have
			live[have.Key()] = isLive(peer)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live = live
	return nil
}

// WireGuardSessions returns the state of every peer, by the key of its
// tunnel.WireGuardPeer.
func (d *Driver) WireGuardSessions(ctx context.Context) (map[tunnel.Key]WireGuardSession, error) {
	sessions := make(map[tunnel.Key]WireGuardSession)
	for _, name := range []string{wireguardName, wireguardName6} {
		err := d.ready(ctx)
		if err == nil {
			_, err = d.own(name)
		}
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		var device *wgtypes.Device
		if err == nil {
			device, err = d.wireguard.device(name)
		}
		if err != nil {
			return nil, fmt.Errorf("read sessions: %w", explainRights(err))
		}
		for _, peer := range device.Peers {
			key := tunnel.WireGuardPeer{Link: name, PublicKey: tunnel.PublicKey(peer.PublicKey)}.Key()
			sessions[key] = WireGuardSession{
				Endpoint: endpointOf(peer), LastHandshake: peer.LastHandshakeTime,
				Received: uint64(peer.ReceiveBytes), Sent: uint64(peer.TransmitBytes),
			}
		}
	}
	return sessions, nil
}
