// Package netconf reads net-conf.json, the cluster-wide network configuration
// in flannel's format. It is pure: it must never read a file or a store, and
// never guess where the text leaves a choice open.
package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// Config is a checked network configuration.
type Config struct {
	// Families has one entry per enabled address family, IPv4 first; never empty.
	Families []Family
	NFTables bool // EnableNFTables
	Backend  Backend
}

// Networks returns the pod network of each family, IPv4 first.
func (c Config) Networks() []netip.Prefix {
	networks := make([]netip.Prefix, len(c.Families))
	for i, family := range c.Families {
		networks[i] = family.Network
	}
	return networks
}

// The backend types, in the spelling that is published in leases.
const (
	VXLAN     = "vxlan"
	HostGW    = "host-gw"
	WireGuard = "wireguard"
)

const allowedTypes = VXLAN + ", " + HostGW + ", " + WireGuard

// Backend says how packets are carried. VNI, Port, Learning, GBP and
// DirectRouting are of the type vxlan alone; MTU is not of host-gw.
type Backend struct {
	Type          string // VXLAN, HostGW or WireGuard
	VNI           uint32
	Port          uint16 // outer UDP port
	MTU           int    // outer MTU; 0: that of the underlay device
	Learning      bool
	GBP           bool // VXLAN group based policy extension
	DirectRouting bool // plain routes to peers on the same layer 2

	// The rest is for WireGuard, which in a network of another type is what hosts
	// may offer besides. Prefer and Encrypt are weft's own, as in control.Policy;
	// Prefer is nil where it is left out.
	Prefer  []tunnel.Encap
	Encrypt control.Encrypt
	// ListenPorts are where WireGuard listens, IPv4 first, also of a family that is
	// off; PersistentKeepalive is in seconds, 0 for none.
	ListenPorts         [2]uint16
	PersistentKeepalive int
	PSK                 tunnel.SecretKey // mixed into every handshake; zero: none
}

// Defaults of the backends. Port 0 in the text means the kernel's own default
// for VXLAN, which is DefaultPort and not the port IANA assigned later.
const (
	DefaultVNI          = 1
	DefaultPort         = 8472
	DefaultListenPort   = 51820 // WireGuard over IPv4
	DefaultListenPortV6 = 51821
)

// MaxSize bounds the text that Parse accepts, in bytes.
const MaxSize = 1 << 20

// document is net-conf.json as written. Pointers tell "absent" from "zero".
type document struct {
	EnableIPv4     *bool
	EnableIPv6     bool
	EnableNFTables bool
	Network        *string
	SubnetMin      *string
	SubnetMax      *string
	SubnetLen      int
	IPv6Network    *string
	IPv6SubnetMin  *string
	IPv6SubnetMax  *string
	IPv6SubnetLen  int
	Backend        json.RawMessage
}

// Parse reads net-conf.json. Keys are matched without regard to case and
// unknown keys are ignored, as flannel does. Every error names the key and
// what it may be.
func Parse(data []byte) (Config, error) {
	if len(data) > MaxSize {
		return Config{}, fmt.Errorf("parse net-conf: %d bytes, at most %d are allowed", len(data), MaxSize)
	}
	var doc document
	if err := decode(data, "", &doc); err != nil {
		return Config{}, fmt.Errorf("parse net-conf: %w", err)
	}
	config := Config{NFTables: doc.EnableNFTables}
	var err error
	if config.Families, err = doc.families(); err != nil {
		return Config{}, fmt.Errorf("parse net-conf: %w", err)
	}
	if config.Backend, err = parseBackend(doc.Backend, config.Families); err != nil {
		return Config{}, fmt.Errorf("parse net-conf: %w", err)
	}
	return config, nil
}

func (d document) families() ([]Family, error) {
	var families []Family
	for _, text := range []familyText{
		{
			keys: ipv4, enabled: d.EnableIPv4 == nil || *d.EnableIPv4, implicit: d.EnableIPv4 == nil,
			network: d.Network, min: d.SubnetMin, max: d.SubnetMax, length: d.SubnetLen,
		},
		{
			keys: ipv6, enabled: d.EnableIPv6,
			network: d.IPv6Network, min: d.IPv6SubnetMin, max: d.IPv6SubnetMax, length: d.IPv6SubnetLen,
		},
	} {
		family, on, err := text.parse()
		if err != nil {
			return nil, err
		}
		if on {
			families = append(families, family)
		}
	}
	if len(families) == 0 {
		return nil, errors.New("no address family is enabled; set Network, or EnableIPv6 to true and IPv6Network")
	}
	return families, nil
}
