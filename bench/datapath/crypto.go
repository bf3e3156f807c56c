package datapath

import (
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// cryptoTime is how long the cipher is measured.
const cryptoTime = 200 * time.Millisecond

// cryptoFloor is the processor time in milliseconds per Gbit that WireGuard's
// cipher alone takes to seal packets at one end and open them at the other:
// what a tunnel that encrypts must not be blamed for.
func cryptoFloor() (float64, error) {
	cipher, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	if err != nil {
		return 0, fmt.Errorf("measure cipher: %w", err)
	}
	nonce := make([]byte, chacha20poly1305.NonceSize)
	packet := make([]byte, wireGuardMTU, wireGuardMTU+chacha20poly1305.Overhead)
	bits := 0.0
	start := time.Now()
	for time.Since(start) < cryptoTime {
		sealed := cipher.Seal(packet[:0], nonce, packet, nil)
		if _, err := cipher.Open(sealed[:0], nonce, sealed, nil); err != nil {
			return 0, fmt.Errorf("measure cipher: %w", err)
		}
		bits += wireGuardMTU * 8
	}
	return float64(time.Since(start).Microseconds()) / 1e3 / (bits / 1e9), nil
}
