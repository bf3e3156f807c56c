// Package netconf reads net-conf.json, the cluster-wide network configuration
// in flannel's format. It is pure: it must never read a file or a store, and
// never guess where the text leaves a choice open.
package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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
	VXLAN  = "vxlan"
	HostGW = "host-gw"
)

const allowedTypes = VXLAN + ", " + HostGW

// Backend says how packets are carried. For host-gw only Type is set.
type Backend struct {
	Type          string // VXLAN or HostGW
	VNI           uint32
	Port          uint16 // outer UDP port
	MTU           int    // outer MTU; 0: that of the underlay device
	Learning      bool
	GBP           bool // VXLAN group based policy extension
	DirectRouting bool // plain routes to peers on the same layer 2
}

// Defaults of the vxlan backend. Port 0 in the text means the kernel's own
// default, which is DefaultPort and not the port IANA assigned later.
const (
	DefaultVNI  = 1
	DefaultPort = 8472
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
	if config.Backend, err = parseBackend(doc.Backend, len(config.Families) == 1 && config.Families[0].is4()); err != nil {
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

// backendDocument is the Backend object as written. The zero Port and MTU mean
// the default.
type backendDocument struct {
	Type          *string
	VNI           *int64
	Port          int64
	MTU           int64
	Learning      bool
	GBP           bool
	DirectRouting bool
}

const (
	maxVNI = 1<<24 - 1
	// An inner IPv6 packet of 1280 bytes (RFC 8200, 5) under 70 bytes of outer
	// IPv6, UDP, VXLAN and Ethernet; an inner IPv4 packet of 576 (RFC 791) under 50.
	minMTUWith6 = 1280 + 70
	minMTUOnly4 = 576 + 50
	maxMTU      = 1<<16 - 1
)

func parseBackend(raw json.RawMessage, only4 bool) (Backend, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return Backend{}, fmt.Errorf("Backend.Type is missing; allowed: %s", allowedTypes)
	}
	// The type is looked at first: the other keys mean something else to each type.
	var kind struct{ Type *string }
	if err := decode(raw, "Backend", &kind); err != nil {
		return Backend{}, err
	}
	if kind.Type == nil || *kind.Type == "" {
		return Backend{}, fmt.Errorf("Backend.Type is missing; allowed: %s", allowedTypes)
	}
	switch backendType := lowerASCII(*kind.Type); backendType {
	case HostGW:
		return Backend{Type: HostGW}, nil
	case VXLAN:
		return parseVXLAN(raw, only4)
	default:
		return Backend{}, fmt.Errorf("Backend.Type is %q; allowed: %s", shorten(*kind.Type), allowedTypes)
	}
}

func parseVXLAN(raw json.RawMessage, only4 bool) (Backend, error) {
	var doc backendDocument
	if err := decode(raw, "Backend", &doc); err != nil {
		return Backend{}, err
	}
	vni := int64(DefaultVNI)
	if doc.VNI != nil {
		vni = *doc.VNI
	}
	if vni < 0 || vni > maxVNI {
		return Backend{}, fmt.Errorf("Backend.VNI is %d; allowed: 0 to %d", vni, maxVNI)
	}
	port := doc.Port
	if port == 0 {
		port = DefaultPort
	}
	if port < 0 || port > 1<<16-1 {
		return Backend{}, fmt.Errorf("Backend.Port is %d; allowed: 1 to 65535, or 0 for %d", port, DefaultPort)
	}
	minMTU := int64(minMTUWith6)
	if only4 {
		minMTU = minMTUOnly4
	}
	if doc.MTU != 0 && (doc.MTU < minMTU || doc.MTU > maxMTU) {
		return Backend{}, fmt.Errorf("Backend.MTU is %d; allowed: %d to %d, or 0 for that of the interface", doc.MTU, minMTU, maxMTU)
	}
	return Backend{
		Type: VXLAN, VNI: uint32(vni), Port: uint16(port), MTU: int(doc.MTU),
		Learning: doc.Learning, GBP: doc.GBP, DirectRouting: doc.DirectRouting,
	}, nil
}
