package tunnel

import (
	"crypto/ecdh"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
)

// KeyLen is the length of every WireGuard key in bytes.
const KeyLen = 32

// PublicKey is a WireGuard public key, by which a host is known. The zero
// PublicKey means "none".
type PublicKey [KeyLen]byte

// ParsePublicKey parses the base64 form that wg and flannel write, as in
// "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".
func ParsePublicKey(s string) (PublicKey, error) {
	key, err := decodeKey(s)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parse public key: %w", err)
	}
	return PublicKey(key), nil
}

// String returns what ParsePublicKey parses.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText writes the base64 form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText accepts what ParsePublicKey accepts.
func (k *PublicKey) UnmarshalText(text []byte) (err error) {
	*k, err = ParsePublicKey(string(text))
	return err
}

// SecretKey is a WireGuard private key or pre-shared key. It prints as
// "(secret)" in whatever way it is printed; Text alone tells it. The zero
// SecretKey means "none".
type SecretKey [KeyLen]byte

// ParseSecretKey parses the base64 form that wg writes. Its errors do not tell
// the text.
func ParseSecretKey(s string) (SecretKey, error) {
	key, err := decodeKey(s)
	if err != nil {
		return SecretKey{}, fmt.Errorf("parse secret key: %w", err)
	}
	return SecretKey(key), nil
}

// Public is the public key of a private one.
func (k SecretKey) Public() PublicKey {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return PublicKey{} // of another length, which cannot be
	}
	return PublicKey(private.PublicKey().Bytes())
}

// Text is the base64 form, for the files that secrets are kept in.
func (k SecretKey) Text() string { return base64.StdEncoding.EncodeToString(k[:]) }

const concealed = "(secret)"

// Format implements fmt.Formatter, for every verb.
func (SecretKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(concealed)) }

// LogValue implements slog.LogValuer.
func (SecretKey) LogValue() slog.Value { return slog.StringValue(concealed) }

// MarshalText refuses: no document is a place for a secret.
func (SecretKey) MarshalText() ([]byte, error) {
	return nil, errors.New("a secret key is not to be written into a document")
}

func decodeKey(s string) ([KeyLen]byte, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(s)
	switch {
	case err != nil || len(key) != KeyLen:
		return [KeyLen]byte{}, errors.New("want 32 bytes in base64: 44 characters, the last of them =")
	case [KeyLen]byte(key) == [KeyLen]byte{}:
		return [KeyLen]byte{}, errors.New("all 32 bytes are zero")
	}
	return [KeyLen]byte(key), nil
}
