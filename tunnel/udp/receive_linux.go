package udp

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

const (
	// alignment is that of every received run in the arena.
	alignment = 8
	// slotSize is the space of one message in the arena: tunnel.MaxPacket, aligned.
	slotSize = (tunnel.MaxPacket + alignment - 1) &^ (alignment - 1)
	// unsummedEvery is how many calls of Receive that find summed datagrams come
	// between two that look for others.
	unsummedEvery = 16
	// ecnMask is the ECN field of a TOS or traffic class byte (RFC 3168).
	ecnMask = 3
)

func (r *receiver) init() {
	r.batch = largeBatch
	for i := range r.messages {
		header := &r.messages[i].header
		header.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		header.Iov = &r.vectors[i]
		header.SetIovlen(1)
		header.Control = &r.controls[i].bytes()[0]
	}
}

// Receive fills batch as tunnel.Socket says. Datagrams the kernel had to cut
// off are dropped and counted.
func (s *Socket) Receive(batch []tunnel.Datagrams, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena {
		return 0, errArena
	}
	s.receiver.mu.Lock()
	defer s.receiver.mu.Unlock()
	for len(batch) > 0 {
		if s.closed.Load() {
			return 0, tunnel.ErrClosed
		}
		if s.streams != nil {
			return s.take(batch)
		}
		n, err := s.drainOne(batch, arena)
		if n > 0 || err != nil || s.polled {
			return n, err
		}
		if _, err := s.waker.Wait(s.fd, unix.POLLIN, -1); err != nil {
			return 0, fmt.Errorf("receive: %w", err)
		}
	}
	return 0, nil
}

// drainOne takes what is ready on one of the two descriptors. The second, where
// hardly anything ever comes, is looked at when there is nothing on the first,
// and first of all every now and then.
func (s *Socket) drainOne(batch []tunnel.Datagrams, arena []byte) (n int, err error) {
	if s.unsummed < 0 {
		return s.drain(s.fd, batch, arena)
	}
	s.receiver.rounds++
	order := [2]int{s.fd, s.unsummed}
	if s.receiver.rounds%unsummedEvery == 0 {
		order = [2]int{s.unsummed, s.fd}
	}
	for _, fd := range order {
		if n, err = s.drain(fd, batch, arena); n == 0 && err == nil {
			continue
		}
		for i := range batch[:n] {
			batch[i].Unsummed = fd == s.unsummed
		}
		break
	}
	return n, err
}

// drain takes what is ready on fd. It returns 0 and no error where nothing is.
func (s *Socket) drain(fd int, batch []tunnel.Datagrams, arena []byte) (n int, err error) {
	for taken := 0; n < len(batch) && len(arena) >= tunnel.MaxPacket && taken < tunnel.MaxBatch; {
		slots := (len(arena)-tunnel.MaxPacket)/slotSize + 1
		want := min(len(batch)-n, slots, s.receiver.batch)
		s.receiver.prepare(want, arena)
		got, errno := transfer(unix.SYS_RECVMMSG, fd, s.receiver.messages[:want], &s.receiver.calls)
		if errno == unix.EAGAIN {
			return n, nil
		}
		if errno != 0 {
			return n, fmt.Errorf("receive: %w", errno)
		}
		taken += s.receiver.adapt(got)
		for i := range got {
			if s.accept(i, &batch[n], arena[i*slotSize:]) {
				n++
			}
		}
		if got < want {
			return n, nil // the queue was empty
		}
		used := (got-1)*slotSize + int(s.receiver.messages[got-1].length)
		arena = arena[min(len(arena), (used+alignment-1)&^(alignment-1)):]
	}
	return n, nil
}

// adapt chooses the next batch by the last one, of n messages: as many as there
// can be while small ones come faster than they are taken. It returns the bytes
// of the last one.
func (r *receiver) adapt(n int) (bytes int) {
	for i := range n {
		bytes += int(r.messages[i].length)
	}
	switch {
	case bytes > tunnel.MaxPacket:
		r.batch = largeBatch
	case n == r.batch:
		r.batch = min(2*r.batch, receiveBatch)
	}
	return bytes
}

// prepare points the first n messages at consecutive slots of the arena.
func (r *receiver) prepare(n int, arena []byte) {
	for i := range n {
		r.vectors[i].Base = &arena[i*slotSize]
		r.vectors[i].SetLen(tunnel.MaxPacket)
		header := &r.messages[i].header
		header.Namelen = unix.SizeofSockaddrInet6
		header.SetControllen(len(r.controls[i].bytes()))
		header.Flags = 0
	}
}

// accept turns message i into d. A message that is not whole is not accepted.
func (s *Socket) accept(i int, d *tunnel.Datagrams, slot []byte) bool {
	m := &s.receiver.messages[i]
	*d = tunnel.Datagrams{Addr: nameAddr(&s.receiver.names[i]), Data: slot[:m.length:m.length]}
	return s.complete(d, s.receiver.controls[i].bytes()[:m.header.Controllen], int(m.header.Flags))
}

// complete adds to d what its control messages say. It is false if the message is not whole.
func (s *Socket) complete(d *tunnel.Datagrams, control []byte, flags int) bool {
	for len(control) > 0 {
		header, value, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		control = rest
		switch {
		case header.Level == unix.SOL_UDP && header.Type == unix.UDP_GRO && len(value) >= 4:
			// At its own size or more a run is a single datagram.
			if size := int(binary.NativeEndian.Uint32(value)); size < len(d.Data) {
				d.SegmentSize = size
			}
		case header.Level == unix.SOL_IP && header.Type == unix.IP_TOS && len(value) >= 1:
			d.ECN = value[0] & ecnMask
		case header.Level == unix.SOL_IPV6 && header.Type == unix.IPV6_TCLASS && len(value) >= 4:
			d.ECN = uint8(binary.NativeEndian.Uint32(value)) & ecnMask
		}
	}
	// Without its control messages a run's cuts are unknown.
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		s.truncated.Add(1)
		return false
	}
	return true
}
