package tunnel

import (
	"fmt"
	"net/netip"
)

// Kind is the kind of a host object. Its order is the order of creation;
// deletion runs in reverse.
type Kind uint8

// The kinds, in order of creation.
const (
	KindLink Kind = iota + 1
	KindAddress
	KindNeighbor
	KindFDB
	KindWireGuard
	KindFirewall
	KindRoute
)

var kindNames = map[Kind]string{
	KindLink: "link", KindAddress: "address", KindNeighbor: "neighbor",
	KindFDB: "fdb", KindWireGuard: "wireguard", KindFirewall: "firewall", KindRoute: "route",
}

// String returns the kind's name as status prints it.
func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Key identifies one object on a host: two objects with equal keys are
// versions of the same thing.
type Key struct {
	Kind Kind
	Name string
}

// String returns the form status and logs use, as in "route 10.244.2.0/24".
func (k Key) String() string { return k.Kind.String() + " " + k.Name }

// Compare orders keys by creation order, then by name.
func (k Key) Compare(other Key) int {
	switch {
	case k.Kind != other.Kind:
		return int(k.Kind) - int(other.Kind)
	case k.Name < other.Name:
		return -1
	case k.Name > other.Name:
		return 1
	}
	return 0
}

// Object is something that should exist, or does exist, on this host. Every
// implementation is a comparable struct: want == have means "in place". The
// implementations are Link, Address, Neighbor, FDBEntry, WireGuardPeer, Firewall
// and Route.
type Object interface {
	Key() Key
}

// LinkType is what a Link is made of.
type LinkType string

// The link types. A TUN is opened by the engine's device; as an object only
// its MTU and up state are managed.
const (
	LinkVXLAN     LinkType = "vxlan"
	LinkTUN       LinkType = "tun"
	LinkWireGuard LinkType = "wireguard"
)

// Link is a network device that is up.
type Link struct {
	Name string
	Type LinkType
	MTU  int // largest inner packet
	// The rest is for LinkVXLAN, but for Port.
	MAC      MAC
	VNI      uint32
	Port     uint16     // outer UDP destination port
	Local    netip.Addr // outer source address
	Parent   string     // underlay device
	Learning bool
	GBP      bool
	// PublicKey of a LinkWireGuard is that of the private key the driver was given;
	// Port is where it listens.
	PublicKey PublicKey
}

// Key implements Object.
func (l Link) Key() Key { return Key{KindLink, l.Name} }

// Address is an address on one of our links.
type Address struct {
	Link   string
	Prefix netip.Prefix // address and length, not masked
}

// Key implements Object.
func (a Address) Key() Key { return Key{KindAddress, a.Link + " " + a.Prefix.String()} }

// Neighbor is a permanent neighbour entry (ARP or NDP): inner IP to MAC.
type Neighbor struct {
	Link string
	IP   netip.Addr
	MAC  MAC
}

// Key implements Object.
func (n Neighbor) Key() Key { return Key{KindNeighbor, n.Link + " " + n.IP.String()} }

// FDBEntry is a permanent forwarding entry of a VXLAN device: MAC to outer address.
type FDBEntry struct {
	Link   string
	MAC    MAC
	Remote netip.Addr
}

// Key implements Object.
func (f FDBEntry) Key() Key { return Key{KindFDB, f.Link + " " + f.MAC.String()} }

// WireGuardPeer is a peer of a kernel WireGuard device.
type WireGuardPeer struct {
	Link      string
	PublicKey PublicKey
	Endpoint  netip.AddrPort // outer; where the peer has roamed to is of no account
	Subnet    netip.Prefix   // inner: all that the peer may send from
	Keepalive int            // seconds; 0: none
}

// Key implements Object.
func (w WireGuardPeer) Key() Key { return Key{KindWireGuard, w.Link + " " + w.PublicKey.String()} }

// Route is a route in the main table.
type Route struct {
	Prefix    netip.Prefix
	Via       netip.Addr // zero: on the link itself
	Link      string     // empty for a blackhole
	OnLink    bool       // Via is reachable on Link although no route says so
	MTU       int        // 0: the link's
	Blackhole bool       // lowest priority: catches what no other route takes
}

// Key implements Object.
func (r Route) Key() Key {
	if r.Blackhole {
		return Key{KindRoute, "blackhole " + r.Prefix.String()}
	}
	return Key{KindRoute, r.Prefix.String()}
}

// Firewall is weft's whole nftables table for one inner family: masquerade of
// pod traffic that leaves the network, and acceptance of forwarded pod
// traffic. There is one per family in use.
type Firewall struct {
	Network     netip.Prefix // the whole pod network
	Subnet      netip.Prefix // this host's lease
	Masquerade  bool
	RandomFully bool // randomise masqueraded source ports
	Forward     bool // accept forwarded traffic from and to Network
}

// Key implements Object.
func (f Firewall) Key() Key {
	if f.Network.Addr().Is4() {
		return Key{KindFirewall, "ip"}
	}
	return Key{KindFirewall, "ip6"}
}
