// Package control decides what should be true on this host: it holds the
// values that flow from a lease source to the plan. It must never move a
// packet, and never touch the operating system.
package control

import (
	"net/netip"

	"github.com/weft-net/weft/tunnel"
)

// Leg is a lease in one address family: an inner subnet and what peers need
// to reach it.
type Leg struct {
	Subnet   netip.Prefix // inner, masked
	PublicIP netip.Addr   // outer address peers send to
	MAC      tunnel.MAC   // VTEP MAC; zero unless the backend is vxlan
	VNI      uint32       // as published; zero unless the backend is vxlan
	// Key and Port are of the backend wireguard, in flannel's form; zero unless
	// the backend is that. What hosts of other backends offer is in Offers.
	Key  tunnel.PublicKey
	Port uint16
}

// Offers are what a host can do beyond what its backend type says, one field
// per encapsulation. The zero value is nothing, which is what flanneld hosts
// offer. It is comparable.
type Offers struct {
	VXLAN     VXLANOffer
	WireGuard WireGuardOffer
	// NoDirect: packets for the host's subnet are not to be routed to its address,
	// however near that is: its pods are not behind the stack that has it.
	NoDirect bool
}

// VXLANOffer is what a host's VXLAN can do beyond RFC 7348.
type VXLANOffer struct {
	// RemoteChecksum: the host finishes inner checksums that a frame's header
	// marks as put off (draft-herbert-vxlan-rco-00).
	RemoteChecksum bool
	// Off: the host terminates no VXLAN, although its lease says so for want of
	// another word.
	Off bool
}

// WireGuardOffer is how a host terminates WireGuard; without Keys it does not.
type WireGuardOffer struct {
	Keys tunnel.WireGuardKeys
	// Ports are the outer UDP ports, that of IPv4 first; 0: not in that family.
	Ports [2]uint16
}

// Lease is one host's membership. It is immutable once in a Snapshot.
type Lease struct {
	Host    string // node name in Kubernetes, lease key in etcd
	Backend string // backend type, as published
	Legs    []Leg  // IPv4 first; at most one per family
	Offers  Offers
	Guest   bool // holds the lease by an invite
	// Problems say which part of the lease is unusable and why. A leg with a
	// problem is not in Legs, and offers with one are none.
	Problems []string
}

// Problem is something in the lease source that is no lease: a foreign key, an
// unreadable value.
type Problem struct {
	Source string // key or object name
	Reason string
}

// Snapshot is every lease at one moment, own lease included.
type Snapshot struct {
	// Complete is set once the source has said its first listing is whole.
	// Before that nothing may be deleted on its word.
	Complete bool
	Leases   []Lease   // sorted by Host
	Problems []Problem // sorted by Source
}

// Claim is what this host publishes about itself.
type Claim struct {
	Host    string
	Backend string
	// Legs has one entry per enabled family, IPv4 first. Subnet is the previous
	// subnet or zero: the lease source decides it.
	Legs   []Leg
	Offers Offers
}

// Recall is what the lease source already knows about this host.
type Recall struct {
	Host       string       // the name it goes by there; empty: the one it was given
	MACs       []tunnel.MAC // VTEP MACs it has published, per family: index 0 IPv4, 1 IPv6; zero if none
	InternalIP []netip.Addr // the Node's InternalIP addresses
	PublicIP   []netip.Addr // addresses the user has set for this host in the lease source (node-public-ip)
	Overwrite  []netip.Addr // addresses the user has published there instead of this host's own (public-ip-overwrite)
	// Keys are the WireGuard keys it has published. They tell whether the key file
	// is still the one that peers know.
	Keys tunnel.WireGuardKeys
}

// Self is this host, as the planner sees it.
type Self struct {
	Host   string
	Lease  Lease // own lease as acquired
	Engine tunnel.Engine
	// Underlay is the device peers are reached through.
	Underlay Underlay
	// Device is the TUN's name where Engine is userspace; empty: there is none, and
	// nothing to program on this host.
	Device string
	// WireGuard says who carries WireGuard here; the zero value: nobody.
	WireGuard tunnel.Engine
	// Failed are the ways found not to work now, and why: what is left of each
	// peer is chosen from. They are no part of what both ends know, so the two may
	// differ for a while.
	Failed map[WayID]string
}

// WayID names a way to one family of one other host.
type WayID struct {
	Host  string
	Is4   bool
	Encap tunnel.Encap
}

// Underlay is the outer device and its addresses.
type Underlay struct {
	Link string
	MTU  int
	// Addrs are the local outer addresses, IPv4 first, at most one per family.
	Addrs []netip.Addr
	// OnLink are the outer prefixes reachable without a gateway through Link.
	OnLink []netip.Prefix
}

// Policy is what the user decided: net-conf.json and flags.
type Policy struct {
	Networks     []netip.Prefix // pod networks, IPv4 first; at most one per family
	Backend      string         // "vxlan", "host-gw" or "wireguard"
	VNI          uint32
	Port         uint16 // outer UDP port
	MTU          int    // outer MTU override; 0: the underlay's
	Learning     bool
	GBP          bool
	Direct       bool // route directly to peers on the same layer 2
	Masquerade   bool
	RandomFully  bool
	ForwardRules bool
	Blackhole    bool // blackhole route for the own subnet
	// Confine: this system has blackhole routes, for what must not leave in clear.
	Confine bool
	// KeepChecksums: inner checksums are neither left to peers nor finished for them.
	KeepChecksums bool
	// Prefer is the order in which encapsulations are tried. One that is not in it
	// is not used. Empty: with the backend vxlan, direct where Direct allows it,
	// vxlan, wireguard; otherwise what the backend says and nothing else.
	Prefer  []tunnel.Encap
	Encrypt Encrypt
	// WireGuardPorts are where WireGuard listens, IPv4 first, and Keepalive the
	// seconds between packets that keep NATs open, 0 for none.
	WireGuardPorts [2]uint16
	Keepalive      int
}

// Encrypt says which pairs of hosts must use WireGuard. With the backend
// wireguard all do, whatever it says.
type Encrypt string

// The policies. With EncryptGuests, which is also the meaning of the empty
// text, the pairs with a guest do whose ends both can; with EncryptAlways a pair
// that cannot is not connected.
const (
	EncryptNever  Encrypt = "never"
	EncryptGuests Encrypt = "guests"
	EncryptAlways Encrypt = "always"
)

// Plan is everything that should be true on this host. It is sorted: the same
// snapshot gives the same plan, byte for byte.
type Plan struct {
	// Complete is the snapshot's: only a complete plan may delete.
	Complete bool
	Objects  []tunnel.Object // by Key
	Peers    []tunnel.Peer   // for the userspace engine, by name then family
	Locals   []tunnel.Local  // for the userspace engine
	Hosts    []HostPlan      // every other host, by name
	Problems []Problem       // what of the snapshot was unusable, by source
	MTU      int             // inner MTU for pods: the smallest of all families
}

// HostPlan is what was decided for one other host.
type HostPlan struct {
	Host string
	Ways []Way // one per family that works
	// Reasons say why a family, or the whole host, is unreachable.
	Reasons []string
}

// Way is how one family of one host is reached.
type Way struct {
	Subnet   netip.Prefix
	Endpoint netip.AddrPort // port 0 for direct
	Encap    tunnel.Encap
	Engine   tunnel.Engine
	MTU      int
	// Others could be taken instead, in the order of preference, and stand by: what
	// the host sends by them is taken in. Those in Self.Failed are among them, so
	// that somebody may find out when they work again. A way that has to be
	// encrypted has none.
	Others []Option
	// RemoteChecksum: inner checksums of what is sent are left to the host.
	// KeepChecksums: the policy would not have that.
	RemoteChecksum, KeepChecksums bool
	// Sealed: what the host sends in any other way is not taken in, as far as an
	// engine of ours can tell; the kernel's VXLAN cannot.
	Sealed  bool
	Reason  string       // why this way and not a better one
	Objects []tunnel.Key // the host objects it needs
}

// Option is a way that two hosts could talk in; its fields are those of Way.
type Option struct {
	Endpoint netip.AddrPort
	Encap    tunnel.Encap
	Engine   tunnel.Engine
	MTU      int
}
