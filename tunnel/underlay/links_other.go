//go:build !linux

package underlay

import (
	"fmt"
	"net"
	"net/netip"
)

// observeLinks lists this host's interfaces and addresses as the standard
// library knows them.
func observeLinks() (Facts, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return Facts{}, fmt.Errorf("observe interfaces: %w", err)
	}
	var facts Facts
	for _, i := range interfaces {
		link := Link{Name: i.Name, Index: i.Index, MTU: i.MTU, Up: i.Flags&net.FlagUp != 0}
		addrs, err := i.Addrs()
		if err != nil {
			return Facts{}, fmt.Errorf("observe addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue // neither IPv4 nor IPv6
			}
			link.Addrs = append(link.Addrs, Addr{Prefix: prefix, Permanent: true})
		}
		facts.Links = append(facts.Links, link)
	}
	return facts, nil
}
