// Package differential holds the userspace engine against what it stands in
// for: the same random packets pass a kernel VXLAN device and the engine, on
// hosts that are alike in everything else, and what comes out must be the same
// byte for byte. What may differ is one table with a reason per line
// (difference_test.go); everything else is a failure. It holds nothing but tests.
//
// WEFT_DIFFERENTIAL_SEED chooses other packets. With the build tag e2e there
// are ten times as many.
package differential

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// allPackets is how many are compared in each direction with the tag e2e; a
// constant packets in tagged files says how many it is now.
const allPackets = 100_000

const (
	seedVariable = "WEFT_DIFFERENTIAL_SEED"
	defaultSeed  = 1
)

// seed returns the seed of this run.
func seed(t *testing.T) uint64 {
	t.Helper()
	value := os.Getenv(seedVariable)
	if value == "" {
		return defaultSeed
	}
	n, err := strconv.ParseUint(value, 0, 64)
	if err != nil {
		t.Fatalf("%s=%q: want a number", seedVariable, value)
	}
	return n
}

// What both hosts terminate and what they send to.
const (
	vni  = 7
	port = 8472
)

const (
	underlayMTU = 1500 // of the wire between the hosts and their peer
	podMTU      = 4000 // of that to the pods: the hosts have to fragment
)

// network is what the hosts and their peer have in common.
type network struct {
	outerFamily int
	// remote: all hosts leave inner checksums to the receiver (remcsumtx and
	// remcsumrx of kernel VXLAN). flannel's never do, weft's own may.
	remote bool
}

var networks = []network{{4, false}, {6, false}, {4, true}, {6, true}}

func (n network) String() string {
	if n.remote {
		return fmt.Sprintf("%d-remote-checksum", n.outerFamily)
	}
	return fmt.Sprint(n.outerFamily)
}

// mtu is that of the tunnel devices.
func (n network) mtu() int {
	if n.outerFamily == 4 {
		return underlayMTU - 20 - 8 - overhead
	}
	return underlayMTU - 40 - 8 - overhead
}

var (
	ownMAC  = tunnel.MAC{2, 0, 0, 0, 1, 1}
	peerMAC = tunnel.MAC{2, 0, 0, 0, 1, 2}
)

// subnet is an inner prefix of either family. A packet's number is the host
// part of its destination: so whatever comes out tells what has gone in, also
// if it has no payload, is a fragment, or is broken in all other places.
type subnet struct{ v4, v6 netip.Prefix }

var (
	own   = subnet{netip.MustParsePrefix("10.0.0.0/9"), netip.MustParsePrefix("fd00:10:244:1::/64")}
	peer  = subnet{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:10:244:2::/64")}
	third = subnet{netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd00:10:244:3::/64")} // of another peer
	alien = subnet{netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd00:10:245::/64")}   // of nobody
)

// Host numbers below firstNumber are those of devices, from lastNumber on of
// random sources.
const (
	firstNumber = 256
	lastNumber  = 1 << 19
)

func (s subnet) prefix(is4 bool) netip.Prefix {
	if is4 {
		return s.v4
	}
	return s.v6
}

// address is the one with a host number.
func (s subnet) address(number uint32, is4 bool) netip.Addr {
	b := s.prefix(is4).Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|number)
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// random is an address that numbers no packet.
func (s subnet) random(g generator, is4 bool) netip.Addr {
	return s.address(lastNumber+g.Uint32N(lastNumber), is4)
}

// numberOf reads a packet's number at the place where one of its family has
// its destination.
func numberOf(packet []byte, is4 bool) (number uint32, ok bool) {
	at, size := 24, 16
	if is4 {
		at, size = 16, 4
	}
	if len(packet) < at+size {
		return 0, false
	}
	destination, _ := netip.AddrFromSlice(packet[at : at+size])
	for _, s := range []subnet{own, peer, alien} {
		if prefix := s.prefix(is4); prefix.Contains(destination) {
			host := binary.BigEndian.Uint32(packet[at+size-4:])
			number = host &^ binary.BigEndian.Uint32(prefix.Addr().AsSlice()[size-4:])
			return number, number >= firstNumber && number < lastNumber
		}
	}
	return 0, false
}

// testCase is one packet, or several of one flow that follow each other.
type testCase struct {
	number uint32
	kind   string   // for people
	is4    bool     // what the frame says of the family, whatever the packet says
	sent   [][]byte // inner packets

	direct   bool     // given to the tunnel device itself, past routing
	partial  []bool   // of each packet: its checksum looks as if put off
	putOff   bool     // checksums are left to the receiver, and marked so
	wrong    bool     // one of several packets has a checksum that is not right
	tags     []uint16 // VLAN tags of the inner frame
	forged   bool     // a source is not the peer's, inner or outer
	genuine  int      // so many packets are before the first from another outer source; 0: all are
	stray    bool     // the inner destination is not in the own subnet
	reserved bool     // the VXLAN header has bits beside that of the VNI
	loop     bool     // the inner frame's source is the receiver's own MAC
	unsummed bool     // no outer UDP checksum, though it is over IPv6
	gso      tunnel.GSOType
	mtu      int // of the tunnel devices
	// plain is what a router makes of the packets, where that is known.
	plain [][]byte
	// large is a TCP packet longer than the tunnel device's MTU, and how it can be cut.
	large     *tunneltest.Packet
	largeSize int // payload bytes of the pieces
}

func (c *testCase) String() string {
	text := fmt.Sprintf("number %d: %s\n", c.number, c.kind)
	for _, b := range c.sent {
		text += fmt.Sprintf("  %x\n", b)
	}
	return text
}

// output is a packet that came out behind one of the hosts.
type output struct {
	packet []byte // transmit: the VXLAN datagram; receive: the inner packet
	outer  outer
}

// outer is what is compared of an outer header. Its identification, source
// port, flow label and checksums are the sender's own affair.
type outer struct {
	tos          uint8
	ttl          uint8
	dontFragment bool
}

// generator makes random packets: from one seed always the same ones.
type generator struct {
	*rand.Rand
	mtu    int  // of the tunnel devices
	remote bool // the network puts inner checksums off
}

// newGenerator makes one whose packets no other direction and network has.
func newGenerator(seed uint64, where direction, n network) generator {
	stream := uint64(n.outerFamily)
	if where == receive {
		stream += 10
	}
	if n.remote {
		stream += 20
	}
	return generator{rand.New(rand.NewPCG(seed, stream)), n.mtu(), n.remote}
}

// chance is true in so many cases of a hundred.
func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

// pick returns one of the values.
func pick[T any](g generator, values ...T) T { return values[g.IntN(len(values))] }

func (g generator) bytes(n int) []byte { return tunneltest.Random(g.Rand, n) }
