package udp

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/ring"
)

const (
	// ringLarge is how many large runs can wait to be received.
	ringLarge = 16
	// ringSlot is the space of one message with what recvmsg(2) tells of it, aligned.
	ringSlot = (int(unsafe.Sizeof(received{})) + nameSpace + controlSpace + tunnel.MaxPacket + 1<<10) &^ (1<<10 - 1)
	// nameSpace and controlSpace are those of its name and control messages, so that
	// its data is aligned.
	nameSpace    = 32
	controlSpace = int(unsafe.Sizeof(control{}))
)

// received is struct io_uring_recvmsg_out.
type received struct {
	name, control, data, flags uint32
}

// UseRing has a Socket that was opened to be polled receive by r, which belongs to the
// thread that calls its Start. Descriptors are then of no more use, and Receive does
// not use the arena that it is given.
func (s *Socket) UseRing(r *ring.Ring) (streams []*ring.Stream, err error) {
	for _, fd := range s.Descriptors() {
		stream, err := r.Stream(ring.StreamConfig{
			Descriptor: fd, Slots: receiveBatch, Large: ringLarge, SlotSize: ringSlot,
			Message: true, NameSize: nameSpace, ControlSize: controlSpace,
		})
		if err != nil {
			return nil, fmt.Errorf("receive on %v by io_uring: %w", s.local, err)
		}
		streams = append(streams, stream)
	}
	s.streams = streams
	return streams, nil
}

// take is Receive by a Ring.
func (s *Socket) take(batch []tunnel.Datagrams) (n int, err error) {
	for i, stream := range s.streams {
		for n < len(batch) {
			slot, ok, errno := stream.Take()
			if errno != 0 {
				return n, fmt.Errorf("receive: %w", errno)
			}
			if !ok {
				break
			}
			if s.decode(&batch[n], stream.Memory()[slot.Number*ringSlot:][:slot.Length]) {
				batch[n].Unsummed = i > 0
				n++
			}
		}
	}
	return n, nil
}

// decode turns what is in a slot into d, as accept does.
func (s *Socket) decode(d *tunnel.Datagrams, slot []byte) bool {
	const head = int(unsafe.Sizeof(received{}))
	if len(slot) < head+nameSpace+controlSpace {
		return false // it is a kernel's that says something else than what was asked
	}
	m := (*received)(unsafe.Pointer(&slot[0]))
	name := (*unix.RawSockaddrInet6)(unsafe.Pointer(&slot[head]))
	controls := slot[head+nameSpace:][:min(int(m.control), controlSpace)]
	data := slot[head+nameSpace+controlSpace:]
	data = data[:min(len(data), tunnel.MaxPacket)]
	*d = tunnel.Datagrams{Addr: nameAddr(name), Data: data[:len(data):len(data)]}
	return s.complete(d, controls, int(m.flags))
}
