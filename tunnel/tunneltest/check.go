package tunneltest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

// layout is where the parts of a packet are.
type layout struct {
	source, destination netip.Addr
	protocol            uint8
	transport           int // offset
	fragment            bool
}

// parse finds the parts of a packet whose length must be exactly its IP length.
func parse(b []byte) (layout, error) {
	var l layout
	if len(b) < 20 {
		return l, fmt.Errorf("packet of %d bytes", len(b))
	}
	if b[0]>>4 == 4 {
		l.source, l.destination = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		l.protocol, l.transport = b[9], int(b[0]&15)*4
		l.fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0
		if length := int(binary.BigEndian.Uint16(b[2:])); length != len(b) || l.transport < 20 || l.transport > length {
			return l, fmt.Errorf("IPv4 length %d, header %d, in %d bytes", length, l.transport, len(b))
		}
		if sum := ones(b[:l.transport]); sum != 0xffff {
			return l, fmt.Errorf("IPv4 header sums to %#x", sum)
		}
		return l, nil
	}
	if b[0]>>4 != 6 || len(b) < 40 {
		return l, fmt.Errorf("IP version %d in %d bytes", b[0]>>4, len(b))
	}
	l.source, l.destination = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	l.protocol, l.transport = b[6], 40
	if length := int(binary.BigEndian.Uint16(b[4:])); length+40 != len(b) {
		return l, fmt.Errorf("IPv6 length %d in %d bytes", length, len(b))
	}
	for l.protocol == 0 || l.protocol == 60 || l.protocol == 44 {
		if l.transport+8 > len(b) {
			return l, errors.New("IPv6 extension header is cut off")
		}
		next, length := b[l.transport], 8+int(b[l.transport+1])*8
		if l.protocol == 44 {
			length = 8
			l.fragment = l.fragment || binary.BigEndian.Uint16(b[l.transport+2:])&^6 != 0
		}
		l.protocol, l.transport = next, l.transport+length
		if l.transport > len(b) {
			return l, errors.New("IPv6 extension header is cut off")
		}
	}
	return l, nil
}

// Check says what is wrong with a finished packet: every length and checksum
// of IPv4, IPv6, TCP, UDP and ICMP. Fragments are checked up to the IP header.
func Check(b []byte) error {
	l, err := parse(b)
	if err != nil || l.fragment {
		return err
	}
	t := b[l.transport:]
	switch l.protocol {
	case TCP:
		if len(t) < 20 || int(t[12]>>4)*4 > len(t) || t[12]>>4 < 5 {
			return errors.New("TCP header is cut off")
		}
	case UDP:
		if len(t) < 8 || int(binary.BigEndian.Uint16(t[4:])) != len(t) {
			return errors.New("UDP length is wrong")
		}
		if l.source.Is4() && binary.BigEndian.Uint16(t[6:]) == 0 {
			return nil
		}
	case ICMPv4, ICMPv6:
		if len(t) < 8 {
			return errors.New("ICMP header is cut off")
		}
	default:
		return nil
	}
	if sum := ones(append(pseudo(l.source, l.destination, l.protocol, len(t)), t...)); sum != 0xffff {
		return fmt.Errorf("protocol %d sums to %#x", l.protocol, sum)
	}
	return nil
}

// Finish does what was put off: it returns the packets that a packet with an
// Offload stands for, each finished, as a kernel would make them. It fails where
// the packet and its Offload do not belong together.
func Finish(data []byte, offload tunnel.Offload) ([][]byte, error) {
	data = append([]byte(nil), data...)
	start := int(offload.ChecksumStart)
	at := start + int(offload.ChecksumOffset)
	if offload.GSO == tunnel.GSONone {
		if offload.NeedsChecksum {
			sum := ^ones(data[start:])
			if sum == 0 {
				sum = 0xffff
			}
			binary.BigEndian.PutUint16(data[at:], sum)
		}
		return [][]byte{data}, nil
	}
	l, err := parse(data)
	if err != nil {
		return nil, err
	}
	length := len(data) - l.transport
	if want := ones(pseudo(l.source, l.destination, l.protocol, length)); start != l.transport ||
		!offload.NeedsChecksum || binary.BigEndian.Uint16(data[at:]) != want {
		return nil, errors.New("super-packet without a partial checksum")
	}
	headers := l.transport + 8
	if l.protocol == TCP {
		headers = l.transport + int(data[l.transport+12]>>4)*4
	}
	var finished [][]byte
	payload := data[headers:]
	for k := 0; len(payload) > 0; k++ {
		n := min(int(offload.SegmentSize), len(payload))
		segment := append(append([]byte(nil), data[:headers]...), payload[:n]...)
		payload = payload[n:]
		finishSegment(segment, l, k, int(offload.SegmentSize), len(payload) == 0)
		finished = append(finished, segment)
	}
	return finished, nil
}

func finishSegment(b []byte, l layout, k, size int, last bool) {
	if l.source.Is4() {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(k))
		clear(b[10:12])
		binary.BigEndian.PutUint16(b[10:], ^ones(b[:int(b[0]&15)*4]))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	t := b[l.transport:]
	at := 6
	if l.protocol == TCP {
		at = 16
		binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(k*size))
		if !last {
			t[13] &^= FIN | PSH
		}
		if k > 0 {
			t[13] &^= CWR
		}
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	}
	clear(t[at : at+2])
	sum := ^ones(append(pseudo(l.source, l.destination, l.protocol, len(t)), t...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], sum)
}
