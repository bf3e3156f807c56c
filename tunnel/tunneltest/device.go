// Package tunneltest has what tests of packet-moving code need: in-memory
// Devices and Sockets, a lossy wire between Sockets, and a builder, cutter and
// checker of IP packets that share no code with what they test. It must never
// be imported by anything but tests.
package tunneltest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/weft-net/weft/tunnel"
)

// stored is a packet under way, in memory of its own.
type stored struct {
	offload tunnel.Offload
	data    []byte
}

// queue hands packets from one end of a Device pair to the other.
type queue struct {
	mu      sync.Mutex
	changed *sync.Cond
	packets []stored
	closed  bool
}

func newQueue() *queue {
	q := &queue{}
	q.changed = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(s stored) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return tunnel.ErrClosed
	}
	q.packets = append(q.packets, s)
	q.changed.Broadcast()
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Broadcast()
}

// Device is one end of a pair: what is written to one is read from the other.
type Device struct {
	name string
	in   *queue
	out  *queue

	mu       sync.Mutex
	mtu      int
	offloads tunnel.Offloads
	refuse   func(tunnel.Outgoing) error
}

var _ tunnel.Device = (*Device)(nil)

// NewDevices makes a pair with one MTU: the end for the code under test, whose
// Write accepts the given offloads, and the host's, whose Write accepts all.
func NewDevices(mtu int, offloads tunnel.Offloads) (device, host *Device) {
	up, down := newQueue(), newQueue()
	device = &Device{name: "weft0", in: down, out: up, mtu: mtu, offloads: offloads}
	host = &Device{name: "host", in: up, out: down, mtu: mtu, offloads: AllOffloads()}
	return device, host
}

// AllOffloads are the offloads of a Device or Socket that can do everything.
func AllOffloads() tunnel.Offloads { return tunnel.Offloads{Checksum: true, TCP: true, UDP: true} }

// Name implements tunnel.Device.
func (d *Device) Name() string { return d.name }

// MTU implements tunnel.Device.
func (d *Device) MTU() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mtu, nil
}

// SetMTU changes the MTU.
func (d *Device) SetMTU(mtu int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mtu = mtu
}

// Refuse makes Write fail for every packet for which f returns an error.
func (d *Device) Refuse(f func(tunnel.Outgoing) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = f
}

// Offloads implements tunnel.Device.
func (d *Device) Offloads() tunnel.Offloads { return d.offloads }

// Read implements tunnel.Device.
func (d *Device) Read(packets []tunnel.Incoming, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena {
		return 0, fmt.Errorf("read: arena of %d bytes: want at least %d", len(arena), tunnel.MinArena)
	}
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	for len(d.in.packets) == 0 && !d.in.closed {
		d.in.changed.Wait()
	}
	if d.in.closed {
		return 0, tunnel.ErrClosed
	}
	n, at := 0, 0
	for n < len(packets) && n < len(d.in.packets) {
		s := d.in.packets[n]
		at += tunnel.Headroom
		if at+len(s.data) > len(arena) {
			break
		}
		copy(arena[at:], s.data)
		packets[n] = tunnel.Incoming{Offload: s.offload, Data: arena[at : at+len(s.data)], Offset: at}
		at += len(s.data)
		n++
	}
	d.in.packets = d.in.packets[n:]
	return n, nil
}

// TryRead returns the next packet that is there, in memory of its own.
func (d *Device) TryRead() (data []byte, offload tunnel.Offload, ok bool) {
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	if len(d.in.packets) == 0 {
		return nil, tunnel.Offload{}, false
	}
	s := d.in.packets[0]
	d.in.packets = d.in.packets[1:]
	return s.data, s.offload, true
}

// Write implements tunnel.Device. Packets that break the rules of Outgoing are errors.
func (d *Device) Write(packets []tunnel.Outgoing) (int, error) {
	return tunnel.WriteEach(packets, func(packet *tunnel.Outgoing) error {
		if err := d.write(*packet); err != nil {
			return fmt.Errorf("write %s: %w", d.name, err)
		}
		return nil
	})
}

func (d *Device) write(packet tunnel.Outgoing) error {
	d.mu.Lock()
	refuse, offloads := d.refuse, d.offloads
	d.mu.Unlock()
	if refuse != nil {
		if err := refuse(packet); err != nil {
			return err
		}
	}
	switch packet.GSO {
	case tunnel.GSOTCP4, tunnel.GSOTCP6:
		if !offloads.TCP {
			return tunnel.ErrOffload
		}
	case tunnel.GSOUDP:
		if !offloads.UDP {
			return tunnel.ErrOffload
		}
	default:
		if packet.NeedsChecksum && !offloads.Checksum {
			return tunnel.ErrOffload
		}
	}
	var data []byte
	for _, part := range packet.Parts {
		data = append(data, part...)
	}
	if len(data) == 0 || len(data) > tunnel.MaxPacket {
		return fmt.Errorf("packet of %d bytes", len(data))
	}
	if packet.GSO != tunnel.GSONone && (!packet.NeedsChecksum || packet.SegmentSize == 0) {
		return errors.New("super-packet without a partial checksum or a segment size")
	}
	if packet.NeedsChecksum && len(packet.Parts[0]) < int(packet.ChecksumStart+packet.ChecksumOffset)+2 {
		return errors.New("first part does not hold every header")
	}
	return d.out.put(stored{packet.Offload, data})
}

// Close implements tunnel.Device. It closes both ends.
func (d *Device) Close() error {
	d.in.close()
	d.out.close()
	return nil
}
