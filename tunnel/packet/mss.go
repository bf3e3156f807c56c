package packet

import (
	"encoding/binary"
	"math/bits"
)

// TCP options (RFC 9293, section 3.1).
const (
	optionEnd  = 0
	optionNone = 1
	optionMSS  = 2
	mssLen     = 4
)

// SYN reports whether v is a whole TCP packet with its SYN flag set.
func (v View) SYN() bool {
	if v.Protocol != TCP {
		return false
	}
	_, ok := v.PayloadOffset()
	return ok && v.Data[v.Transport+13]&flagSYN != 0
}

// ClampMSS lowers the maximum segment size that a whole TCP SYN or SYN-ACK
// announces, so that what the other end then sends fits packets of mtu bytes
// (RFC 6691: less the fixed headers only, as a sender counts options itself).
// It reports whether v was changed, and never raises or adds the option.
//
// partial says that the checksum is still to be finished. The field then holds
// nothing but the pseudo-header sum, which no option is part of, and stays as
// it is; a finished one is updated. The caller has to say which, because one
// finished checksum in 65,536 looks partial.
func ClampMSS(v View, mtu int, partial bool) bool {
	if !v.SYN() {
		return false
	}
	most := mtu - ipv6Len - tcpLen
	if v.Is4() {
		most = mtu - ipv4Len - tcpLen
	}
	if most <= 0 {
		return false
	}
	changed := false
	headers, _ := v.PayloadOffset()
	header := v.Data[v.Transport:headers]
	for at := tcpLen; at < len(header); {
		length := optionLen(header[at:])
		if length == 0 {
			break
		}
		if header[at] == optionMSS && length == mssLen && int(binary.BigEndian.Uint16(header[at+2:])) > most {
			putMSS(header, at+2, uint16(most), partial)
			changed = true
		}
		at += length
	}
	return changed
}

// optionLen is the length of the TCP option at the start of b, and 0 where the
// options end or are broken: no receiver reads on there.
func optionLen(b []byte) int {
	switch b[0] {
	case optionEnd:
		return 0
	case optionNone:
		return 1
	}
	if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
		return 0
	}
	return int(b[1])
}

// putMSS writes the option's value, at an offset of a TCP header that need not
// be even. The words of a checksum are, so that an odd value counts as swapped.
func putMSS(header []byte, at int, mss uint16, partial bool) {
	before, after := binary.BigEndian.Uint16(header[at:]), mss
	binary.BigEndian.PutUint16(header[at:], mss)
	if partial {
		return
	}
	if at%2 != 0 {
		before, after = bits.ReverseBytes16(before), bits.ReverseBytes16(after)
	}
	check := header[16:18]
	binary.BigEndian.PutUint16(check, Update(binary.BigEndian.Uint16(check), before, after))
}
