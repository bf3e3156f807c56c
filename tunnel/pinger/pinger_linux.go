package pinger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/proof"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/udp"
	"github.com/weft-net/weft/tunnel/vxlan"
)

// Pinger sends probes, and takes in their answers while Run runs. Its methods may
// be called from any goroutine.
type Pinger struct {
	answered func(token uint64)
	mark     uint64
	prover   proof.Prover
	families [2]family // IPv4 first

	mu     sync.Mutex
	buffer []byte
}

// family is what there is for one inner, and for one outer family.
type family struct {
	answers *socket // inner
	unable  error   // why there is none
	vxlan   *udp.ProbeSocket
	noVXLAN error
}

// Open opens a Pinger in the network namespace of the calling thread. What the
// rights do not suffice for is an error of the probes that need it.
func Open(config Config) (*Pinger, error) {
	if config.Answered == nil {
		return nil, errors.New("open pinger: Config.Answered is missing")
	}
	p := &Pinger{
		answered: config.Answered, mark: rand.Uint64(), prover: proof.New(),
		buffer: make([]byte, vxlan.Overhead+tunnel.MaxPacket),
	}
	for i := range p.families {
		f := &p.families[i]
		f.noVXLAN = errors.New("no outer address of the family")
		f.answers, f.unable = openSocket(i == 0)
	}
	for _, addr := range config.Outer {
		f := p.of(addr)
		if f.vxlan != nil {
			return nil, errors.Join(fmt.Errorf("open pinger: Config.Outer %v: want one per family", config.Outer), p.Close())
		}
		if f.vxlan, f.noVXLAN = udp.OpenProbe(addr, false); f.noVXLAN != nil {
			f.vxlan = nil
		}
	}
	return p, nil
}

func (p *Pinger) of(addr netip.Addr) *family {
	if addr.Is4() {
		return &p.families[0]
	}
	return &p.families[1]
}

// Ping sends one echo request of size bytes, IP header included, by the kernel's
// routes. from is the address of this host that the answer comes to; where the
// host does not have it the kernel chooses one.
func (p *Pinger) Ping(from, to netip.Addr, size int, token uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.of(to)
	if f.answers == nil {
		return fmt.Errorf("ping %v: %w: %w", to, ErrUnable, f.unable)
	}
	request, err := p.put(p.buffer, from, to, size, token)
	if err == nil {
		err = f.answers.send(from, to, request[f.answers.headers():])
	}
	if err != nil {
		return fmt.Errorf("ping %v: %w", to, err)
	}
	return nil
}

// PingVXLAN does the same in a VXLAN datagram, past the routes.
func (p *Pinger) PingVXLAN(way VXLAN, to netip.Addr, size int, token uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.pingVXLAN(way, to, size, token); err != nil {
		return fmt.Errorf("ping %v in VXLAN to %v: %w", to, way.To, err)
	}
	return nil
}

func (p *Pinger) pingVXLAN(way VXLAN, to netip.Addr, size int, token uint64) error {
	inner, outer := p.of(to), p.of(way.To.Addr())
	switch {
	case inner.answers == nil:
		return fmt.Errorf("%w: %w", ErrUnable, inner.unable)
	case outer.vxlan == nil:
		return fmt.Errorf("%w: %w", ErrUnable, outer.noVXLAN)
	}
	request, err := p.put(p.buffer[vxlan.Overhead:], way.Local.Subnet.Addr(), to, size, token)
	if err != nil {
		return err
	}
	frame := vxlan.Frame{VNI: way.Local.VNI, To: way.MAC, From: way.Local.MAC, Type: vxlan.IPv6}
	if to.Is4() {
		frame.Type = vxlan.IPv4
	}
	datagram := p.buffer[:vxlan.Overhead+len(request)]
	frame.Put(datagram)
	return outer.vxlan.Send(way.To, datagram)
}

// put writes an echo request to the beginning of b.
func (p *Pinger) put(b []byte, from, to netip.Addr, size int, token uint64) ([]byte, error) {
	if size < 0 || size > tunnel.MaxPacket {
		return nil, fmt.Errorf("%d bytes: want at most %d", size, tunnel.MaxPacket)
	}
	echo := packet.Echo{
		Source: from, Destination: to, Identifier: p.of(to).answers.identifier,
		Sequence: uint16(token), Data: p.data(token, to),
	}
	return b[:size], packet.PutEchoRequest(b[:size], echo)
}

// tokenLen is what a probe begins with: a number that all probes of this Pinger
// have, the token, and the proof that it was sent to who answers.
const tokenLen = 8 + 8 + 4

func (p *Pinger) data(token uint64, to netip.Addr) []byte {
	data := binary.BigEndian.AppendUint64(make([]byte, 0, tokenLen), p.mark)
	data = binary.BigEndian.AppendUint64(data, token)
	return binary.BigEndian.AppendUint32(data, p.prover.Of(token, to))
}

// tokenOf is the token in the data of an answer from an address.
func (p *Pinger) tokenOf(data []byte, from netip.Addr) (token uint64, ok bool) {
	if len(data) < tokenLen || binary.BigEndian.Uint64(data) != p.mark {
		return 0, false
	}
	token = binary.BigEndian.Uint64(data[8:])
	return token, binary.BigEndian.Uint32(data[16:]) == p.prover.Of(token, from)
}

// Run takes in answers until ctx is done, which gives nil, or a socket fails. It
// closes the Pinger.
func (p *Pinger) Run(ctx context.Context) error {
	group, stop := errgroup.WithContext(ctx)
	for i := range p.families {
		if s := p.families[i].answers; s != nil {
			group.Go(func() error { return p.receive(s) })
		}
	}
	group.Go(func() error {
		<-stop.Done()
		return p.Close()
	})
	err := group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("run pinger: %w", err)
}

func (p *Pinger) receive(s *socket) error {
	buffer := make([]byte, tunnel.MaxPacket)
	for {
		data, from, err := s.receive(buffer)
		if err != nil {
			return err
		}
		if token, ok := p.tokenOf(data, from); ok {
			p.answered(token)
		}
	}
}

// Close frees the sockets. Run must not be called any more, and ends.
func (p *Pinger) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	closed := errors.New("it is closed")
	var errs []error
	for i := range p.families {
		f := &p.families[i]
		if f.answers != nil {
			errs = append(errs, f.answers.close())
			f.answers, f.unable = nil, closed
		}
		if f.vxlan != nil {
			errs = append(errs, f.vxlan.Close())
			f.vxlan, f.noVXLAN = nil, closed
		}
	}
	return errors.Join(errs...)
}
