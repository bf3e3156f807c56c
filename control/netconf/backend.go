package netconf

import (
	"encoding/json"
	"fmt"
)

// backendDocument is the Backend object of type vxlan as written, but for what
// all types share. The zero port and MTU mean the default.
type backendDocument struct {
	VNI           *int64
	Port          int64
	MTU           int64
	Learning      bool
	GBP           bool
	DirectRouting bool
}

const (
	maxVNI  = 1<<24 - 1
	maxPort = 1<<16 - 1
	// The least inner MTU: RFC 8200, 5 where there is IPv6, else RFC 791.
	minInnerWith6 = 1280
	minInnerOnly4 = 576
	maxMTU        = 1<<16 - 1
)

// carrier is a backend type with a device of its own, and the bytes that it
// puts around an inner packet: over IPv4 alone, and where there is IPv6.
type carrier struct{ only4, with6 int64 }

var (
	// Outer IP, UDP, VXLAN and Ethernet.
	vxlanCarrier = carrier{only4: 50, with6: 70}
	// Outer IPv6, UDP and WireGuard: flannel allows for that much over IPv4 as well.
	wireGuardCarrier = carrier{only4: 80, with6: 80}
)

func parseBackend(raw json.RawMessage, families []Family) (Backend, error) {
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
	var backend Backend
	var err error
	switch backend.Type = lowerASCII(*kind.Type); backend.Type {
	case HostGW:
	case VXLAN:
		err = parseVXLAN(raw, families, &backend)
	case WireGuard:
		err = parseWireGuard(raw, families, &backend)
	default:
		err = fmt.Errorf("Backend.Type is %q; allowed: %s", shorten(*kind.Type), allowedTypes)
	}
	var shared wireGuardDocument
	if err == nil {
		err = decode(raw, "Backend", &shared)
	}
	if err == nil {
		err = shared.parse(&backend)
	}
	if err == nil {
		err = backend.contradiction(families)
	}
	if err != nil {
		return Backend{}, err
	}
	return backend, nil
}

func parseVXLAN(raw json.RawMessage, families []Family, backend *Backend) (err error) {
	var doc backendDocument
	if err := decode(raw, "Backend", &doc); err != nil {
		return err
	}
	vni := int64(DefaultVNI)
	if doc.VNI != nil {
		vni = *doc.VNI
	}
	if vni < 0 || vni > maxVNI {
		return fmt.Errorf("Backend.VNI is %d; allowed: 0 to %d", vni, maxVNI)
	}
	backend.VNI = uint32(vni)
	if backend.Port, err = parsePort("Backend.Port", doc.Port, DefaultPort); err != nil {
		return err
	}
	if backend.MTU, err = parseMTU(doc.MTU, families, vxlanCarrier); err != nil {
		return err
	}
	backend.Learning, backend.GBP, backend.DirectRouting = doc.Learning, doc.GBP, doc.DirectRouting
	return nil
}

// modeSeparate is flannel's default, one device per family. Its other modes
// put both families through one device, and publish what depends on the peer.
const modeSeparate = "separate"

func parseWireGuard(raw json.RawMessage, families []Family, backend *Backend) (err error) {
	var doc struct {
		Mode string
		MTU  int64
	}
	if err := decode(raw, "Backend", &doc); err != nil {
		return err
	}
	switch doc.Mode {
	case "", modeSeparate:
	case "auto", "ipv4", "ipv6":
		return fmt.Errorf("Backend.Mode is %q, which puts both families through one device and is not carried out; set it to %q, or leave it out", doc.Mode, modeSeparate)
	default:
		return fmt.Errorf("Backend.Mode is %q; allowed: %s", shorten(doc.Mode), modeSeparate)
	}
	backend.MTU, err = parseMTU(doc.MTU, families, wireGuardCarrier)
	return err
}

func parsePort(key string, port, otherwise int64) (uint16, error) {
	if port < 0 || port > maxPort {
		return 0, fmt.Errorf("%s is %d; allowed: 1 to %d, or 0 for %d", key, port, maxPort, otherwise)
	}
	if port == 0 {
		port = otherwise
	}
	return uint16(port), nil
}

func parseMTU(mtu int64, families []Family, by carrier) (int, error) {
	least := minInnerWith6 + by.with6
	if len(families) == 1 && families[0].is4() {
		least = minInnerOnly4 + by.only4
	}
	if mtu != 0 && (mtu < least || mtu > maxMTU) {
		return 0, fmt.Errorf("Backend.MTU is %d; allowed: %d to %d, or 0 for that of the interface", mtu, least, maxMTU)
	}
	return int(mtu), nil
}
