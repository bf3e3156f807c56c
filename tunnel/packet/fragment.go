package packet

import (
	"encoding/binary"
	"errors"
)

// ErrFragment means that a packet may not or cannot be fragmented.
var ErrFragment = errors.New("packet may not be fragmented")

// Fragments cuts an IPv4 packet into fragments (RFC 791, section 3.2), one
// Next after the other. Payload is handed out by reference.
type Fragments struct {
	header []byte
	rest   []byte
	size   int  // payload bytes per fragment, a multiple of 8
	offset int  // of the next fragment, in units of 8 bytes
	more   bool // the packet is itself a fragment, and not the last
	later  bool // the next fragment is not the first
	done   bool
}

// Fragment prepares the cutting of v into packets of at most mtu bytes. v is
// IPv4, without "don't fragment", and its transport checksum is finished.
func Fragment(v View, mtu int) (Fragments, error) {
	if v.DontFragment() {
		return Fragments{}, ErrFragment
	}
	headers := v.headerLen()
	size := (mtu - headers) &^ 7
	if size <= 0 {
		return Fragments{}, ErrFragment
	}
	position := binary.BigEndian.Uint16(v.Data[6:])
	return Fragments{
		header: v.Data[:headers], rest: v.Data[headers:], size: size,
		offset: int(position & 0x1fff), more: position&moreFragments != 0,
	}, nil
}

// HeaderLen is the length of every fragment's header.
func (f *Fragments) HeaderLen() int { return len(f.header) }

// Next writes the header of the next fragment into header, which has at least
// HeaderLen bytes, and returns its payload. It returns false when there are no more.
func (f *Fragments) Next(header []byte) (payload []byte, ok bool) {
	if f.done {
		return nil, false
	}
	length := min(f.size, len(f.rest))
	payload, f.rest = f.rest[:length:length], f.rest[length:]
	f.done = len(f.rest) == 0
	header = header[:len(f.header)]
	copy(header, f.header)
	if f.later {
		dropOptions(header[ipv4Len:])
	}
	position := uint16(f.offset & 0x1fff)
	if f.more || !f.done {
		position |= moreFragments
	}
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+length))
	binary.BigEndian.PutUint16(header[6:], position)
	clear(header[10:12])
	binary.BigEndian.PutUint16(header[10:], ^Fold(Sum(header, 0)))
	f.offset += length / 8
	f.later = true
	return payload, true
}

// dropOptions turns the options that belong into the first fragment only, those
// without the copied flag, into no-operations.
func dropOptions(options []byte) {
	const end, noOperation, copied = 0, 1, 0x80
	for len(options) > 0 && options[0] != end {
		length := 1
		if options[0] != noOperation {
			if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
				return
			}
			length = int(options[1])
		}
		if options[0]&copied == 0 {
			for i := range options[:length] {
				options[i] = noOperation
			}
		}
		options = options[length:]
	}
}
