package tunneltest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"github.com/weft-net/weft/tunnel"
)

// WireConfig says how bad a Wire is.
type WireConfig struct {
	Seed    uint64
	Loss    float64 // share of datagrams lost
	Reorder float64 // share of datagrams that the next one of the same Send overtakes
	MTU     int     // largest UDP payload; 0: no bound
	// HashPorts gives sent datagrams a source port by flow, as kernel VXLAN does.
	HashPorts bool
}

// Wire is an underlay: it carries datagrams between Sockets by address.
type Wire struct {
	config WireConfig

	mu      sync.Mutex
	random  *rand.Rand
	sockets map[netip.AddrPort]*Socket
}

// NewWire makes a Wire without Sockets.
func NewWire(config WireConfig) *Wire {
	return &Wire{
		config: config, random: rand.New(rand.NewPCG(config.Seed, 0)),
		sockets: map[netip.AddrPort]*Socket{},
	}
}

// datagram is one UDP datagram under way.
type datagram struct {
	from netip.AddrPort
	ecn  uint8
	data []byte
}

// Socket is a UDP socket on a Wire.
type Socket struct {
	wire     *Wire
	local    netip.AddrPort
	offloads tunnel.Offloads

	mu       sync.Mutex
	changed  *sync.Cond
	received []datagram
	closed   bool
	refuse   func(tunnel.Datagrams) error
}

var _ tunnel.Socket = (*Socket)(nil)

// Socket binds a Socket. With offloads.UDP it takes runs to send, and hands
// over what it receives in runs.
func (w *Wire) Socket(local netip.AddrPort, offloads tunnel.Offloads) *Socket {
	s := &Socket{wire: w, local: local, offloads: offloads}
	s.changed = sync.NewCond(&s.mu)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sockets[local] = s
	return s
}

// Local implements tunnel.Socket.
func (s *Socket) Local() netip.AddrPort { return s.local }

// Offloads implements tunnel.Socket.
func (s *Socket) Offloads() tunnel.Offloads { return s.offloads }

// Refuse makes Send fail for every run for which f returns an error.
func (s *Socket) Refuse(f func(tunnel.Datagrams) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// Send implements tunnel.Socket.
func (s *Socket) Send(batch []tunnel.Datagrams) (int, error) {
	for i, run := range batch {
		if err := s.send(run); err != nil {
			return i, fmt.Errorf("send to %v: %w", run.Addr, err)
		}
	}
	return len(batch), nil
}

func (s *Socket) send(run tunnel.Datagrams) error {
	s.mu.Lock()
	refuse, closed := s.refuse, s.closed
	s.mu.Unlock()
	if closed {
		return tunnel.ErrClosed
	}
	if refuse != nil {
		if err := refuse(run); err != nil {
			return err
		}
	}
	var data []byte
	for _, part := range run.Parts {
		data = append(data, part...)
	}
	size := run.SegmentSize
	if size == 0 {
		size = len(data)
	}
	count := (len(data) + size - 1) / size
	switch {
	case run.SegmentSize != 0 && !s.offloads.UDP:
		return tunnel.ErrOffload
	case len(data) > 65507 || s.offloads.MaxSegments > 0 && count > s.offloads.MaxSegments:
		return fmt.Errorf("run of %d bytes in %d datagrams", len(data), count)
	case s.wire.config.MTU > 0 && size > s.wire.config.MTU:
		return tunnel.ErrTooBig
	}
	from := s.local
	if s.wire.config.HashPorts {
		from = netip.AddrPortFrom(from.Addr(), uint16(32768+run.Flow%28000))
	}
	var datagrams []datagram
	for ; len(data) > 0; data = data[min(size, len(data)):] {
		datagrams = append(datagrams, datagram{from, run.ECN, data[:min(size, len(data))]})
	}
	s.wire.carry(run.Addr, datagrams)
	return nil
}

// Inject puts a datagram on the wire as if from any address.
func (w *Wire) Inject(from, to netip.AddrPort, ecn uint8, data []byte) {
	w.carry(to, []datagram{{from, ecn, append([]byte(nil), data...)}})
}

func (w *Wire) carry(to netip.AddrPort, datagrams []datagram) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := 0; i+1 < len(datagrams); i++ {
		if w.random.Float64() < w.config.Reorder {
			datagrams[i], datagrams[i+1] = datagrams[i+1], datagrams[i]
			i++
		}
	}
	socket := w.sockets[to]
	if socket == nil {
		return
	}
	for _, d := range datagrams {
		if w.random.Float64() >= w.config.Loss {
			socket.deliver(d)
		}
	}
}

func (s *Socket) deliver(d datagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = append(s.received, d)
	s.changed.Broadcast()
}

// Receive implements tunnel.Socket.
func (s *Socket) Receive(batch []tunnel.Datagrams, arena []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.received) == 0 && !s.closed {
		s.changed.Wait()
	}
	return s.take(batch, arena)
}

// TryReceive is Receive for a Socket that is polled: it returns 0 if nothing is there.
func (s *Socket) TryReceive(batch []tunnel.Datagrams, arena []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(batch, arena)
}

// take must be called with mu held.
func (s *Socket) take(batch []tunnel.Datagrams, arena []byte) (n int, err error) {
	if s.closed {
		return 0, tunnel.ErrClosed
	}
	for n < len(batch) && len(s.received) > 0 && len(arena) >= tunnel.MaxPacket {
		run, taken := s.nextRun(arena)
		batch[n] = run
		arena = arena[len(run.Data):]
		s.received = s.received[taken:]
		n++
	}
	return n, nil
}

// nextRun joins datagrams as UDP receive offload does: from one address, of
// one size but the last.
func (s *Socket) nextRun(arena []byte) (tunnel.Datagrams, int) {
	first := s.received[0]
	used, taken := copy(arena, first.data), 1
	run := tunnel.Datagrams{Addr: first.from, ECN: first.ecn}
	for s.offloads.UDP && taken < len(s.received) && taken < 64 {
		next := s.received[taken]
		if next.from != first.from || next.ecn != first.ecn || len(next.data) > len(first.data) ||
			used+len(next.data) > tunnel.MaxPacket {
			break
		}
		run.SegmentSize = len(first.data)
		used += copy(arena[used:], next.data)
		taken++
		if len(next.data) < len(first.data) {
			break
		}
	}
	run.Data = arena[:used]
	return run, taken
}

// Close implements tunnel.Socket.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.changed.Broadcast()
	return nil
}
