package udp

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

const (
	// receiveBatch is how many 64 KiB buffers one recvmmsg fills at most, and
	// largeBatch how many where what comes fills them: more would not stay in
	// the processor's cache until it is handed on.
	receiveBatch = 64
	largeBatch   = (tunnel.MaxBatch + tunnel.MaxPacket - 1) / tunnel.MaxPacket
	// sendBatch is how many runs one sendmmsg carries at most.
	sendBatch = 64
	// maxParts is how many parts one run can have: IOV_MAX.
	maxParts = 1024
	// controlWords holds two control messages of up to four bytes each, the most
	// that either direction uses.
	controlWords = 6
)

// message is struct mmsghdr.
type message struct {
	header unix.Msghdr
	length uint32
}

// control is the space of one message's control messages, aligned for them.
type control [controlWords]uint64

func (c *control) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))
}

// add appends a control message with a value of 2 or 4 bytes at used, and
// returns where the next one goes.
func (c *control) add(used int, level, kind int32, value uint32, size int) int {
	b := c.bytes()[used : used+unix.CmsgSpace(size)]
	header := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	header.Level, header.Type = level, kind
	header.SetLen(unix.CmsgLen(size))
	data := b[unix.CmsgLen(0):]
	if size == 2 {
		binary.NativeEndian.PutUint16(data, uint16(value))
	} else {
		binary.NativeEndian.PutUint32(data, value)
	}
	return used + unix.CmsgSpace(size)
}

// putName writes addr as the kernel's socket address and returns its length.
func putName(name *unix.RawSockaddrInet6, addr netip.AddrPort) uint32 {
	if addr.Addr().Is4() {
		name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		*name4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(addr.Port()), Addr: addr.Addr().As4()}
		return unix.SizeofSockaddrInet4
	}
	*name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(addr.Port()), Addr: addr.Addr().As16()}
	return unix.SizeofSockaddrInet6
}

// nameAddr reads what putName writes. The scope of a link-local address is dropped.
func nameAddr(name *unix.RawSockaddrInet6) netip.AddrPort {
	if name.Family == unix.AF_INET {
		name4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(name4.Addr), networkOrder(name4.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), networkOrder(name.Port))
}

// networkOrder turns a port between host and network byte order.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// transfer runs recvmmsg or sendmmsg on the first messages and returns how many
// were done. It never waits: the sockets are non-blocking. Only one goroutine at
// a time adds to calls.
func transfer(call uintptr, fd int, messages []message, calls *atomic.Uint64) (int, unix.Errno) {
	for {
		calls.Store(calls.Load() + 1)
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), 0, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
