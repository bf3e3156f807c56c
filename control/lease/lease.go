// Package lease translates between control's leases and the forms flannel
// keeps them in: annotations of Kubernetes Nodes and keys of etcd. What it
// writes is flannel's, byte for byte, and the offers of a host that has any,
// where a flanneld passes over them; what it reads is hostile until proven
// otherwise. It is pure: it must never touch the operating system, a clock or
// a store, and never fail as a whole where one leg can be dropped.
package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-net/weft/control"
)

// The backend types whose leases are understood to the last byte. Leases of
// other types are read as far as their addresses.
const (
	VXLAN     = "vxlan"
	HostGW    = "host-gw"
	WireGuard = "wireguard"
)

// The families, as indexes into everything that has one entry per family.
const (
	v4 = iota
	v6
	families
)

var familyNames = [families]string{"IPv4", "IPv6"}

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return v4
	}
	return v6
}

// Limits on what a host may publish about itself, in bytes.
const (
	maxData    = 4 << 10 // one family's backend data
	maxOffers  = 4 << 10 // offers
	maxBackend = 32      // a backend type
	maxQuoted  = 64      // foreign text repeated in a problem
)

// published is what one host has published, not yet believed.
type published struct {
	host    string
	backend string
	guest   bool
	legs    [families]publishedLeg
	offers  []byte // empty: none
}

type publishedLeg struct {
	subnet   netip.Prefix // zero: none
	publicIP string       // empty: none
	data     []byte       // backend data; empty or "null": none
}

// noIPv4 is what flannel publishes as the IPv4 address of a host that has none.
const noIPv4 = "0.0.0.0"

// lease believes what can be believed, family by family. A family without a
// subnet or without a public IP is one the host has not joined with (or has
// left: annotations are never deleted); that is no problem unless nothing
// remains.
func (p published) lease(problems []string) control.Lease {
	lease := control.Lease{Host: p.host, Backend: p.backend, Guest: p.guest, Problems: problems}
	if err := checkBackend(p.backend); err != nil {
		lease.Backend = ""
		lease.Problems = append(lease.Problems, err.Error())
		return lease
	}
	for family, raw := range p.legs {
		if !raw.subnet.IsValid() || raw.publicIP == "" || raw.publicIP == noIPv4 {
			continue
		}
		leg, err := raw.leg(family, p.backend)
		if err != nil {
			lease.Problems = append(lease.Problems, familyNames[family]+": "+err.Error())
			continue
		}
		lease.Legs = append(lease.Legs, leg)
	}
	if len(lease.Legs) == 0 && len(lease.Problems) == 0 {
		lease.Problems = append(lease.Problems, "no public IP of a family that has a subnet")
	}
	var err error
	if lease.Offers, err = parseOffers(p.offers); err != nil {
		lease.Problems = append(lease.Problems, err.Error())
	}
	return lease
}

func (r publishedLeg) leg(family int, backend string) (control.Leg, error) {
	publicIP, err := parsePublicIP(r.publicIP, family)
	if err != nil {
		return control.Leg{}, err
	}
	leg := control.Leg{Subnet: r.subnet, PublicIP: publicIP}
	// flannel on Windows minds no case, and neither do those who write by hand.
	switch {
	case strings.EqualFold(backend, VXLAN):
		data, err := parseVXLAN(r.data)
		if err != nil {
			return control.Leg{}, err
		}
		leg.MAC, leg.VNI = data.VtepMAC, data.VNI
	case strings.EqualFold(backend, WireGuard):
		data, err := parseWireGuard(r.data)
		if err != nil {
			return control.Leg{}, err
		}
		leg.Key, leg.Port = data.PublicKey, data.Port
	}
	return leg, nil
}

// checkBackend bounds a backend type: it ends up in status and logs.
func checkBackend(backend string) error {
	if len(backend) > maxBackend {
		return fmt.Errorf("backend type %s: longer than %d bytes", quote(backend), maxBackend)
	}
	for _, r := range backend {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("backend type %s: not a plain word", quote(backend))
		}
	}
	return nil
}

// parseSubnet reads an inner subnet. Host bits are masked off.
func parseSubnet(text string) (netip.Prefix, error) {
	subnet, err := netip.ParsePrefix(text)
	if err != nil || subnet.Bits() == 0 || subnet.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("subnet %s: want address/length, as in 10.244.1.0/24", quote(text))
	}
	return subnet.Masked(), nil
}

// parsePublicIP reads an address that packets can be sent to across hosts.
func parsePublicIP(text string, family int) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("public IP %s: not an IP address", quote(text))
	}
	if family == v4 {
		addr = addr.Unmap()
	}
	if familyOf(addr) != family || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("public IP %s: not an %s address", quote(text), familyNames[family])
	}
	if err := checkPublicIP(addr); err != nil {
		return netip.Addr{}, fmt.Errorf("public IP %s: %w", quote(text), err)
	}
	return addr, nil
}

// checkPublicIP refuses what no other host can send to. IPv4 link-local is
// let through: ad-hoc networks have nothing else, and it needs no zone.
func checkPublicIP(addr netip.Addr) error {
	switch {
	case !addr.IsValid():
		return errors.New("missing")
	case addr.Zone() != "":
		return errors.New("has a zone, which means nothing to other hosts")
	case addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0:
		return errors.New("unspecified address")
	case addr.IsLoopback():
		return errors.New("loopback address")
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("not a unicast address")
	case addr.Is6() && addr.IsLinkLocalUnicast():
		return errors.New("link-local address")
	}
	return nil
}

// claimLegs sorts a claim's legs by family and refuses a claim that no peer
// could use.
func claimLegs(claim control.Claim) (legs [families]*control.Leg, err error) {
	if claim.Backend != VXLAN && claim.Backend != HostGW && claim.Backend != WireGuard {
		return legs, fmt.Errorf("backend type %s: allowed: %s, %s, %s", quote(claim.Backend), VXLAN, HostGW, WireGuard)
	}
	for i := range claim.Legs {
		leg := &claim.Legs[i]
		if err := checkPublicIP(leg.PublicIP); err != nil {
			return legs, fmt.Errorf("public IP %s: %w", leg.PublicIP, err)
		}
		family := familyOf(leg.PublicIP)
		if legs[family] != nil {
			return legs, fmt.Errorf("two %s legs", familyNames[family])
		}
		legs[family] = leg
	}
	if len(claim.Legs) == 0 {
		return legs, errors.New("no address family is enabled")
	}
	return legs, nil
}

// quote makes foreign text fit to print: escaped and bounded.
func quote(text string) string {
	if len(text) <= maxQuoted {
		return strconv.Quote(text)
	}
	return strconv.Quote(text[:maxQuoted]) + "..."
}
