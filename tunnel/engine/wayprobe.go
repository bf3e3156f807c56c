package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/peertable"
)

// wayNumber stands in probes of ways where others bear the number of a path.
const wayNumber = 0

// largestPlain is the inner size up to which probes leave by ordinary Sockets:
// larger ones might be fragmented on the way, and say nothing.
const largestPlain = 576

// ErrProbeSize means that this system sends no probe of the size.
var ErrProbeSize = fmt.Errorf("probes of more than %d bytes without sockets for them: %w", largestPlain, errors.ErrUnsupported)

// ProbeWay sends one echo request of size inner bytes to the network address of
// the peer with a prefix, by VXLAN or by WireGuard whatever the peer gets
// otherwise. Config.Answered is told the token when the answer comes, which may
// come by any way. Without keys for WireGuard a handshake is begun.
func (e *Engine) ProbeWay(prefix netip.Prefix, encap tunnel.Encap, size int, token uint64) error {
	if err := e.probeWay(prefix, encap, size, token); err != nil {
		return fmt.Errorf("probe %v by %s: %w", prefix, encap, err)
	}
	return nil
}

func (e *Engine) probeWay(prefix netip.Prefix, encap tunnel.Encap, size int, token uint64) error {
	peers := e.peers.Load()
	peer, ok := peers.Lookup(prefix.Addr())
	if !ok || !slices.Contains(peer.Prefixes, prefix) {
		return errors.New("no peer has the prefix")
	}
	// The way as if the peer got nothing else.
	to := &path{peer: &peertable.Entry{Peer: peer.Peer}}
	switch encap {
	case tunnel.EncapVXLAN:
		if peer.Encap == tunnel.EncapWireGuard {
			to.peer.Endpoint = peer.VXLAN
		}
		if !to.peer.Endpoint.IsValid() || peer.MAC == (tunnel.MAC{}) {
			return errors.New("the peer speaks no VXLAN")
		}
	case tunnel.EncapWireGuard:
		to.peer.Endpoint, to.sealed = peer.WireGuard, peers.sessions[peer.Number]
		if to.sealed == nil {
			return errors.New("the peer speaks no WireGuard, or this host does not")
		}
	default:
		return errors.New("not a way of the engine")
	}
	to.peer.Encap = encap
	return e.prober.probeWay(to, e.plainSocket(to), size, token)
}

// plainSocket is the Socket that the engine sends to a peer from.
func (e *Engine) plainSocket(to *path) tunnel.Socket {
	sealed := to.peer.Encap == tunnel.EncapWireGuard
	for _, w := range e.workers {
		for _, from := range w.sources {
			if from.sealed == sealed && from.Local().Addr().Is4() == to.peer.Endpoint.Addr().Is4() {
				return from.Socket
			}
		}
	}
	return nil
}

// probeWay sends a probe by a ProbeSocket, or by plain for want of one.
func (p *prober) probeWay(to *path, plain tunnel.Socket, size int, token uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	socket := p.socket(to)
	switch {
	case socket == nil && plain == nil:
		return errNoProbe
	case socket == nil && size > largestPlain:
		return ErrProbeSize
	case size < 0 || size > tunnel.MaxPacket:
		return fmt.Errorf("%d bytes: want at most %d", size, tunnel.MaxPacket)
	}
	datagram := p.buffer[:overhead(to.peer)+size]
	if err := p.putProbe(to, datagram, p.wayData(token, to.peer.Prefixes[0].Addr())); err != nil {
		return err
	}
	if socket != nil {
		if err := socket.Send(to.endpoint(), datagram); err != nil {
			return err
		}
	} else if _, err := plain.Send([]tunnel.Datagrams{{Addr: to.endpoint(), Parts: [][]byte{datagram}}}); err != nil {
		return err
	}
	p.counters.add(Probes, 1)
	p.counters.publish()
	return nil
}

// wayData is what a probe of a way to an inner address begins with.
func (p *prober) wayData(token uint64, to netip.Addr) []byte {
	data := make([]byte, probeData)
	binary.BigEndian.PutUint64(data, p.token)
	binary.BigEndian.PutUint64(data[8:], token)
	binary.BigEndian.PutUint32(data[16:], p.prover.Of(token, to))
	binary.BigEndian.PutUint32(data[20:], wayNumber)
	return data
}

// answeredWay takes in the answer to a probe of a way.
func (p *prober) answeredWay(echo packet.Echo) {
	token := binary.BigEndian.Uint64(echo.Data[8:])
	if p.answeredBy != nil && binary.BigEndian.Uint32(echo.Data[16:]) == p.prover.Of(token, echo.Source) {
		p.answeredBy(token)
	}
}
