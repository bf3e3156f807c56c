package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
	"github.com/weft-net/weft/tunnel/internal/ring"
)

// Socket is a batched UDP socket on Linux, and implements tunnel.Socket. Its
// descriptors are outside Go's netpoller: a Receive that waits holds a thread.
// The outer DF bit is clear, as with a kernel VXLAN device: a datagram above
// the path's MTU is sent in fragments; a run, which cannot be, is ErrTooBig.
type Socket struct {
	local    netip.AddrPort
	offloads tunnel.Offloads
	buffers  Buffers

	fd       int   // receives, and sends where it is the only one
	unsummed int   // receives what bears no checksum, or is -1
	senders  []int // never empty
	polled   bool
	waker    *linux.Waker
	closed   atomic.Bool

	receiver receiver
	sender   sender
	streams  []*ring.Stream // of the descriptors; nil: none

	truncated atomic.Uint64
	using     sync.RWMutex  // held while the descriptors are used other than to send or receive
	overflow  atomic.Uint64 // as of the last call of Lost
}

// Listen opens a Socket in the network namespace of the calling thread.
func Listen(config Config) (*Socket, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Socket{fd: -1, unsummed: -1, polled: config.Polled}
	if err := s.open(config, alone); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %v: %w", config.Addr, err), s.free())
	}
	s.logShortfall(config)
	return s, nil
}

func (s *Socket) logShortfall(config Config) {
	for _, why := range s.offloads.Why {
		config.Logger.Info("UDP socket is slower than it could be", "addr", s.local, "reason", why)
	}
}

// open opens everything but a socket for what bears no checksum.
func (s *Socket) open(config Config, sharing sharing) (err error) {
	if s.waker, err = linux.NewWaker(); err != nil {
		return err
	}
	if s.fd, err = openSocket(config, config.Addr, sharing); err != nil {
		return err
	}
	if s.local, err = localAddr(s.fd); err != nil {
		return err
	}
	s.senders = []int{s.fd}
	if config.SendSockets > 1 {
		s.senders = nil
		for range config.SendSockets {
			fd, err := openSender(config)
			if err != nil {
				return fmt.Errorf("open send socket: %w", err)
			}
			s.senders = append(s.senders, fd)
		}
	}
	s.buffers = grantedBuffers(s.fd, s.senders[0])
	s.offloads = probe(config, linux.KernelVersion(), socketOptions(s.fd))
	s.offloads.Why = append(s.offloads.Why, bufferShortfall(config, s.buffers)...)
	s.receiver.init()
	s.sender.init()
	return nil
}

// Descriptors are readable when Receive has something to return. They are valid
// until Close and may be waited for, not read.
func (s *Socket) Descriptors() []int {
	if s.unsummed < 0 {
		return []int{s.fd}
	}
	return []int{s.fd, s.unsummed}
}

// Calls is the number of system calls made to send and receive.
func (s *Socket) Calls() uint64 { return s.receiver.calls.Load() + s.sender.calls.Load() }

// Local is the bound address and port.
func (s *Socket) Local() netip.AddrPort { return s.local }

// Offloads says whether Send takes runs, of how many segments, and why not more.
func (s *Socket) Offloads() tunnel.Offloads { return s.offloads }

// Buffers are the socket buffers granted.
func (s *Socket) Buffers() Buffers { return s.buffers }

// Lost counts datagrams that arrived and that Receive did not return: those
// larger than tunnel.MaxPacket, and those that came while the receive buffer was full.
func (s *Socket) Lost() (truncated, overflow uint64) {
	s.using.RLock()
	defer s.using.RUnlock()
	if !s.closed.Load() {
		overflow := socketDrops(s.fd)
		if s.unsummed >= 0 {
			overflow += socketDrops(s.unsummed)
		}
		s.overflow.Store(overflow)
	}
	return s.truncated.Load(), s.overflow.Load()
}

// Close ends a Receive that waits and frees the sockets.
func (s *Socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.waker.Wake()
	// No descriptor may be freed, and its number be given to another file,
	// while a call still uses it.
	s.receiver.mu.Lock()
	defer s.receiver.mu.Unlock()
	s.sender.mu.Lock()
	defer s.sender.mu.Unlock()
	s.using.Lock()
	defer s.using.Unlock()
	if err := s.free(); err != nil {
		return fmt.Errorf("close %v: %w", s.local, err)
	}
	return nil
}

// free closes whatever open has opened.
func (s *Socket) free() error {
	var errs []error
	for _, fd := range []int{s.fd, s.unsummed} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	for _, fd := range s.senders {
		if fd != s.fd {
			errs = append(errs, unix.Close(fd))
		}
	}
	if s.waker != nil {
		errs = append(errs, s.waker.Close())
	}
	return errors.Join(errs...)
}

// receiver is what one Receive at a time works with: allocated once, with every
// pointer into it set once.
type receiver struct {
	mu       sync.Mutex
	calls    atomic.Uint64
	rounds   uint // calls of Receive
	batch    int  // buffers to fill next time
	messages [receiveBatch]message
	vectors  [receiveBatch]unix.Iovec
	names    [receiveBatch]unix.RawSockaddrInet6
	controls [receiveBatch]control
}

// sender is the same for Send.
type sender struct {
	mu       sync.Mutex
	calls    atomic.Uint64
	messages [sendBatch]message
	vectors  [maxParts]unix.Iovec
	names    [sendBatch]unix.RawSockaddrInet6
	controls [sendBatch]control
}
