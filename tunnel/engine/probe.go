package engine

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/vxlan"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// probe sends one probe. One that cannot be sent is as good as lost.
func (p *prober) probe(to *path, size int, now time.Time) {
	socket, datagram := p.socket(to), p.buffer[:overhead(to.peer)+size]
	if socket == nil || p.putProbe(to, datagram, p.data(now, uint32(size), to.number)) != nil {
		return
	}
	if socket.Send(to.endpoint(), datagram) == nil {
		p.counters.add(Probes, 1)
	}
}

// data is what a probe begins with, and what its answer is known by.
func (p *prober) data(now time.Time, size, number uint32) []byte {
	data := make([]byte, probeData)
	binary.BigEndian.PutUint64(data, p.token)
	binary.BigEndian.PutUint64(data[8:], uint64(now.Sub(p.epoch)))
	binary.BigEndian.PutUint32(data[16:], size)
	binary.BigEndian.PutUint32(data[20:], number)
	return data
}

// Reasons for which no probe leaves.
var (
	errNoProbe = errors.New("no probe socket of the peer's outer family")
	errNoLocal = errors.New("no address of our own to probe from")
	errNoKeys  = errors.New("no keys yet")
)

// putProbe fills a datagram with an echo request to a peer that begins with data.
func (p *prober) putProbe(to *path, datagram, data []byte) error {
	local := localOf(p.locals, to.innerIs4())
	if local == nil {
		return errNoLocal
	}
	echo := packet.Echo{Source: local.Subnet.Addr(), Destination: to.peer.Prefixes[0].Addr(), Identifier: p.identifier, Data: data}
	if to.peer.Encap == tunnel.EncapWireGuard {
		return p.sealProbe(to, datagram, echo)
	}
	if err := packet.PutEchoRequest(datagram[vxlan.Overhead:], echo); err != nil {
		return err
	}
	frame := vxlan.Frame{VNI: to.peer.VNI, To: to.peer.MAC, From: local.MAC, Type: vxlan.IPv6}
	if to.innerIs4() {
		frame.Type = vxlan.IPv4
	}
	frame.Put(datagram)
	return nil
}

func (p *prober) sealProbe(to *path, datagram []byte, echo packet.Echo) error {
	plain := p.plain[:len(datagram)-wireguard.Overhead]
	if err := packet.PutEchoRequest(plain, echo); err != nil {
		return err
	}
	if to.sealed == nil {
		return errNoKeys
	}
	session := to.sealed.Session(time.Now())
	if session == nil {
		return errNoKeys
	}
	counter, ok := session.Reserve(1)
	if !ok {
		return errNoKeys
	}
	session.Seal(datagram, plain, counter, &p.scratch)
	return nil
}
