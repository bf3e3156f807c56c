package kernel

import (
	"fmt"
	"testing"
)

// TestIrrelevant holds that what happens to pods and foreign objects does not
// cause listings.
func TestIrrelevant(t *testing.T) {
	h := newHost(t)
	h.run("sysctl -qw net.ipv6.conf.default.accept_dad=0") // its end would be a change to our addresses
	h.apply(golden()...)
	h.run("ip link add br9 type bridge", "ip link set br9 up")
	h.drain()
	for i := range 20 {
		h.run(
			fmt.Sprintf("ip neigh replace 10.9.0.%d lladdr 02:00:00:00:09:%02x dev br9 nud permanent", i, i),
			fmt.Sprintf("ip addr add 10.9.%d.1/32 dev br9", i),
			fmt.Sprintf("ip route add 10.10.%d.0/24 dev br9", i),
			fmt.Sprintf("bridge fdb add 02:00:00:00:09:%02x dev br9 self", i),
		)
	}
	select {
	case <-h.driver.Changes():
		t.Error("token for foreign objects")
	default:
	}
	h.run("ip neigh delete 10.244.1.0 dev flannel.1")
	h.awaitToken("neighbour deleted")
}

// TestRoutesLostInSilence holds that a link which goes down is noticed: the
// kernel says nothing of the routes it drops.
func TestRoutesLostInSilence(t *testing.T) {
	h := newHost(t)
	route := lifecycles[10].object
	h.apply(route)
	h.drain()
	h.run("ip link set eth0 down")
	h.awaitToken("eth0 down")
	h.check()
	h.drain()
	h.run("ip link set eth0 up")
	h.awaitToken("eth0 up")
	h.reconcile(route)
	h.check(route)
}

// TestRouteTakenInSilence holds that a foreign route in the place of ours is
// noticed: the kernel announces only the new one.
func TestRouteTakenInSilence(t *testing.T) {
	h := newHost(t)
	h.run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
	h.apply(golden()...)
	h.drain()
	h.run("ip route replace 10.244.1.0/24 via 192.168.7.9 dev eth0")
	h.awaitToken("route replaced")
	route := golden()[6]
	if have := h.observe()[route.Key()]; have != nil {
		t.Errorf("have %+v, want nothing: the route is not ours", have)
	}
	wantText(t, h.applyError(route), "a foreign route is in its place and stays", "via 192.168.7.9 dev eth0")
}
