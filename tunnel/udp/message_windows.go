package udp

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// maxParts bounds the parts of one datagram or run.
const maxParts = 256

// name is a socket address of either family as the system has it (ws2ipdef.h).
type name struct{ raw windows.RawSockaddrInet6 }

const nameSize = int32(unsafe.Sizeof(windows.RawSockaddrInet6{}))

// any is what system calls take.
func (n *name) any() *syscall.RawSockaddrAny {
	return (*syscall.RawSockaddrAny)(unsafe.Pointer(&n.raw))
}

// put sets the address and returns its size.
func (n *name) put(addr netip.AddrPort) int32 {
	if addr.Addr().Is4() {
		raw := (*windows.RawSockaddrInet4)(unsafe.Pointer(&n.raw))
		*raw = windows.RawSockaddrInet4{Family: windows.AF_INET, Addr: addr.Addr().As4()}
		putPort(&raw.Port, addr.Port())
		return int32(unsafe.Sizeof(*raw))
	}
	n.raw = windows.RawSockaddrInet6{Family: windows.AF_INET6, Addr: addr.Addr().As16()}
	putPort(&n.raw.Port, addr.Port())
	return nameSize
}

// get returns the address.
func (n *name) get() netip.AddrPort {
	if n.raw.Family == windows.AF_INET {
		raw := (*windows.RawSockaddrInet4)(unsafe.Pointer(&n.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(raw.Addr), getPort(&raw.Port))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(n.raw.Addr), getPort(&n.raw.Port))
}

// Ports lie in network byte order.
func putPort(field *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(field))[:], port)
}

func getPort(field *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(field))[:])
}

const (
	headerSize = int(unsafe.Sizeof(windows.WSACMSGHDR{}))
	// entrySize is a control message with one number, with what aligns the next.
	entrySize = headerSize + int(unsafe.Sizeof(uintptr(0)))
)

// ancillary is room for the control messages of one datagram or run: the size
// of its segments and its ECN bits, and more than that on arrival.
type ancillary struct{ words [16]uint64 }

func (a *ancillary) bytes() []byte {
	return (*[unsafe.Sizeof(a.words)]byte)(unsafe.Pointer(&a.words))[:]
}

// add writes a control message with a 32-bit number behind the used bytes, and
// returns how many are used then.
func (a *ancillary) add(used int, level, kind int32, value uint32) int {
	entry := a.bytes()[used : used+entrySize]
	*(*windows.WSACMSGHDR)(unsafe.Pointer(&entry[0])) = windows.WSACMSGHDR{
		Len: uintptr(headerSize) + unsafe.Sizeof(value), Level: level, Type: kind,
	}
	binary.NativeEndian.PutUint32(entry[headerSize:], value)
	return used + entrySize
}

// number returns the number in the control message of a kind among the used
// bytes; 0 where there is none.
func (a *ancillary) number(used int, kind int32) uint32 {
	for rest := a.bytes()[:min(used, len(a.bytes()))]; len(rest) >= headerSize; {
		header := (*windows.WSACMSGHDR)(unsafe.Pointer(&rest[0]))
		if header.Len < uintptr(headerSize) || header.Len > uintptr(len(rest)) {
			return 0
		}
		if header.Type == kind && header.Len >= uintptr(headerSize)+4 {
			return binary.NativeEndian.Uint32(rest[headerSize:])
		}
		const alignment = int(unsafe.Sizeof(uintptr(0)))
		rest = rest[min(len(rest), (int(header.Len)+alignment-1)&^(alignment-1)):]
	}
	return 0
}
