// Package packetwise makes a tunnel.Device of a TUN that takes finished packets
// one at a time, as those of macOS, Windows and FreeBSD do. It must never be
// used where the system can batch.
package packetwise

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// prefix is the space in front of a written packet for the system's own header,
// which is four bytes at most.
const prefix = 16

// Device implements tunnel.Device with one system call per packet.
type Device struct {
	tun      tun.Device
	name     string
	offloads tunnel.Offloads
	closed   atomic.Bool
	events   sync.WaitGroup

	readMu sync.Mutex
	bufs   [1][]byte
	sizes  [1]int

	writeMu sync.Mutex
	joined  []byte
	packets [1][]byte
}

// Errors that come again and again for a caller that gets them once are made once.
var (
	errArena   = fmt.Errorf("read: arena is smaller than %d bytes", tunnel.MinArena)
	errEmpty   = errors.New("write: a packet without bytes")
	errTooLong = fmt.Errorf("write: a packet of more than %d bytes", tunnel.MaxPacket)
	errOffload = fmt.Errorf("write: %w: it is off, as Offloads says", tunnel.ErrOffload)
)

// Config is what a Device is made of.
type Config struct {
	// TUN is then the Device's to close.
	TUN tun.Device
	// Large: the system takes packets larger than the MTU. TCP super-packets are
	// then written as one packet with its checksum finished, which saves the
	// system's stack as much per packet as if it had joined them itself.
	Large bool
}

// New makes a Device.
func New(config Config) (*Device, error) {
	t := config.TUN
	d := &Device{
		tun: t, joined: make([]byte, prefix, prefix+tunnel.MaxPacket),
		offloads: tunnel.Offloads{Why: []string{"packets are read and written one by one: not done otherwise on this system"}},
	}
	if config.Large {
		d.offloads = tunnel.Offloads{Checksum: true, TCP: true, Why: []string{
			"packets are read one by one: not done otherwise on this system",
			"UDP super-packets are written one by one: the system takes none",
		}}
	}
	var err error
	if d.name, err = t.Name(); err != nil {
		return nil, errors.Join(fmt.Errorf("get name of TUN: %w", err), t.Close())
	}
	// The TUN stops where nobody takes its events, and closes them with itself.
	d.events.Go(func() {
		for range t.Events() {
			continue
		}
	})
	return d, nil
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// MTU asks the system.
func (d *Device) MTU() (int, error) { return d.tun.MTU() }

// Offloads says what Write takes, and why not more.
func (d *Device) Offloads() tunnel.Offloads { return d.offloads }

// Read waits for one packet.
func (d *Device) Read(packets []tunnel.Incoming, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena {
		return 0, errArena
	}
	d.readMu.Lock()
	defer d.readMu.Unlock()
	d.bufs[0] = arena[:tunnel.MinArena]
	for len(packets) > 0 {
		n, err := d.tun.Read(d.bufs[:], d.sizes[:], tunnel.Headroom)
		if d.closed.Load() || errors.Is(err, os.ErrClosed) {
			return 0, tunnel.ErrClosed
		}
		if err != nil {
			return 0, fmt.Errorf("read from %s: %w", d.name, err)
		}
		if size := d.sizes[0]; n > 0 && size > 0 {
			end := tunnel.Headroom + size
			packets[0] = tunnel.Incoming{Data: arena[tunnel.Headroom:end:end], Offset: tunnel.Headroom}
			return 1, nil
		}
	}
	return 0, nil
}

// Write writes packets in order.
func (d *Device) Write(packets []tunnel.Outgoing) (int, error) {
	d.writeMu.Lock()
	defer d.writeMu.Unlock()
	return tunnel.WriteEach(packets, d.writeOne)
}

func (d *Device) writeOne(p *tunnel.Outgoing) error {
	if d.closed.Load() {
		return tunnel.ErrClosed
	}
	if !d.accepts(&p.Offload) {
		return errOffload
	}
	d.joined = d.joined[:prefix]
	for _, part := range p.Parts {
		if len(d.joined)+len(part) > cap(d.joined) {
			return errTooLong
		}
		d.joined = append(d.joined, part...)
	}
	if len(d.joined) == prefix {
		return errEmpty
	}
	if p.NeedsChecksum {
		if err := packet.Finish(d.joined[prefix:], int(p.ChecksumStart), int(p.ChecksumOffset)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	d.packets[0] = d.joined
	_, err := d.tun.Write(d.packets[:], prefix)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return tunnel.ErrClosed
	}
	return fmt.Errorf("write to %s: %w", d.name, err)
}

// accepts reports whether o is within Offloads.
func (d *Device) accepts(o *tunnel.Offload) bool {
	switch o.GSO {
	case tunnel.GSOTCP4, tunnel.GSOTCP6:
		return d.offloads.TCP
	case tunnel.GSOUDP:
		return d.offloads.UDP
	}
	return !o.NeedsChecksum || d.offloads.Checksum
}

// Close ends a Read that waits and removes the device.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	err := d.tun.Close()
	d.events.Wait()
	if err != nil {
		return fmt.Errorf("close TUN %s: %w", d.name, err)
	}
	return nil
}
