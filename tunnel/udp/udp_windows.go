package udp

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/windows"

	"github.com/weft-net/weft/tunnel"
)

// Socket is a UDP socket of the Windows API, and implements tunnel.Socket. A
// Receive that waits holds a thread. Runs are cut by the system where it knows
// UDP_SEND_MSG_SIZE; they are not joined on arrival, as UDP_RECV_MAX_COALESCED_SIZE
// loses the bounds of datagrams under some drivers.
type Socket struct {
	local    netip.AddrPort
	offloads tunnel.Offloads
	buffers  Buffers
	started  bool // Winsock, by this Socket

	fd      windows.Handle   // receives, and sends where it is the only one
	senders []windows.Handle // never empty
	ecn     bool             // the ECN bits can be had and set
	arrived windows.Handle   // event: there may be something to receive
	ending  windows.Handle   // event: Close was called
	closed  atomic.Bool

	receiver  receiver
	sender    sender
	truncated atomic.Uint64
}

// Listen opens a Socket.
func Listen(config Config) (*Socket, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Socket{fd: windows.InvalidHandle}
	if err := s.open(config); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %v: %w", config.Addr, err), s.free())
	}
	for _, why := range s.offloads.Why {
		config.Logger.Info("UDP socket is slower than it could be", "addr", s.local, "reason", why)
	}
	return s, nil
}

func (s *Socket) open(config Config) (err error) {
	var data windows.WSAData
	if err := windows.WSAStartup(winsock, &data); err != nil {
		return fmt.Errorf("start Winsock: %w", err)
	}
	s.started = true
	if s.fd, err = openSocket(config, config.Addr); err != nil {
		return err
	}
	if s.local, err = localAddr(s.fd); err != nil {
		return err
	}
	s.senders = []windows.Handle{s.fd}
	if config.SendSockets > 1 {
		s.senders = nil
		for range config.SendSockets {
			fd, err := openSocket(config, netip.AddrPortFrom(config.Addr.Addr(), 0))
			if err != nil {
				return fmt.Errorf("open send socket: %w", err)
			}
			s.senders = append(s.senders, fd)
		}
	}
	for _, event := range []*windows.Handle{&s.arrived, &s.ending} {
		if *event, err = windows.CreateEvent(nil, 0, 0, nil); err != nil {
			return fmt.Errorf("make event: %w", err)
		}
	}
	if err := signalArrival(s.fd, s.arrived); err != nil {
		return err
	}
	s.ecn = receiveECN(s.fd, s.local.Addr().Is4()) == nil
	s.buffers = grantedBuffers(s.fd, s.senders[0])
	s.offloads = probe(config, s.buffers, cutsRuns)
	s.receiver.init()
	s.sender.init()
	return nil
}

// probe says what is had and why not more. cuts looks whether the system cuts
// runs right.
func probe(config Config, granted Buffers, cuts func(is4 bool) error) (o tunnel.Offloads) {
	if config.GSO == tunnel.Off {
		o.Why = append(o.Why, "runs are sent as single datagrams: switched off")
	} else if err := cuts(config.Addr.Addr().Is4()); err != nil {
		o.Why = append(o.Why, fmt.Sprintf("runs are sent as single datagrams: %v", err))
	} else {
		o.UDP = true
	}
	o.Why = append(o.Why, "datagrams are received one by one: joining them is unreliable on this system")
	for _, b := range []struct {
		name       string
		want, have int
	}{{"receive", config.ReceiveBuffer, granted.Receive}, {"send", config.SendBuffer, granted.Send}} {
		if b.have < b.want {
			o.Why = append(o.Why, fmt.Sprintf("%s buffer is %d of %d bytes", b.name, b.have, b.want))
		}
	}
	return o
}

// Local is the bound address and port.
func (s *Socket) Local() netip.AddrPort { return s.local }

// Offloads says whether Send takes runs, and why not more.
func (s *Socket) Offloads() tunnel.Offloads { return s.offloads }

// Buffers are the socket buffers granted.
func (s *Socket) Buffers() Buffers { return s.buffers }

// Calls is the number of system calls made to send and receive.
func (s *Socket) Calls() uint64 { return s.receiver.calls.Load() + s.sender.calls.Load() }

// Lost counts datagrams larger than tunnel.MaxPacket, which Receive drops. This
// system does not tell a socket what came while its receive buffer was full.
func (s *Socket) Lost() (truncated, overflow uint64) { return s.truncated.Load(), 0 }

// Close ends a Receive that waits and frees the sockets.
func (s *Socket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	err := windows.SetEvent(s.ending)
	// No handle may be freed, and its number be given to something else, while a
	// call still uses it.
	s.receiver.mu.Lock()
	defer s.receiver.mu.Unlock()
	s.sender.mu.Lock()
	defer s.sender.mu.Unlock()
	if err := errors.Join(err, s.free()); err != nil {
		return fmt.Errorf("close %v: %w", s.local, err)
	}
	return nil
}

// free closes whatever open has opened.
func (s *Socket) free() error {
	var errs []error
	if s.fd != windows.InvalidHandle {
		errs = append(errs, windows.Closesocket(s.fd))
	}
	for _, fd := range s.senders {
		if fd != s.fd {
			errs = append(errs, windows.Closesocket(fd))
		}
	}
	for _, event := range []windows.Handle{s.arrived, s.ending} {
		if event != 0 {
			errs = append(errs, windows.CloseHandle(event))
		}
	}
	if s.started {
		errs = append(errs, windows.WSACleanup())
	}
	return errors.Join(errs...)
}

// receiver is what one Receive at a time works with: allocated once, with every
// pointer into it set once.
type receiver struct {
	mu        sync.Mutex
	calls     atomic.Uint64
	bytes     uint32 // of the last datagram
	message   windows.WSAMsg
	vector    windows.WSABuf
	name      name
	ancillary ancillary
}

// sender is the same for Send.
type sender struct {
	mu        sync.Mutex
	calls     atomic.Uint64
	bytes     uint32 // sent last
	message   windows.WSAMsg
	vectors   [maxParts]windows.WSABuf
	name      name
	ancillary ancillary
}
