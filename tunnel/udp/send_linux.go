package udp

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// fullWait is how long Send waits for a full socket, in milliseconds. A queue
// grown further would be latency.
const fullWait = 1

// Errors that come again and again under load are made once.
var (
	errFull      = fmt.Errorf("send: %w: %w", tunnel.ErrFull, unix.EAGAIN)
	errNoBuffers = fmt.Errorf("send: %w: %w", tunnel.ErrFull, unix.ENOBUFS)
	errTooBig    = fmt.Errorf("send: %w: %w", tunnel.ErrTooBig, unix.EMSGSIZE)
	errRunIO     = fmt.Errorf("send run: %w: %w", tunnel.ErrOffload, unix.EIO)
	errRunInval  = fmt.Errorf("send run: %w: %w: %w", tunnel.ErrOffload, unix.EINVAL, tunnel.ErrShorter)
	errRunLong   = fmt.Errorf("send run: %w: too many segments, parts or bytes: %w", tunnel.ErrOffload, tunnel.ErrShorter)
	errParts     = fmt.Errorf("send: a datagram of more than %d parts", maxParts)
)

func (s *sender) init() {
	for i := range s.messages {
		s.messages[i].header.Name = (*byte)(unsafe.Pointer(&s.names[i]))
	}
}

// Send sends batch as tunnel.Socket says, with one system call for as many runs
// as leave by the same socket.
func (s *Socket) Send(batch []tunnel.Datagrams) (n int, err error) {
	s.sender.mu.Lock()
	defer s.sender.mu.Unlock()
	for n < len(batch) {
		if s.closed.Load() {
			return n, tunnel.ErrClosed
		}
		fd := s.senderOf(batch[n].Flow)
		ready, vectors, err := s.prepare(batch[n:], fd)
		if ready == 0 {
			return n, err
		}
		sent, err := s.flush(fd, batch[n:n+ready])
		clear(s.sender.vectors[:vectors]) // the parts are the caller's again
		n += sent
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *Socket) senderOf(flow uint32) int { return s.senders[int(flow)%len(s.senders)] }

// prepare turns the head of batch into messages for one call on fd: up to the
// first run for another socket, that does not fit, or that is wrong. The error
// concerns batch[n].
func (s *Socket) prepare(batch []tunnel.Datagrams, fd int) (n, vectors int, err error) {
	for n < min(len(batch), sendBatch) {
		d := &batch[n]
		if s.senderOf(d.Flow) != fd || vectors+len(d.Parts) > maxParts && n > 0 {
			return n, vectors, nil
		}
		segment, err := s.check(d)
		if err != nil {
			return n, vectors, err
		}
		header := &s.sender.messages[n].header
		header.Namelen = putName(&s.sender.names[n], d.Addr)
		header.Iov = &s.sender.vectors[min(vectors, maxParts-1)]
		header.SetIovlen(len(d.Parts))
		for _, part := range d.Parts {
			vector := &s.sender.vectors[vectors]
			vector.Base = unsafe.SliceData(part)
			vector.SetLen(len(part))
			vectors++
		}
		s.sender.putControl(n, d, segment)
		n++
	}
	return n, vectors, nil
}

// check refuses what the kernel would, or would not cut as asked, and returns
// the segment size to cut at: 0 for a single datagram.
func (s *Socket) check(d *tunnel.Datagrams) (segment int, err error) {
	if d.Addr.Addr().Is4() != s.local.Addr().Is4() {
		return 0, errFamily
	}
	bytes := size(d)
	if d.SegmentSize <= 0 || d.SegmentSize >= bytes {
		switch {
		case bytes > maxPayload:
			return 0, errPayload
		case len(d.Parts) > maxParts:
			return 0, errParts
		}
		return 0, nil
	}
	switch {
	case !s.offloads.UDP:
		return 0, errRunOff
	case bytes > maxPayload || len(d.Parts) > maxParts || (bytes-1)/d.SegmentSize >= s.offloads.MaxSegments:
		return 0, errRunLong
	}
	return d.SegmentSize, nil
}

// putControl writes the control messages of message i.
func (s *sender) putControl(i int, d *tunnel.Datagrams, segment int) {
	c, used := &s.controls[i], 0
	if segment > 0 {
		used = c.add(used, unix.SOL_UDP, unix.UDP_SEGMENT, uint32(segment), 2)
	}
	if d.ECN != 0 {
		level, kind := int32(unix.SOL_IPV6), int32(unix.IPV6_TCLASS)
		if d.Addr.Addr().Is4() {
			level, kind = unix.SOL_IP, unix.IP_TOS
		}
		used = c.add(used, level, kind, uint32(d.ECN&ecnMask), 4)
	}
	header := &s.messages[i].header
	header.Control = nil
	if used > 0 {
		header.Control = &c.bytes()[0]
	}
	header.SetControllen(used)
}

// flush sends the prepared messages of batch. The error concerns batch[n].
func (s *Socket) flush(fd int, batch []tunnel.Datagrams) (n int, err error) {
	waited := false
	for n < len(batch) {
		sent, errno := transfer(unix.SYS_SENDMMSG, fd, s.sender.messages[n:len(batch)], &s.sender.calls)
		switch {
		case errno == 0:
			n += sent
			waited = false
		case errno == unix.EAGAIN && !waited:
			if _, err := s.waker.Wait(fd, unix.POLLOUT, fullWait); err != nil {
				return n, fmt.Errorf("send: %w", err)
			}
			waited = true
		default:
			segment, _ := s.check(&batch[n])
			return n, sendError(errno, segment > 0)
		}
	}
	return n, nil
}

// sendError says what an errno of a send means. Before 6.14 EINVAL can also say
// that a run's segments exceed the path's MTU; sent singly they are fragmented.
func sendError(errno unix.Errno, run bool) error {
	switch {
	case errno == unix.EAGAIN:
		return errFull
	case errno == unix.ENOBUFS:
		return errNoBuffers
	case errno == unix.EMSGSIZE:
		return errTooBig
	case errno == unix.EIO && run:
		return errRunIO
	case errno == unix.EINVAL && run:
		return errRunInval
	}
	return fmt.Errorf("send: %w", errno)
}
