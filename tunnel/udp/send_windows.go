package udp

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

// fullWait is how long Send waits for a full socket. A queue grown further
// would be latency.
const fullWait = time.Millisecond

// Errors that come again and again under load are made once.
var (
	errFull      = fmt.Errorf("send: %w: %w", tunnel.ErrFull, windows.WSAEWOULDBLOCK)
	errNoBuffers = fmt.Errorf("send: %w: %w", tunnel.ErrFull, windows.WSAENOBUFS)
	errTooBig    = fmt.Errorf("send: %w: %w", tunnel.ErrTooBig, windows.WSAEMSGSIZE)
	errRunInval  = fmt.Errorf("send run: %w: %w: %w", tunnel.ErrOffload, windows.WSAEINVAL, tunnel.ErrShorter)
	errRunLong   = fmt.Errorf("send run: %w: too many parts or bytes: %w", tunnel.ErrOffload, tunnel.ErrShorter)
	errParts     = fmt.Errorf("send: a datagram of more than %d parts", maxParts)
)

func (s *sender) init() {
	s.message.Name = s.name.any()
	s.message.Buffers = &s.vectors[0]
}

// Send sends batch as tunnel.Socket says, one system call per run.
func (s *Socket) Send(batch []tunnel.Datagrams) (int, error) {
	s.sender.mu.Lock()
	defer s.sender.mu.Unlock()
	for i := range batch {
		if s.closed.Load() {
			return i, tunnel.ErrClosed
		}
		if err := s.sendOne(&batch[i]); err != nil {
			return i, err
		}
	}
	return len(batch), nil
}

func (s *Socket) sendOne(d *tunnel.Datagrams) error {
	segment, err := s.check(d)
	if err != nil {
		return err
	}
	ecn := d.ECN
	if !s.ecn {
		ecn = 0
	}
	fd := s.senders[int(d.Flow)%len(s.senders)]
	err = s.sender.give(fd, d, segment, ecn)
	if errors.Is(err, windows.WSAEWOULDBLOCK) {
		time.Sleep(fullWait)
		err = s.sender.give(fd, d, segment, ecn)
	}
	if err != nil {
		return sendError(err, segment > 0)
	}
	return nil
}

// check refuses what the system would, and returns the segment size to cut at:
// 0 for a single datagram.
func (s *Socket) check(d *tunnel.Datagrams) (segment int, err error) {
	bytes := size(d)
	run := d.SegmentSize > 0 && d.SegmentSize < bytes
	switch {
	case d.Addr.Addr().Is4() != s.local.Addr().Is4():
		return 0, errFamily
	case run && !s.offloads.UDP:
		return 0, errRunOff
	case run && (bytes > maxPayload || len(d.Parts) > maxParts):
		return 0, errRunLong
	case run:
		return d.SegmentSize, nil
	case bytes > maxPayload:
		return 0, errPayload
	case len(d.Parts) > maxParts:
		return 0, errParts
	}
	return 0, nil
}

// give sends one run, or one datagram where segment is 0, without waiting.
func (s *sender) give(fd windows.Handle, d *tunnel.Datagrams, segment int, ecn uint8) error {
	s.message.Namelen = s.name.put(d.Addr)
	for i, part := range d.Parts {
		s.vectors[i] = windows.WSABuf{Len: uint32(len(part)), Buf: unsafe.SliceData(part)}
	}
	s.message.BufferCount = uint32(len(d.Parts))
	used := 0
	if segment > 0 {
		used = s.ancillary.add(used, windows.IPPROTO_UDP, windows.UDP_SEND_MSG_SIZE, uint32(segment))
	}
	if ecn != 0 {
		level := int32(windows.IPPROTO_IPV6)
		if d.Addr.Addr().Is4() {
			level = windows.IPPROTO_IP
		}
		used = s.ancillary.add(used, level, ipRecvECN, uint32(ecn&ecnMask))
	}
	s.message.Control = windows.WSABuf{}
	if used > 0 {
		s.message.Control = windows.WSABuf{Len: uint32(used), Buf: &s.ancillary.bytes()[0]}
	}
	s.calls.Store(s.calls.Load() + 1) // one Send at a time
	err := windows.WSASendMsg(fd, &s.message, 0, &s.bytes, nil, nil)
	clear(s.vectors[:len(d.Parts)]) // the parts are the caller's again
	return err
}

// sendError says what an error of a send means.
func sendError(err error, run bool) error {
	switch {
	case errors.Is(err, windows.WSAEWOULDBLOCK):
		return errFull
	case errors.Is(err, windows.WSAENOBUFS):
		return errNoBuffers
	case errors.Is(err, windows.WSAEMSGSIZE):
		return errTooBig
	case run && errors.Is(err, windows.WSAEINVAL):
		return errRunInval
	case run && (errors.Is(err, windows.WSAEOPNOTSUPP) || errors.Is(err, windows.WSAENOPROTOOPT)):
		return fmt.Errorf("send run: %w: %w", tunnel.ErrOffload, err)
	}
	return fmt.Errorf("send: %w", err)
}
