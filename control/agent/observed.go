package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/health"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// engineCounters is what status and metrics read from the userspace engine.
type engineCounters interface {
	Counters() map[string]uint64
	Offloads() []string
	// PathMTUs is the largest inner packet that gets to each peer subnet, and
	// Sessions how WireGuard stands there.
	PathMTUs() map[netip.Prefix]int
	Sessions() map[netip.Prefix]wireguard.Status
}

// kernelSessions is what status reads from the driver of the kernel's objects:
// how WireGuard stands with its peers, by the keys of those.
type kernelSessions interface {
	Handshakes(ctx context.Context) (map[tunnel.Key]time.Time, error)
}

// reporter is what status reads from who probes ways.
type reporter interface {
	Report() map[control.WayID]health.Health
}

// putPathMTUs gives every peer the smallest path MTU of its subnets.
func putPathMTUs(peers []PeerStatus, mtus map[netip.Prefix]int) {
	bySubnet := make(map[string]int, len(mtus))
	for subnet, mtu := range mtus {
		bySubnet[subnet.String()] = mtu
	}
	for i := range peers {
		if peers[i].Engine != string(tunnel.EngineUserspace) {
			continue // the userspace engine knows another way, which is not in use
		}
		for _, subnet := range peers[i].Subnets {
			if mtu := bySubnet[subnet]; mtu > 0 && (peers[i].PathMTU == 0 || mtu < peers[i].PathMTU) {
				peers[i].PathMTU = mtu
			}
		}
	}
}

// putSessions gives every peer the latest of its subnets' sessions.
func putSessions(peers []PeerStatus, sessions map[netip.Prefix]wireguard.Status) {
	bySubnet := make(map[string]wireguard.Status, len(sessions))
	for subnet, session := range sessions {
		bySubnet[subnet.String()] = session
	}
	for i := range peers {
		for _, subnet := range peers[i].Subnets {
			keepLater(&peers[i].LastHandshake, bySubnet[subnet].LastHandshake)
			keepLater(&peers[i].LastReceived, bySubnet[subnet].LastReceived)
		}
	}
}

// putHandshakes does the same for the kernel's sessions.
func putHandshakes(peers []PeerStatus, handshakes map[tunnel.Key]time.Time) {
	for i := range peers {
		for _, key := range peers[i].objects {
			keepLater(&peers[i].LastHandshake, handshakes[key])
		}
	}
}

// putHealth gives every peer what is known of its ways in use.
func putHealth(peers []PeerStatus, report map[control.WayID]health.Health) {
	for i := range peers {
		peer := &peers[i]
		var troubles []string
		for _, id := range peer.ways {
			h := report[id]
			if h.Trouble != "" && !slices.Contains(troubles, h.Trouble) {
				troubles = append(troubles, h.Trouble)
			}
			if h.Got == 0 {
				continue
			}
			rtt, loss := float64(h.RTT.Microseconds())/1000, h.Loss
			if peer.RTT == nil || rtt > *peer.RTT {
				peer.RTT = &rtt
			}
			if peer.Loss == nil || loss > *peer.Loss {
				peer.Loss = &loss
			}
		}
		peer.Trouble = strings.Join(troubles, "; ")
	}
}

// handshakeAge is how old the last handshake of a session in use can be: one that
// is older is no longer sent with (WireGuard whitepaper, 6.1).
const handshakeAge = 3 * time.Minute

// watchHandshakes says what speaks against a way by WireGuard that is in use:
// probes are answered and so keep a session alive, or something is wrong.
func watchHandshakes(peers []PeerStatus, now time.Time) {
	for i := range peers {
		peer := &peers[i]
		if peer.Encap != string(tunnel.EncapWireGuard) || peer.Trouble != "" {
			continue
		}
		if at := peer.LastHandshake; at != nil && now.Sub(*at) > handshakeAge && peer.RTT != nil {
			peer.Trouble = fmt.Sprintf("the last WireGuard handshake was %s ago", now.Sub(*at).Truncate(time.Second))
		}
	}
}

func keepLater(have **time.Time, at time.Time) {
	if !at.IsZero() && (*have == nil || at.After(**have)) {
		*have = &at
	}
}
