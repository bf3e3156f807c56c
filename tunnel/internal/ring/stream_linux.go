package ring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StreamConfig says what a Stream reads, and where to.
type StreamConfig struct {
	Descriptor int
	// SlotSize is in bytes. What is read is put behind the first Offset of them.
	SlotSize, Offset int
	// Slots is how many there are, a power of two: what can arrive before Renew is
	// called. While what arrives fills more than an eighth of its slot, only Large of
	// them are used, so that they stay in the processor's cache.
	Slots, Large int
	// Message: recvmsg(2) in place of read(2). What is put into a slot is then a
	// struct io_uring_recvmsg_out, and the name, control messages and data for which it
	// says how long they are, the first two in NameSize and ControlSize bytes.
	Message               bool
	NameSize, ControlSize int
}

// Stream is what arrives on a descriptor: the kernel reads, without being asked each
// time, into one slot after the other.
type Stream struct {
	config StreamConfig
	ring   *Ring
	id     uint32
	header unix.Msghdr
	err    unix.Errno // that has ended it

	memory  []byte // slots
	buffers []buffer
	tail    uint16 // of buffers
	given   int    // slots that are the kernel's
	free    []uint16
	taken   []uint16 // since Renew
	bytes   int      // in them
	limit   int      // of given

	arrived []Slot
	next    int // of arrived
	reading bool
	dry     bool // it has stopped for want of slots
}

// Slot is one that something has been read into.
type Slot struct {
	Number, Length int
}

// buffer is struct io_uring_buf; of the first one the last field is the ring's tail.
type buffer struct {
	address uint64
	length  uint32
	number  uint16
	tail    uint16
}

// bufferRing is struct io_uring_buf_reg.
type bufferRing struct {
	address uint64
	entries uint32
	group   uint16
	flags   uint16
	_       [3]uint64
}

// Stream adds a Stream, before Start.
func (r *Ring) Stream(config StreamConfig) (*Stream, error) {
	s := &Stream{config: config, ring: r, limit: config.Large}
	s.header.Namelen = uint32(config.NameSize)
	s.header.SetControllen(config.ControlSize)
	s.id = r.add(s)
	var err error
	if s.memory, err = r.anonymous(config.Slots * config.SlotSize); err != nil {
		return nil, err
	}
	buffers, err := r.anonymous(config.Slots * int(unsafe.Sizeof(buffer{})))
	if err != nil {
		return nil, err
	}
	s.buffers = unsafe.Slice((*buffer)(unsafe.Pointer(&buffers[0])), config.Slots)
	register := bufferRing{
		address: uint64(uintptr(unsafe.Pointer(&buffers[0]))), entries: uint32(config.Slots), group: uint16(s.id),
	}
	if err := r.register(registerBuffers, uintptr(unsafe.Pointer(&register)), 1); err != nil {
		return nil, fmt.Errorf("register buffers: %w", err)
	}
	for i := range config.Slots {
		s.free = append(s.free, uint16(config.Slots-1-i))
	}
	s.taken = make([]uint16, 0, config.Slots)
	s.arrived = make([]Slot, 0, config.Slots)
	return s, nil
}

// Memory is all slots, one behind the other. It is valid until the Ring is closed.
func (s *Stream) Memory() []byte { return s.memory }

// Ready reports whether Take has something to return.
func (s *Stream) Ready() bool { return s.next < len(s.arrived) || s.err != 0 }

// Take returns the next slot that something has arrived in, which stays the caller's until
// Renew. Without one it returns false, and the error that nothing comes any more for.
func (s *Stream) Take() (slot Slot, ok bool, errno unix.Errno) {
	if s.next == len(s.arrived) {
		return Slot{}, false, s.err
	}
	slot = s.arrived[s.next]
	s.next++
	s.taken = append(s.taken, uint16(slot.Number))
	s.bytes += slot.Length
	return slot, true, 0
}

// Dry reports whether more has arrived than there were slots for.
func (s *Stream) Dry() bool { return s.dry }

// Refill takes up what has arrived beyond the slots there were for it, if any has. As with
// Renew, what was taken is no longer the caller's.
func (s *Stream) Refill() error {
	if !s.dry || s.Ready() {
		return nil
	}
	s.Renew()
	return s.ring.Enter(0)
}

// Renew gives the slots that were taken back to the kernel, and has it read on.
func (s *Stream) Renew() {
	s.arrived, s.next = s.arrived[:copy(s.arrived, s.arrived[s.next:])], 0
	if len(s.taken) > 0 {
		switch {
		case s.bytes > len(s.taken)*s.config.SlotSize/8:
			s.limit = s.config.Large
		case len(s.taken) >= s.limit:
			s.limit = min(2*s.limit, s.config.Slots)
		}
		s.free = append(s.free, s.taken...)
		s.taken, s.bytes = s.taken[:0], 0
	}
	for s.given+len(s.arrived) < s.limit && len(s.free) > 0 {
		s.give(s.free[len(s.free)-1])
		s.free = s.free[:len(s.free)-1]
	}
	if !s.reading && s.err == 0 && s.given > 0 {
		s.read()
	}
}

// give makes a slot the kernel's. The kernel looks for one in this thread only, when it
// has been entered, so that the tail need not be written in any special way.
func (s *Stream) give(slot uint16) {
	b := &s.buffers[int(s.tail)%len(s.buffers)]
	start := s.memory[int(slot)*s.config.SlotSize+s.config.Offset:]
	b.address, b.length, b.number = uint64(uintptr(unsafe.Pointer(&start[0]))), uint32(s.config.SlotSize-s.config.Offset), slot
	s.tail++
	s.buffers[0].tail = s.tail
	s.given++
}

func (s *Stream) read() {
	e := s.ring.queue(s.id, 0)
	e.fd, e.flags, e.group = int32(s.config.Descriptor), flagBufferSelect, uint16(s.id)
	if s.config.Message {
		e.opcode, e.priority, e.length = opRecvmsg, receiveMultishot, 1
		e.address = uint64(uintptr(unsafe.Pointer(&s.header)))
	} else {
		e.opcode, e.offset = opReadMultishot, ^uint64(0)
	}
	s.reading, s.dry = true, false
}

// completed implements user.
func (s *Stream) completed(_ uint32, result int32, flags uint32) {
	if flags&completionMore == 0 {
		s.reading = false
	}
	if flags&completionBuffer != 0 {
		slot := uint16(flags >> 16)
		s.given--
		if result > 0 {
			s.arrived = append(s.arrived, Slot{Number: int(slot), Length: int(result)})
		} else {
			s.free = append(s.free, slot)
		}
	}
	switch {
	case result > 0:
		return
	case result == 0: // the end of a pipe
		s.err = unix.EPIPE
		return
	}
	// Without a free slot the kernel stops, and Renew has it go on.
	if errno := unix.Errno(-result); errno == unix.ENOBUFS {
		s.dry = true
	} else {
		s.err = errno
	}
}
