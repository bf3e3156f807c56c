package tunnel

import (
	"errors"
	"fmt"
	"net/netip"
)

// Sizes of buffers. A super-packet is an IP packet, so 64 KiB bounds it; a
// UDP datagram run is bounded by the same 16-bit lengths.
const (
	// MaxPacket is the largest packet or datagram run a Device or Socket hands over.
	MaxPacket = 1<<16 - 1
	// Headroom is the space kept free in front of every packet that Device.Read
	// returns: room for VXLAN (8) and Ethernet (14), rounded up to keep packets aligned.
	Headroom = 32
	// MinArena is the smallest arena Read and Receive accept.
	MinArena = Headroom + MaxPacket
	// MaxBatch is the number of bytes after which Receive takes no more, so that
	// what it returns is still in the processor's cache when it is handed on.
	MaxBatch = 512 << 10
)

// GSOType says how a super-packet is to be cut (virtio 1.2, 5.1.6.4.1).
type GSOType uint8

// The GSO types.
const (
	GSONone GSOType = iota
	GSOTCP4
	GSOTCP6
	GSOUDP // USO: each segment is a whole UDP datagram
)

// Offload is the work on a packet that has been put off, in terms of the
// virtio-net header. The zero Offload is a finished packet.
type Offload struct {
	GSO         GSOType
	ECN         bool   // TCP with CWR set: only the first segment keeps it
	SegmentSize uint16 // transport payload bytes per segment, with GSO
	// NeedsChecksum means that the 16 bits at ChecksumStart+ChecksumOffset hold
	// only the folded pseudo-header sum, and that the sum from ChecksumStart to
	// the end is still to be added. Offsets count from the IP header.
	NeedsChecksum  bool
	ChecksumStart  uint16
	ChecksumOffset uint16
}

// Incoming is a packet read from a Device.
type Incoming struct {
	Offload
	// Data starts with the IP header. It lies in the arena given to Read with at
	// least Headroom free bytes in front of it, and is valid until the next Read
	// with that arena. Offset is where it starts in the arena.
	Data   []byte
	Offset int
}

// Outgoing is a packet to be written to a Device. Its bytes are the
// concatenation of Parts, the first of which starts with the IP header and
// holds every header. The Device does not keep Parts after Write returns and
// does not change them.
type Outgoing struct {
	Offload
	Parts [][]byte
	// Err is set by Write: why it was not written, or nil.
	Err error
}

// Device is where inner packets enter and leave: a TUN or a netstack. One
// goroutine may Read while another Writes.
type Device interface {
	Name() string
	// MTU is the current largest inner packet in bytes.
	MTU() (int, error)
	// Read waits until a packet is there, then takes what is ready without
	// waiting, up to len(packets) or until the arena is full. It returns
	// ErrClosed after Close. A Device that was opened to be polled does not wait
	// and returns 0 if nothing is there.
	Read(packets []Incoming, arena []byte) (n int, err error)
	// Write writes packets in order, and goes on after one that fails. It returns
	// how many were written, and an Err of those that were not, if any. ErrOffload
	// means that the Device refused that packet's Offload and would take it finished.
	Write(packets []Outgoing) (n int, err error)
	// Offloads says what Write accepts now; it may shrink while running.
	Offloads() Offloads
	Close() error
}

// WriteEach is Device.Write by what writes one packet.
func WriteEach(packets []Outgoing, write func(*Outgoing) error) (n int, err error) {
	for i := range packets {
		packets[i].Err = write(&packets[i])
	}
	return Written(packets)
}

// Written is what Device.Write returns when every Err is set.
func Written(packets []Outgoing) (n int, err error) {
	for i := range packets {
		if packets[i].Err == nil {
			n++
		} else if err == nil {
			err = packets[i].Err
		}
	}
	return n, err
}

// Switch is a user's wish about one offload.
type Switch uint8

// The switches. Auto uses what the kernel has unless that is known, or turns
// out, not to work; On what it has in any case.
const (
	Auto Switch = iota
	On
	Off
)

// ParseSwitch parses "auto", "on" and "off".
func ParseSwitch(s string) (Switch, error) {
	for _, known := range []Switch{Auto, On, Off} {
		if s == known.String() {
			return known, nil
		}
	}
	return Auto, fmt.Errorf("%q: want auto, on or off", s)
}

// String returns what ParseSwitch parses.
func (s Switch) String() string { return [...]string{"auto", "on", "off"}[s] }

// Offloads is what a Device or Socket can take off the engine's hands.
type Offloads struct {
	Checksum bool // packets with NeedsChecksum
	TCP      bool // GSOTCP4 and GSOTCP6
	UDP      bool // GSOUDP on a Device; runs of datagrams on a Socket
	// MaxSegments bounds the segments of one run; 0 means no bound.
	MaxSegments int
	// Why says, for status, what is missing and for what reason.
	Why []string
}

// Datagrams is a run of UDP datagrams with one address: bytes cut every
// SegmentSize, the last may be shorter. SegmentSize 0 means a single datagram.
type Datagrams struct {
	Addr        netip.AddrPort // unmapped; destination of a send, source of a receive
	SegmentSize int
	ECN         uint8 // the two ECN bits of the outer header (RFC 6040)
	// Unsummed: received without a UDP checksum, so that nobody has yet looked
	// whether the bytes are those that were sent. Unused when sending.
	Unsummed bool
	// Data is the received bytes, in the arena given to Receive, valid until the
	// next Receive with it. Unused when sending.
	Data []byte
	// Parts are the bytes to send, concatenated. Unused when receiving. The
	// Socket does not keep them after Send returns.
	Parts [][]byte
	// Flow picks the outer source port: equal flows keep their order and port.
	Flow uint32
}

// Socket is a batched UDP socket. One goroutine may Receive while others Send.
type Socket interface {
	// Local is the bound address and port.
	Local() netip.AddrPort
	// Receive waits until something is there, then takes what is ready without
	// waiting, up to len(batch), or MaxBatch bytes, or until the arena has less than
	// MaxPacket left. It returns ErrClosed after Close. A Socket that was opened to be polled
	// does not wait and returns 0 if nothing is there.
	Receive(batch []Datagrams, arena []byte) (n int, err error)
	// Send sends runs in order. An error concerns batch[n]; the caller may go on
	// after it. ErrTooBig means a datagram exceeds the path's MTU, ErrOffload
	// that the run must be sent one datagram at a time, ErrFull that the socket
	// stayed full for a bounded short time.
	Send(batch []Datagrams) (n int, err error)
	Offloads() Offloads
	Close() error
}

// Errors of Devices and Sockets. OS errors are wrapped together with these.
var (
	ErrClosed  = errors.New("closed")
	ErrTooBig  = errors.New("larger than the path MTU")
	ErrOffload = errors.New("offload refused")
	ErrFull    = errors.New("send buffer full")
	// ErrNoDevice means that this system or user has no TUN at all.
	ErrNoDevice = errors.New("no TUN device can be used")
	// ErrShorter goes with ErrOffload where a shorter run may pass.
	ErrShorter = errors.New("a shorter run may pass")
)
