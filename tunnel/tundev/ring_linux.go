package tundev

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/ring"
)

const (
	// ringSlots is how many packets can wait to be read, and ringLarge how many large
	// ones. With fewer of these the kernel often has to be asked to go on.
	ringSlots = 64
	ringLarge = 16
	// ringWrites is how many packets one call writes at most.
	ringWrites = 64
	// slotSize is the space of one packet with its Headroom. The virtio header is read
	// to the end of that.
	slotSize = (tunnel.MinArena + 1<<10) &^ (1<<10 - 1)
)

// ringed is what a Device works with that reads and writes by a Ring.
type ringed struct {
	stream  *ring.Stream
	writes  *ring.Writes
	headers [ringWrites]vnetHeader
	packets [ringWrites]*tunnel.Outgoing // that are queued
}

// UseRing has a Device that was opened to be polled read and write by r, which
// belongs to the thread that calls its Start. Descriptor is then of no more use.
func (d *Device) UseRing(r *ring.Ring) (*ring.Stream, error) {
	stream, err := r.Stream(ring.StreamConfig{
		Descriptor: d.fd, Slots: ringSlots, Large: ringLarge,
		SlotSize: slotSize, Offset: tunnel.Headroom - len(vnetHeader{}),
	})
	if err != nil {
		return nil, fmt.Errorf("read %s by io_uring: %w", d.name, err)
	}
	d.ring = &ringed{stream: stream, writes: r.Writes(d.fd, ringWrites, maxVectors)}
	return stream, nil
}

// Arena is the arena that Read is to be given by those that use a Ring; else nil.
func (d *Device) Arena() []byte {
	if d.ring == nil {
		return nil
	}
	return d.ring.stream.Memory()
}

// More reports whether a Read that did not fill what it was given may be followed
// by one that has something, too. It says so only with a Ring.
func (d *Device) More() bool { return d.ring != nil && d.ring.stream.Dry() }

// take is Read by a Ring.
func (d *Device) take(packets []tunnel.Incoming) (n int, err error) {
	stream := d.ring.stream
	if err := stream.Refill(); err != nil {
		return 0, fmt.Errorf("read from %s: %w", d.name, err)
	}
	memory := stream.Memory()
	for n < len(packets) {
		slot, ok, errno := stream.Take()
		if !ok {
			return n, d.readError(errno)
		}
		at := slot.Number*slotSize + tunnel.Headroom
		header := (*vnetHeader)(memory[at-len(vnetHeader{}):])
		size := slot.Length - len(header)
		offload, ok := header.decode(size)
		if size <= 0 || size > tunnel.MaxPacket || !ok {
			continue
		}
		packets[n] = tunnel.Incoming{Offload: offload, Data: memory[at:][:size:size], Offset: at}
		n++
	}
	return n, nil
}

// put is Write by a Ring.
func (d *Device) put(packets []tunnel.Outgoing) (int, error) {
	w := d.ring
	for i := range packets {
		p := &packets[i]
		if p.Err = d.check(p); p.Err != nil {
			continue
		}
		if !w.writes.Room(1 + len(p.Parts)) {
			d.flush()
		}
		i := w.writes.Queued()
		w.packets[i] = p
		w.headers[i].encode(p)
		w.writes.Add(w.headers[i][:], p.Parts)
	}
	d.flush()
	return tunnel.Written(packets)
}

// flush writes what is queued.
func (d *Device) flush() {
	w := d.ring
	results, err := w.writes.Do()
	for i, result := range results {
		p := w.packets[i]
		switch {
		case err != nil:
			p.Err = fmt.Errorf("write to %s: %w", d.name, err)
		case result < 0:
			p.Err = d.writeError(unix.Errno(-result), p)
		}
	}
	clear(w.packets[:len(results)]) // they are the caller's again
}
