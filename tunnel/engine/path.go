package engine

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/pathmtu"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/schedule"
	"github.com/weft-net/weft/tunnel/vxlan"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// Outer IP and UDP headers of either family, in bytes.
const (
	outerHeaders4 = 20 + 8
	outerHeaders6 = 40 + 8
)

// largePacket is the size from which on packets say that a path is used in a
// way that its MTU matters for. Below it lies what only acknowledges.
const largePacket = 512

// path is the way to one peer: what the workers and the prober share. Workers
// take no lock for it.
type path struct {
	runs runLimit
	// unsummed: the peer was seen to send without UDP checksums.
	unsummed atomic.Bool
	mtu      atomic.Int32 // largest inner packet that gets through in one piece
	used     atomic.Bool  // a large packet was sent since the prober looked
	watched  atomic.Bool  // the prober looks again by itself
	refused  atomic.Int32 // size of an inner packet that the Socket called too big; 0: none

	// The rest is the prober's, under its lock.
	schedule.Entry
	peer   *peertable.Entry
	sealed *wireguard.Peer // of a peer that gets WireGuard
	number uint32          // its own, in probes
	search *pathmtu.Search
	logged int       // MTU that the log was last told
	begun  time.Time // when probes were sent last
	test   runTest
}

// MTU is the largest inner packet that gets through now in one piece. For inner
// IPv6 it may be below what every link has to carry.
func (p *path) MTU() int { return int(p.mtu.Load()) }

// nextStep is when the prober has something to do.
func (p *path) nextStep() time.Time { return earlier(p.search.Due(), p.test.due) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (p *path) innerIs4() bool { return p.peer.Prefixes[0].Addr().Is4() }

// overhead is what a datagram to peer has around the inner packet, in bytes.
func overhead(peer *peertable.Entry) int {
	if peer.Encap == tunnel.EncapWireGuard {
		return wireguard.Overhead
	}
	return vxlan.Overhead
}

// endpoint is where the peer is now.
func (p *path) endpoint() netip.AddrPort {
	if p.sealed != nil && p.peer.Encap == tunnel.EncapWireGuard {
		return p.sealed.Endpoint()
	}
	return p.peer.Endpoint
}

func (p *path) outerHeaders() int {
	if p.peer.Endpoint.Addr().Is4() {
		return outerHeaders4 + overhead(p.peer)
	}
	return outerHeaders6 + overhead(p.peer)
}

// searchConfigs are the settings of searches by the bytes of outer headers.
type searchConfigs map[int]*pathmtu.Config

// outerSizes are MTUs that links have: the least of IPv6, tunnels of several
// kinds over Ethernet, Ethernet itself, and what clouds and data centres call jumbo.
var outerSizes = [...]int{1280, 1340, 1380, 1400, 1420, 1440, 1450, 1460, 1476, 1480, 1492, 1500, 4352, 8896, 9000, 9001}

// minMTU6 is what every link has to carry of IPv6 (RFC 8200, section 5).
const minMTU6 = 1280

func newSearchConfigs(base pathmtu.Config) searchConfigs {
	configs := searchConfigs{}
	for _, ip := range [...]int{outerHeaders4, outerHeaders6} {
		for _, encap := range [...]int{vxlan.Overhead, wireguard.Overhead} {
			config := base
			// What every host has to receive (RFC 791). For inner IPv6 it is no more,
			// as an underlay with an MTU of 1280 carries less than that inside.
			config.Floor, config.Likely = 576, nil
			for _, size := range outerSizes {
				config.Likely = append(config.Likely, size-ip-encap)
			}
			configs[ip+encap] = &config
		}
	}
	return configs
}

func (c searchConfigs) of(p *path) *pathmtu.Config { return c[p.outerHeaders()] }

// lowerMTU guesses what a path carries that did not let size bytes through.
func (p *path) lowerMTU(size int) int { return packet.LowerMTU(size, p.innerIs4()) }
