package packet

import (
	"bytes"
	"encoding/binary"
)

// The timestamps option as nearly every sender lays it out (RFC 7323, appendix A).
const (
	optionTimestamps = 8
	timestampsLen    = 12
)

// Supersedes reports whether v tells its receiver all that old does, and more: both are
// TCP acknowledgements of one flow without data, and v acknowledges bytes that
// old does not. It is false where one of them may mean something by itself: with any flag but
// ACK, any option but timestamps, or different headers. Whether checksums are
// right is the caller's to know.
//
// Leaving out old is what RFC 3449, section 5.2.1 calls ACK filtering.
func (v View) Supersedes(old View) bool {
	headers, ok := v.PayloadOffset()
	if !ok || len(v.Data) != headers || len(old.Data) != headers || v.Protocol != TCP || old.Protocol != TCP ||
		v.Transport != old.Transport || !v.sameAddresses(old) {
		return false
	}
	a, b := old.Data[v.Transport:], v.Data[v.Transport:]
	// Not the acknowledgement, the window and the checksum.
	if !bytes.Equal(a[:8], b[:8]) || a[12] != b[12] || a[13] != flagACK || b[13] != flagACK || !bytes.Equal(a[18:tcpLen], b[18:tcpLen]) {
		return false
	}
	return later(a[8:], b[8:]) && laterOptions(a[tcpLen:], b[tcpLen:])
}

// sameAddresses reports whether the IP headers of v and old differ only in what a
// sender changes from packet to packet, and hold no options or extensions.
func (v View) sameAddresses(old View) bool {
	a, b := old.Data, v.Data
	if !v.Is4() {
		return v.Transport == ipv6Len && bytes.Equal(a[:ipv6Len], b[:ipv6Len])
	}
	return v.Transport == ipv4Len && bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:10], b[6:10]) && bytes.Equal(a[12:ipv4Len], b[12:ipv4Len])
}

// later reports whether the sequence number at the start of b is after that of a.
func later(a, b []byte) bool {
	return int32(binary.BigEndian.Uint32(b)-binary.BigEndian.Uint32(a)) > 0
}

// laterOptions reports whether a and b, of the same length, have no options, or
// timestamps that do not go back.
func laterOptions(a, b []byte) bool {
	if len(a) == 0 {
		return true
	}
	layout := [...]byte{optionNone, optionNone, optionTimestamps, 10}
	return len(a) == timestampsLen && bytes.Equal(a[:4], layout[:]) && bytes.Equal(b[:4], layout[:]) &&
		!later(b[4:], a[4:]) && !later(b[8:], a[8:])
}
