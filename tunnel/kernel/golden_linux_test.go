package kernel

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestGolden compares what the tools show with what they show on a node of
// flannel's (reference run: etcd, defaults, 1500-byte parent, one peer).
func TestGolden(t *testing.T) {
	h := newHost(t)
	h.apply(golden()...)
	want, err := os.ReadFile("testdata/flannel.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := h.summary(); got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	h.check(golden()...)
}

// summary shows our devices as the golden text does: a line per fact, without
// what depends on the version of the tools.
func (h *testHost) summary() string {
	h.t.Helper()
	var b strings.Builder
	for _, device := range []string{"flannel.1", "flannel-v6.1"} {
		link := strings.Join(strings.Fields(h.run("ip -d link show "+device)), " ")
		mtu := regexp.MustCompile(`mtu \d+ qdisc \w+`).FindString(link)
		vxlan := regexp.MustCompile(`vxlan id .* noudp6zerocsumrx`).FindString(link)
		b.WriteString(device + ": " + mtu + " " + vxlan + "\n")
		for _, line := range strings.Split(h.run("ip addr show dev "+device+" scope global"), "\n") {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "inet") {
				b.WriteString(strings.TrimSuffix(line, " "+device) + "\n")
			}
		}
		for _, command := range []string{"ip route show proto boot", "ip -6 route show proto boot", "ip neigh show nud permanent", "bridge fdb show"} {
			for line := range strings.Lines(h.run(command)) {
				// The kernel adds the multicast groups it listens to.
				if strings.Contains(line, " dev "+device+" ") && !strings.HasPrefix(line, "33:33:") && !strings.HasPrefix(line, "01:00:5e:") {
					b.WriteString(strings.TrimSpace(line) + "\n")
				}
			}
		}
	}
	return b.String()
}

// TestTwin makes the same state with the commands that do what flanneld's
// netlink calls do, and compares everything the tools know.
func TestTwin(t *testing.T) {
	ours, theirs := newHost(t), newHost(t)
	ours.apply(golden()...)
	theirs.run(
		"ip link add flannel.1 address 26:84:0f:b6:ca:63 mtu 1450 type vxlan id 1 local 192.168.7.1 dev eth0 dstport 8472 nolearning",
		"ip link add flannel-v6.1 address 52:b1:0a:c9:6a:41 mtu 1430 type vxlan id 1 local fd77::1 dev eth0 dstport 8472 nolearning",
		"ip link set flannel.1 up", "ip link set flannel-v6.1 up",
		"ip addr add 10.244.17.0/32 dev flannel.1", "ip addr add fd00:10:244:3c::/128 dev flannel-v6.1",
		"ip neigh replace 10.244.1.0 lladdr 1a:dc:8d:ed:47:fd dev flannel.1 nud permanent",
		"ip neigh replace fd00:10:244:1c:: lladdr 1a:dc:8d:ed:47:fd dev flannel-v6.1 nud permanent",
		"bridge fdb replace 1a:dc:8d:ed:47:fd dev flannel.1 dst 192.168.7.2 self permanent",
		"bridge fdb replace 1a:dc:8d:ed:47:fd dev flannel-v6.1 dst fd77::2 self permanent",
		"ip route replace 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
		"ip -6 route replace fd00:10:244:1c::/64 via fd00:10:244:1c:: dev flannel-v6.1 onlink",
		"sysctl -qw net.ipv6.conf.flannel/1.accept_ra=0", "sysctl -qw net.ipv6.conf.flannel-v6/1.accept_ra=0",
	)
	state := func(h *testHost) string {
		var b strings.Builder
		for _, device := range []string{"flannel.1", "flannel-v6.1"} {
			b.WriteString(h.run("ip -d link show "+device, "ip addr show dev "+device, "ip -d route show table all dev "+device,
				"ip -6 -d route show table all dev "+device, "ip neigh show dev "+device, "bridge fdb show dev "+device,
				"cat /proc/sys/net/ipv6/conf/"+device+"/accept_ra"))
		}
		return strings.NewReplacer(" tentative", "").Replace(b.String())
	}
	if got, want := state(ours), state(theirs); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	// What flannel leaves behind is taken over as it is.
	theirs.check(golden()...)
}
