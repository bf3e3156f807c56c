package udp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

// ecnMask is the ECN field of a TOS or traffic class byte (RFC 3168).
const ecnMask = 3

func (r *receiver) init() {
	r.message.Name = r.name.any()
	r.message.Buffers = &r.vector
	r.message.BufferCount = 1
}

// Receive fills batch as tunnel.Socket says.
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
		if n, err := s.drain(batch, arena); n > 0 || err != nil {
			return n, err
		}
		// The system sets arrived after a receive that found nothing.
		events := [...]windows.Handle{s.ending, s.arrived}
		if _, err := windows.WaitForMultipleObjects(events[:], false, windows.INFINITE); err != nil {
			return 0, fmt.Errorf("wait to receive: %w", err)
		}
	}
	return 0, nil
}

// drain takes what is ready. It returns 0 and no error where nothing is.
func (s *Socket) drain(batch []tunnel.Datagrams, arena []byte) (n int, err error) {
	for taken := 0; n < len(batch) && len(arena) >= tunnel.MaxPacket && taken < tunnel.MaxBatch; {
		size, err := s.receiver.take(s.fd, arena[:tunnel.MaxPacket])
		switch {
		case err == nil:
		case errors.Is(err, windows.WSAEWOULDBLOCK):
			return n, nil
		case errors.Is(err, windows.WSAECONNRESET), errors.Is(err, windows.WSAENETRESET):
			continue // a peer could not be reached: that is no fault of this socket
		case errors.Is(err, windows.WSAEMSGSIZE):
			s.truncated.Add(1)
			continue
		default:
			return n, fmt.Errorf("receive: %w", err)
		}
		batch[n] = tunnel.Datagrams{Addr: s.receiver.name.get(), Data: arena[:size:size]}
		if s.ecn {
			batch[n].ECN = uint8(s.receiver.ancillary.number(int(s.receiver.message.Control.Len), ipRecvECN)) & ecnMask
		}
		n++
		taken += size
		arena = arena[size:]
	}
	return n, nil
}

// take receives one datagram without waiting.
func (r *receiver) take(fd windows.Handle, into []byte) (int, error) {
	r.vector = windows.WSABuf{Len: uint32(len(into)), Buf: &into[0]}
	r.message.Namelen = nameSize
	r.message.Control = windows.WSABuf{Len: uint32(len(r.ancillary.bytes())), Buf: &r.ancillary.bytes()[0]}
	r.message.Flags = 0
	r.calls.Store(r.calls.Load() + 1) // one Receive at a time
	err := windows.WSARecvMsg(fd, &r.message, &r.bytes, nil, nil)
	r.vector.Buf = nil // the arena is the caller's again
	return int(r.bytes), err
}
