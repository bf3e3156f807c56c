package kernel

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// plantForeign makes one of each kind of object that is not ours, some of them
// close to ours.
func (h *testHost) plantForeign() {
	h.t.Helper()
	h.run(
		"ip link add vx9 type vxlan id 9 local 192.168.7.1 dev eth0 dstport 4789 nolearning",
		"ip link set vx9 up", "ip addr add 10.9.0.1/24 dev vx9",
		"bridge fdb add 02:00:00:00:00:99 dev vx9 dst 192.168.7.9",
		"ip neigh add 10.9.0.9 lladdr 02:00:00:00:00:99 dev vx9 nud permanent",
		"ip neigh add 192.168.7.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent",
		"ip link add flannel0 type veth peer name flannel.x", "ip link set flannel0 up", "ip addr add 10.8.0.1/24 dev flannel0",
		"ip route add 10.245.0.0/16 via 192.168.7.3 dev eth0", "ip route add blackhole 10.246.0.0/16",
		"ip route add 10.247.0.0/16 via 192.168.7.3 dev eth0 proto static",
		"ip route add 10.244.1.0/24 via 192.168.7.3 dev eth0 table 100",
		"ip -6 route add fd99::/64 via fd77::3 dev eth0", "ip -6 route add blackhole fd98::/64",
	)
	for !strings.Contains(h.run("ip link show flannel0"), "LOWERLAYERDOWN") { // which the kernel notes later
		time.Sleep(time.Millisecond)
	}
}

// lifecycle is what is done by hand to one object.
type lifecycle struct {
	object tunnel.Object
	// alter are hand-made changes, each of which must be seen and mended.
	alter []string
	// remove is how the object is deleted by hand.
	remove string
}

var lifecycles = []lifecycle{
	{
		object: device4(),
		alter: []string{
			"ip link set flannel.1 down", "ip link set flannel.1 mtu 1400", "ip link set flannel.1 address 02:00:00:00:00:05",
			"ip link set flannel.1 type vxlan id 1 learning", "ip link set flannel.1 type vxlan id 1 local 192.168.7.99",
			"sysctl -qw net.ipv6.conf.flannel/1.accept_ra=1", "ip link set flannel.1 master br9",
		},
		remove: "ip link delete flannel.1",
	},
	{
		object: device6(),
		alter:  []string{"ip link set flannel-v6.1 down", "ip link set flannel-v6.1 type vxlan id 1 dev br9"},
		remove: "ip link delete flannel-v6.1",
	},
	{
		object: tunnel.Address{Link: "flannel.1", Prefix: netip.MustParsePrefix("10.244.17.0/32")},
		remove: "ip addr delete 10.244.17.0/32 dev flannel.1",
	},
	{
		object: tunnel.Address{Link: "flannel-v6.1", Prefix: netip.MustParsePrefix("fd00:10:244:3c::/128")},
		remove: "ip addr delete fd00:10:244:3c::/128 dev flannel-v6.1",
	},
	{
		object: tunnel.Neighbor{Link: "flannel.1", IP: netip.MustParseAddr("10.244.1.0"), MAC: peerMAC},
		alter: []string{
			"ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:05 dev flannel.1 nud permanent",
			"ip neigh replace 10.244.1.0 lladdr 1a:dc:8d:ed:47:fd dev flannel.1 nud reachable",
		},
		remove: "ip neigh delete 10.244.1.0 dev flannel.1",
	},
	{
		object: tunnel.Neighbor{Link: "flannel-v6.1", IP: netip.MustParseAddr("fd00:10:244:1c::"), MAC: peerMAC},
		alter:  []string{"ip neigh replace fd00:10:244:1c:: lladdr 02:00:00:00:00:05 dev flannel-v6.1 nud permanent"},
		remove: "ip neigh delete fd00:10:244:1c:: dev flannel-v6.1",
	},
	{
		object: tunnel.FDBEntry{Link: "flannel.1", MAC: peerMAC, Remote: netip.MustParseAddr("192.168.7.2")},
		alter:  []string{"bridge fdb replace 1a:dc:8d:ed:47:fd dev flannel.1 dst 192.168.7.5"},
		remove: "bridge fdb delete 1a:dc:8d:ed:47:fd dev flannel.1 dst 192.168.7.2",
	},
	{
		object: tunnel.FDBEntry{Link: "flannel-v6.1", MAC: peerMAC, Remote: netip.MustParseAddr("fd77::2")},
		alter:  []string{"bridge fdb replace 1a:dc:8d:ed:47:fd dev flannel-v6.1 dst fd77::5"},
		remove: "bridge fdb delete 1a:dc:8d:ed:47:fd dev flannel-v6.1 dst fd77::2",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Via: netip.MustParseAddr("10.244.1.0"), Link: "flannel.1", OnLink: true},
		alter: []string{
			"ip route replace 10.244.1.0/24 via 10.244.9.0 dev flannel.1 onlink",
			"ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink mtu 1300",
			"ip route append 10.244.1.0/24 via 10.244.9.0 dev flannel.1 onlink",
			"ip route append 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink metric 50",
			"ip route replace 10.244.1.0/24 dev flannel.1 scope link",
			"ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink src 192.168.7.1",
			"ip route replace 10.244.1.0/24 nexthop via 10.244.1.0 dev flannel.1 onlink nexthop via 10.244.9.0 dev flannel.1 onlink",
		},
		remove: "ip route delete 10.244.1.0/24",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:1c::/64"), Via: netip.MustParseAddr("fd00:10:244:1c::"), Link: "flannel-v6.1", OnLink: true},
		alter: []string{
			"ip -6 route replace fd00:10:244:1c::/64 via fd00:10:244:9:: dev flannel-v6.1 onlink",
			"ip -6 route append fd00:10:244:1c::/64 via fd00:10:244:9:: dev flannel-v6.1 onlink",
			"ip -6 route add fd00:10:244:1c::/64 via fd00:10:244:1c:: dev flannel-v6.1 onlink metric 50",
		},
		remove: "ip -6 route delete fd00:10:244:1c::/64",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Via: netip.MustParseAddr("192.168.7.2"), Link: "eth0", MTU: 1400},
		alter: []string{
			"ip route replace 10.244.2.0/24 via 192.168.7.5 dev eth0 proto 119",
			"ip route replace 10.244.2.0/24 via 192.168.7.2 dev flannel.1 onlink",
		},
		remove: "ip route delete 10.244.2.0/24",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:2::/64"), Via: netip.MustParseAddr("fd77::2"), Link: "eth0"},
		remove: "ip -6 route delete fd00:10:244:2::/64",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("10.244.17.0/24"), Blackhole: true},
		alter:  []string{"ip route add blackhole 10.244.17.0/24 proto 119 metric 7"},
		remove: "ip route delete blackhole 10.244.17.0/24",
	},
	{
		object: tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:3c::/64"), Blackhole: true},
		remove: "ip -6 route delete blackhole fd00:10:244:3c::/64",
	},
}

// TestObjects takes every kind of object through its life, beside foreign
// objects that must not change.
func TestObjects(t *testing.T) {
	h := newHost(t)
	h.plantForeign()
	before := h.dump()
	h.run("ip link add br9 type bridge", "ip link set br9 up") // for hand-made changes
	h.check()
	var made []tunnel.Object
	for _, life := range lifecycles {
		h.apply(life.object)
		made = append(made, life.object)
		h.check(made...)
		h.drain()
		h.apply(life.object) // again
		h.check(made...)
		for _, line := range append(slices.Clone(life.alter), life.remove) {
			h.drain()
			h.run(line)
			if line != "sysctl -qw net.ipv6.conf.flannel/1.accept_ra=1" { // the kernel does not tell
				h.awaitToken(line)
			}
			if h.observe()[life.object.Key()] == life.object {
				t.Errorf("not seen: %s", line)
			}
			h.reconcile(made...)
			if t.Failed() {
				t.Fatalf("after: %s", line)
			}
			h.reconcile(made...) // a change by hand may take two rounds
			h.check(made...)
			if t.Failed() {
				t.Fatalf("after: %s", line)
			}
		}
	}
	for _, object := range slices.Backward(made) {
		h.remove(object)
		h.remove(object) // absent
	}
	h.check()
	h.run("ip link delete br9")
	h.checkForeign(before)
}

// TestStale holds that what a former life left is found with no memory, and
// can be removed with no TUN and no plan: that is weft cleanup.
func TestStale(t *testing.T) {
	h := newHost(t)
	h.plantForeign()
	before := h.dump()
	h.run(
		"ip link add flannel.2 type vxlan id 2 local 192.168.7.1 dev eth0 dstport 8472 nolearning", "ip link set flannel.2 up",
		"ip addr add 10.244.17.0/32 dev flannel.2", "ip addr add 10.11.0.0/32 dev flannel.2",
		"ip neigh add 10.244.3.0 lladdr 02:00:00:00:00:03 dev flannel.2 nud permanent",
		"bridge fdb add 02:00:00:00:00:03 dev flannel.2 dst 192.168.7.3",
		"bridge fdb append 00:00:00:00:00:00 dev flannel.2 dst 192.168.7.3",
		"bridge fdb append 00:00:00:00:00:00 dev flannel.2 dst 192.168.7.4",
		"ip route add 10.244.3.0/24 via 10.244.3.0 dev flannel.2 onlink",
		"ip route add 10.244.4.0/24 dev flannel.2 proto static metric 7",
		"ip route add 10.244.5.0/24 via 192.168.7.5 dev eth0 proto 119",
		"ip route add unreachable 10.244.6.0/24 proto 119",
	)
	h.driver = h.open(Config{Logger: discard})
	have := h.observe()
	if len(have) != 10 {
		t.Errorf("found %d objects, want 10: %v", len(have), have)
	}
	// One by one first: deleting the device alone would hide what does not work.
	for key, object := range have {
		if key.Kind != tunnel.KindLink {
			h.remove(object)
		}
	}
	h.check(have[tunnel.Key{Kind: tunnel.KindLink, Name: "flannel.2"}])
	h.reconcile()
	h.check()
	h.checkForeign(before)
}

// TestResume stops after each step, also of the removal: the next process,
// which remembers nothing, gets to the same state.
func TestResume(t *testing.T) {
	h := newHost(t)
	h.plantForeign()
	before := h.dump()
	want := golden()
	for i := range want {
		h.apply(want[:i]...)
		h.driver = h.open(Config{Logger: discard})
		h.reconcile(want...)
		h.check(want...)
		for _, object := range slices.Backward(want[i:]) {
			h.remove(object)
		}
		h.driver = h.open(Config{Logger: discard})
		h.reconcile()
		h.check()
		h.checkForeign(before)
	}
}
