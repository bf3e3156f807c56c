package guard

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

// network is two hosts with a pod each, and one host outside the pod network
// that reaches all pods over the first host. Only that one has our rules.
type network struct {
	t          *testing.T
	a, b, c    *testHost
	podA, podB *lab.Namespace
	// port is what the last receiver listens on. Every one has its own: a flow from a
	// port that happened to be used before would be treated as that one was.
	port uint16
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	world := labtest.New(t)
	n := &network{t: t, port: 7000, a: addHost(t, world, "a"), b: addHost(t, world, "b"), c: addHost(t, world, "c")}
	n.podA = n.pod(n.a, "10.244.1.2/24", "fd00:10:244:1::2/64")
	n.podB = n.pod(n.b, "10.244.2.2/24", "fd00:10:244:2::2/64")
	n.a.route("10.244.2.0/24 via "+n.b.Addr(4).String(), "fd00:10:244:2::/64 via "+n.b.Addr(6).String())
	n.b.route("10.244.1.0/24 via "+n.a.Addr(4).String(), "fd00:10:244:1::/64 via "+n.a.Addr(6).String())
	n.c.route("10.244.0.0/16 via "+n.a.Addr(4).String(), "fd00:10:244::/48 via "+n.a.Addr(6).String())
	return n
}

func (n *network) pod(h *testHost, addresses ...string) *lab.Namespace {
	n.t.Helper()
	config := lab.PodConfig{Name: "pod"}
	for _, address := range addresses {
		config.Addresses = append(config.Addresses, netip.MustParsePrefix(address))
	}
	pod, err := h.Pod(config)
	if err != nil {
		n.t.Fatal(err)
	}
	return pod
}

// receiver is a UDP socket that says who its datagrams come from.
type receiver struct {
	t    *testing.T
	conn net.PacketConn
}

func (n *network) listen(on *lab.Namespace, addr netip.Addr) *receiver {
	n.t.Helper()
	n.port++
	for {
		conn, err := on.ListenPacket(n.t.Context(), "udp", netip.AddrPortFrom(addr, n.port).String())
		if err != nil && strings.Contains(err.Error(), "cannot assign") { // still tentative
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil {
			n.t.Fatal(err)
		}
		n.t.Cleanup(func() { conn.Close() })
		return &receiver{n.t, conn}
	}
}

// from returns the source of the next datagram; invalid if there is none.
func (r *receiver) from() netip.Addr {
	r.t.Helper()
	r.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	_, addr, err := r.conn.ReadFrom(make([]byte, 64))
	if err != nil {
		return netip.Addr{}
	}
	return addr.(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// send sends one datagram to the last receiver as a flow of its own.
func (n *network) send(from *lab.Namespace, to netip.Addr) {
	n.t.Helper()
	conn, err := from.Dial(n.t.Context(), "udp", netip.AddrPortFrom(to, n.port).String())
	if err != nil {
		n.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		n.t.Fatal(err)
	}
}

// seen sends until a datagram arrives and returns its source as seen there.
func (n *network) seen(from, on *lab.Namespace, to netip.Addr) netip.Addr {
	n.t.Helper()
	r := n.listen(on, to)
	defer r.conn.Close()
	for range 50 {
		n.send(from, to)
		if source := r.from(); source.IsValid() {
			return source
		}
	}
	n.t.Fatalf("nothing arrives at %s from %s", to, from.Name())
	return netip.Addr{}
}

// TestTraffic holds whose address is seen where.
func TestTraffic(t *testing.T) {
	n := newNetwork(t)
	n.a.apply(firewall4(), firewall6())
	addr := netip.MustParseAddr
	for _, f := range []struct {
		family     int
		podA, podB netip.Addr
	}{
		{4, addr("10.244.1.2"), addr("10.244.2.2")},
		{6, addr("fd00:10:244:1::2"), addr("fd00:10:244:2::2")},
	} {
		hostA, hostC := n.a.Addr(f.family), n.c.Addr(f.family)
		for _, tt := range []struct {
			what     string
			mark     string // set on forwarded packets by another table
			from, on *lab.Namespace
			to, want netip.Addr
		}{
			{"pod to outside is masqueraded", "", n.podA, n.c.Namespace, hostC, hostA},
			{"pod to pod is not", "", n.podA, n.podB, f.podB, f.podA},
			{"pod to own pod is not", "", n.podB, n.podA, f.podA, f.podB},
			{"outside to own pod is not", "", n.c.Namespace, n.podA, f.podA, hostC},
			// flannel's nftables rules leave this one out.
			{"outside to another host's pod is masqueraded", "", n.c.Namespace, n.podB, f.podB, hostA},
			{"own host to pod is left", "", n.a.Namespace, n.podB, f.podB, hostA},
			{"the mark is honoured", "0x4000", n.podA, n.c.Namespace, hostC, f.podA},
			{"the mark is honoured among other bits", "0xc001", n.podA, n.c.Namespace, hostC, f.podA},
			{"other marks are not", "0x8001", n.podA, n.c.Namespace, hostC, hostA},
		} {
			if tt.mark != "" {
				n.a.nft("table inet marker { chain forward { type filter hook forward priority 0; meta mark set " + tt.mark + "; }; }")
			}
			if got := n.seen(tt.from, tt.on, tt.to); got != tt.want {
				t.Errorf("%s: seen as %s, want %s", tt.what, got, tt.want)
			}
			if tt.mark != "" {
				n.a.nft("delete table inet marker")
			}
		}
	}
}

// TestReplaceIsAtomic changes the rules while new flows pass: every one of
// them is masqueraded.
func TestReplaceIsAtomic(t *testing.T) {
	n := newNetwork(t)
	n.a.apply(firewall4())
	to := n.c.Addr(4)
	n.seen(n.podA, n.c.Namespace, to) // the way is open
	r := n.listen(n.c.Namespace, to)
	stop, changes := make(chan struct{}), make(chan int)
	go func() {
		want := []tunnel.Firewall{firewall4(), firewall4()}
		want[1].RandomFully = false
		count := 0
		for ; ; count++ {
			select {
			case <-stop:
				changes <- count
				return
			default:
			}
			if err := n.a.driver.Apply(t.Context(), want[count%2]); err != nil {
				t.Error(err)
			}
		}
	}()
	const flows = 1000
	arrived := 0
	for range flows {
		n.send(n.podA, to)
		if source := r.from(); source.IsValid() {
			arrived++
			if source != n.a.Addr(4) {
				t.Errorf("flow %d seen as %s, want %s", arrived, source, n.a.Addr(4))
				break
			}
		}
	}
	close(stop)
	count := <-changes
	t.Logf("%d changes of the table, %d of %d flows arrived", count, arrived, flows)
	if !t.Failed() && (count < 10 || arrived < flows/2) {
		t.Error("proves nothing")
	}
}
