package packet

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Sum adds the bytes to an Internet checksum (RFC 1071) in the making. Pieces
// may be summed one after the other, each sum being the next one's initial
// value, if all but the last have an even length. Fold ends it.
func Sum(b []byte, initial uint64) uint64 {
	// The sum is the same in either byte order up to a swap at the end, so whole
	// little-endian words are added with carry.
	var sum, carry uint64
	for len(b) >= 64 {
		// Eight words in one chain of adds; the array spares the checks that would break it.
		w := (*[64]byte)(b)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[0:]), 0)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[8:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[16:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[24:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[32:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[40:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[48:]), carry)
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(w[56:]), carry)
		sum += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.LittleEndian.Uint64(b), 0)
		sum += carry
		b = b[8:]
	}
	var tail uint64 // what is left, as the low bytes of a word
	for i := len(b) - 1; i >= 0; i-- {
		tail = tail<<8 | uint64(b[i])
	}
	sum, carry = bits.Add64(sum, tail, 0)
	return initial + uint64(bits.ReverseBytes16(Fold(sum+carry)))
}

// Fold brings a sum down to 16 bits. A checksum field holds its complement.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// Update returns the checksum field after one 16-bit word that it covers has
// changed (RFC 1624, equation 3).
func Update(check, before, after uint16) uint16 {
	return ^Fold(uint64(^check) + uint64(^before) + uint64(after))
}

// ErrChecksumPlace means that the place of a checksum is outside its packet.
var ErrChecksumPlace = errors.New("checksum is outside the packet")

// Finish finishes a partial checksum: the field at start+offset holds the
// folded pseudo-header sum, and the sum of everything from start on is added.
func Finish(b []byte, start, offset int) error {
	if start < 0 || offset < 0 || start+offset+2 > len(b) {
		return ErrChecksumPlace
	}
	binary.BigEndian.PutUint16(b[start+offset:], nonZero(^Fold(Sum(b[start:], 0))))
	return nil
}

// nonZero keeps a computed checksum from being taken for "none" in UDP (RFC
// 768). For others both values are the same number.
func nonZero(check uint16) uint16 {
	if check == 0 {
		return 0xffff
	}
	return check
}

// pseudoSum is the sum of the pseudo-header without the length (RFC 9293
// section 3.1, RFC 8200 section 8.1).
func (v View) pseudoSum() uint64 {
	addresses := v.Data[12:20]
	if !v.Is4() {
		addresses = v.Data[8:40]
	}
	return Sum(addresses, uint64(v.Protocol))
}

// PseudoSum is the sum of the pseudo-header for a transport header and payload
// of length bytes.
func (v View) PseudoSum(length int) uint64 { return v.pseudoSum() + uint64(length) }

// ChecksumOffset is where the checksum lies, from the transport header on, of
// a TCP or UDP packet that is whole and not on its way along a source route.
func (v View) ChecksumOffset() (offset int, ok bool) {
	if _, ok := v.PayloadOffset(); !ok || v.rerouted {
		return 0, false
	}
	return v.checksumOffset(), true
}

// checksumOffset is ChecksumOffset for what is known to be whole TCP or UDP.
func (v View) checksumOffset() int {
	if v.Protocol == TCP {
		return 16
	}
	return 6
}

// checksum is the field of what is known to be whole TCP or UDP.
func (v View) checksum() uint16 {
	return binary.BigEndian.Uint16(v.Data[v.Transport+v.checksumOffset():])
}

// Partial reports whether the TCP or UDP checksum was left unfinished: the
// field holds the folded sum of the pseudo-header alone. One finished packet in
// 65,536 looks so by chance, and comes out the same when finished again.
func (v View) Partial() bool {
	if _, ok := v.ChecksumOffset(); !ok {
		return false
	}
	return v.checksum() == Fold(v.PseudoSum(len(v.Data)-v.Transport))
}

// Valid reports whether a TCP or UDP packet has a checksum and it is right.
func (v View) Valid() bool {
	if _, ok := v.ChecksumOffset(); !ok || v.Protocol == UDP && v.checksum() == 0 {
		return false
	}
	b := v.Data[v.Transport:]
	return Fold(Sum(b, v.PseudoSum(len(b)))) == 0xffff
}

// HeaderValid reports whether the IPv4 header checksum is right. IPv6 has none.
func (v View) HeaderValid() bool {
	switch {
	case !v.Is4():
		return true
	case v.Data[0] == 4<<4|ipv4Len/4: // no options, as nearly always
		b := v.Data[:ipv4Len]
		sum, carry := bits.Add64(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), 0)
		sum, carry = bits.Add64(sum, uint64(binary.LittleEndian.Uint32(b[16:])), carry)
		return Fold(sum>>32+sum&0xffffffff+carry) == 0xffff
	}
	return Fold(Sum(v.Data[:v.headerLen()], 0)) == 0xffff
}
