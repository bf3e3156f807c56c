package agent

import (
	"slices"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// itemState is how far one host object is.
type itemState struct {
	Done     bool   // in place when last looked at
	Err      string // why it is not
	Attempts int
}

// tried reports whether the object has been put in place or has failed.
func (i itemState) tried() bool { return i.Done || i.Err != "" }

// peerStatus says how one other host stands: as well as the worst of its ways.
func peerStatus(host control.HostPlan, items map[tunnel.Key]itemState) PeerStatus {
	peer := PeerStatus{Name: host.Host, Subnets: []string{}, Features: []string{}, State: StateUp}
	var reasons, endpoints []string
	addReason := func(reason string) {
		if reason != "" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	for _, way := range host.Ways {
		peer.Subnets = append(peer.Subnets, way.Subnet.String())
		endpoint := way.Endpoint.String()
		if way.Endpoint.Port() == 0 {
			endpoint = way.Endpoint.Addr().String()
		}
		endpoints = append(endpoints, endpoint)
		peer.Encap, peer.Engine = string(way.Encap), string(way.Engine)
		if peer.MTU == 0 || way.MTU < peer.MTU {
			peer.MTU = way.MTU
		}
		addReason(way.Reason)
		feature, reason := checksumOffload(way)
		if feature != "" && !slices.Contains(peer.Features, feature) {
			peer.Features = append(peer.Features, feature)
		}
		addReason(reason)
		peer.objects = append(peer.objects, way.Objects...)
		peer.ways = append(peer.ways, control.WayID{Host: host.Host, Is4: way.Subnet.Addr().Is4(), Encap: way.Encap})
		for _, key := range way.Objects {
			switch item := items[key]; {
			case item.Err != "":
				peer.State = StateFailed
				reasons = append(reasons, item.Err)
			case !item.Done && peer.State == StateUp:
				peer.State = StateProgramming
			}
		}
	}
	if len(host.Ways) == 0 {
		peer.State = StateUnreachable
	}
	peer.Endpoint = strings.Join(endpoints, ",")
	peer.Reason = strings.Join(append(reasons, host.Reasons...), "; ")
	return peer
}

// checksumOffload says whether inner checksums are left to the peer, as a
// feature, and why or why not. It has nothing to say of ways on which the
// choice does not exist.
func checksumOffload(way control.Way) (feature, reason string) {
	switch {
	case way.RemoteChecksum:
		return "checksum offload", "checksum offload: the peer offers it"
	case way.Encap == tunnel.EncapVXLAN && way.Engine == tunnel.EngineUserspace && way.KeepChecksums:
		return "", "no checksum offload: switched off"
	case way.Encap == tunnel.EncapVXLAN && way.Engine == tunnel.EngineUserspace:
		return "", "no checksum offload: the peer does not offer it"
	}
	return "", ""
}

// readiness decides whether this host may be called ready: the lease source's
// listing is whole, a family is usable at all (it gives the MTU), everything of this host's own is in place, every peer's
// objects have been tried, and not all peers failed. A host that was ready
// stays so while a new peer is being programmed.
func readiness(planned control.Plan, items map[tunnel.Key]itemState, was bool) bool {
	if !planned.Complete || planned.MTU == 0 {
		return false
	}
	beside := besideVXLAN(planned.Objects)
	for _, object := range planned.Objects {
		item := items[object.Key()]
		if isOwn(object, beside) && !item.Done || !item.tried() && !was {
			return false
		}
	}
	works, failed := 0, 0
	for _, host := range planned.Hosts {
		switch peerStatus(host, items).State {
		case StateUp:
			works++
		case StateFailed:
			failed++
		}
	}
	return works > 0 || failed == 0
}

// isOwn reports whether the host is of no use without the object: it serves
// the host itself and not one peer. Rules that only accept are not of that
// kind: a kernel without nftables has nothing that would drop. Nor is what
// stands beside the device that the network is about.
func isOwn(object tunnel.Object, beside map[string]bool) bool {
	switch o := object.(type) {
	case tunnel.Firewall:
		return o.Masquerade
	case tunnel.Neighbor, tunnel.FDBEntry, tunnel.WireGuardPeer:
		return false
	case tunnel.Route:
		return o.Blackhole
	case tunnel.Link:
		return !beside[o.Name]
	case tunnel.Address:
		return !beside[o.Link]
	}
	return true
}

// besideVXLAN are the devices that serve WireGuard alone, on a host that has
// kernel VXLAN.
func besideVXLAN(objects []tunnel.Object) map[string]bool {
	beside, vxlan := map[string]bool{}, false
	for _, object := range objects {
		if link, ok := object.(tunnel.Link); ok {
			vxlan = vxlan || link.Type == tunnel.LinkVXLAN
			beside[link.Name] = link.Type != tunnel.LinkVXLAN
		}
	}
	if !vxlan {
		return nil
	}
	return beside
}
