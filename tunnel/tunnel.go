// Package tunnel holds the values and small interfaces shared by the code that
// moves packets: peers, host objects (links, routes, neighbours), packet
// devices and sockets. It must never import control or netstack, know what a
// lease or Kubernetes is, or call the operating system.
package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an Ethernet address. The zero MAC means "none".
type MAC [6]byte

// ParseMAC parses the colon form that VTEPs are published in, as in
// "c6:d2:32:6f:8f:44". Only 48-bit unicast, non-zero addresses are accepted.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("parse MAC %q: want six hex octets, as in 02:00:5e:00:53:01", s)
	}
	mac := MAC(hw)
	if mac == (MAC{}) || mac[0]&1 != 0 {
		return MAC{}, fmt.Errorf("parse MAC %q: %w", s, errNotUnicast)
	}
	return mac, nil
}

var errNotUnicast = errors.New("not a unicast address")

// String returns the lower-case colon form.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes the colon form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText accepts what ParseMAC accepts.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
}

// Encap names how packets to a peer are carried.
type Encap string

// The encapsulations. Direct is plain routing on a shared layer 2.
const (
	EncapVXLAN     Encap = "vxlan"
	EncapWireGuard Encap = "wireguard"
	EncapDirect    Encap = "direct"
)

// Engine names who carries packets.
type Engine string

// The engines.
const (
	EngineKernel    Engine = "kernel"
	EngineUserspace Engine = "userspace"
)

// Peer is one way to one other host, as the userspace engine sees it. A
// dual-stack host is two Peers with the same Name, one per inner family. A
// Peer is immutable once handed over.
type Peer struct {
	Name     string         // host name, for logs and status
	Prefixes []netip.Prefix // inner prefixes, masked, sorted; all of one family
	Endpoint netip.AddrPort // outer address and UDP port
	MTU      int            // largest inner packet in bytes, IP header included
	// Encap is how packets to the peer are sent; empty is EncapVXLAN. What it sends is
	// accepted in every form it speaks, as two hosts never change at one moment.
	Encap Encap
	// Sealed: what the peer sends is accepted through WireGuard only.
	Sealed bool

	// Of a peer that speaks VXLAN. VXLAN is where; it may be zero if Encap says so,
	// for then it is Endpoint.
	VXLAN netip.AddrPort
	MAC   MAC    // VTEP MAC: inner destination MAC of what we send
	VNI   uint32 // 24 bits
	// RemoteChecksum: the peer finishes inner checksums that a frame's header
	// marks as put off (draft-herbert-vxlan-rco-00).
	RemoteChecksum bool

	// Of a peer that speaks WireGuard: where, which is Endpoint if Encap says so,
	// and as whom.
	WireGuard netip.AddrPort
	Keys      WireGuardKeys
	// Keepalive is how often, in seconds, something is sent to keep a NAT or
	// firewall open; 0: never.
	Keepalive int
}

// WireGuardKeys are the public keys a host goes by: the one to begin handshakes
// with, and another that it may use as well, while one takes the place of the
// other. Either may be zero, the second alone may not be there.
type WireGuardKeys [2]PublicKey

// Local is what this host terminates for one inner family: frames to MAC on
// VNI carrying that family are ours.
type Local struct {
	Subnet netip.Prefix // own lease; only packets to an address in it are let in
	MAC    MAC
	VNI    uint32
}
