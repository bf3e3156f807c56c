package datapath_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/pathmtu"
)

// site is a host of the lab with a subnet of either inner family, one pod, and
// a tunnel: a kernel VXLAN device, or the engine on a TUN.
type site struct {
	t        *testing.T
	number   int
	host     *lab.Host
	pod      *lab.Namespace
	outer    netip.Addr
	mac      tunnel.MAC
	mtu      int
	kernel   bool
	remote   bool // inner checksums may be left to it
	offloads datapath.Offloads
	why      []string // what the engine has to do without from the start
	workers  int
	search   *pathmtu.Config // nil: the engine's own
	device   string
	engine   *engine.Engine
	stop     context.CancelFunc
	stopped  chan error
}

const (
	interopPort = 8472
	testVNI     = 7
)

// subnet is 10.244.<number>.0/24 or fd00:10:244:<number>::/64. The tunnel
// device has its first address, the pod its second-last.
func (s *site) subnet(is4 bool) netip.Prefix {
	if is4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(s.number), 0}), 24)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 2, 5: 0x44, 7: byte(s.number)}), 64)
}

func (s *site) self(is4 bool) netip.Addr { return s.subnet(is4).Addr() }

func (s *site) podAddr(is4 bool) netip.Addr { return s.self(is4).Next().Next() }

// newSites makes sites joined by links with one offload setting: the kernel
// where kinds says so, engines elsewhere.
func newSites(t *testing.T, outerFamily int, offload lab.Offload, kernel ...bool) []*site {
	t.Helper()
	return makeSites(t, sitesConfig{outerFamily: outerFamily, link: offload}, kernel...)
}

// sitesConfig is what sites have in common.
type sitesConfig struct {
	outerFamily int
	link        lab.Offload       // of the underlay
	remote      bool              // they leave inner checksums to each other
	offloads    datapath.Offloads // of engines
}

// makeSites is newSites with more to say.
func makeSites(t *testing.T, config sitesConfig, kernel ...bool) []*site {
	t.Helper()
	world := labtest.New(t)
	var sites []*site
	ring := tunnel.On
	for i, isKernel := range kernel {
		s := &site{
			t: t, number: i + 1, kernel: isKernel, remote: config.remote, offloads: config.offloads, device: "weft0", mtu: 1450,
			workers: i + 1, // one and several meet
			mac:     tunnel.MAC{2, 0, 0, 0, 1, byte(i + 1)}, stopped: make(chan error, 1),
		}
		if config.outerFamily == 6 {
			s.mtu = 1430
		}
		if isKernel {
			s.device = "flannel.7"
		} else if s.offloads.Ring == tunnel.Auto { // with and without meet
			s.offloads.Ring = ring
			ring = tunnel.On + tunnel.Off - ring
		}
		s.host = labtest.Host(t, world, lab.HostConfig{Name: fmt.Sprintf("site%d", s.number)})
		s.outer = s.host.Addr(config.outerFamily)
		var err error
		s.pod, err = s.host.Pod(lab.PodConfig{Name: fmt.Sprintf("pod%d", s.number), MTU: s.mtu, Addresses: []netip.Prefix{
			netip.PrefixFrom(s.podAddr(true), 24), netip.PrefixFrom(s.podAddr(false), 64),
		}})
		if err := errors.Join(err, s.host.Link(lab.LinkProps{Offload: config.link})); err != nil {
			t.Fatal(err)
		}
		sites = append(sites, s)
	}
	for _, s := range sites {
		s.start(sites)
	}
	return sites
}

// run runs a command on the site.
func (s *site) run(command string, args ...any) {
	s.t.Helper()
	words := strings.Fields(fmt.Sprintf(command, args...))
	if out, err := s.host.Command(s.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v: %s", strings.Join(words, " "), err, out)
	}
}

// start makes the tunnel of the site, with all other sites as peers.
func (s *site) start(all []*site) {
	s.t.Helper()
	if s.kernel {
		s.run("ip link add %s address %v mtu %d type vxlan id %d local %v dev eth0 dstport %d nolearning%s",
			s.device, s.mac, s.mtu, testVNI, s.outer, interopPort, map[bool]string{true: " remcsumtx remcsumrx"}[s.remote])
		s.run("ip link set %s up", s.device)
	} else {
		s.startEngine(all)
	}
	for _, is4 := range []bool{true, false} {
		s.run("ip addr add %v/%d dev %s nodad", s.self(is4), s.self(is4).BitLen(), s.device)
		for _, peer := range all {
			if peer == s {
				continue
			}
			if !s.kernel {
				s.run("ip route add %v dev %s src %v", peer.subnet(is4), s.device, s.self(is4))
				continue
			}
			s.run("ip neigh add %v lladdr %v dev %s nud permanent", peer.self(is4), peer.mac, s.device)
			s.run("ip route add %v via %v dev %s onlink src %v", peer.subnet(is4), peer.self(is4), s.device, s.self(is4))
			if is4 {
				s.run("bridge fdb add %v dst %v dev %s", peer.mac, peer.outer, s.device)
			}
		}
	}
}

func (s *site) startEngine(all []*site) {
	s.t.Helper()
	logger := slog.New(slog.NewTextHandler(testLog{s.t}, nil))
	var workers []engine.Worker
	err := s.host.Do(func() (err error) {
		workers, err = datapath.Open(datapath.Config{
			Device: s.device, MTU: s.mtu, Listen: []netip.AddrPort{netip.AddrPortFrom(s.outer, interopPort)},
			Workers: s.workers, Offloads: s.offloads, Logger: logger,
		})
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if s.engine, err = engine.New(engine.Config{Workers: workers, PathMTU: s.search, Logger: logger}); err != nil {
		s.t.Fatal(err)
	}
	s.why = append(workers[0].Device.Offloads().Why, workers[0].Sockets[0].Offloads().Why...)
	s.setPeers(all, s.mtu)
	var locals []tunnel.Local
	for _, is4 := range []bool{true, false} {
		locals = append(locals, tunnel.Local{Subnet: s.subnet(is4), MAC: s.mac, VNI: testVNI})
	}
	if err := s.engine.SetLocals(locals); err != nil {
		s.t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	go func() { s.stopped <- s.engine.Run(ctx) }()
	s.t.Cleanup(func() {
		s.stop()
		if err := <-s.stopped; err != nil {
			s.t.Error(err)
		}
	})
}

func (s *site) setPeers(all []*site, mtu int) {
	s.t.Helper()
	if err := s.engine.SetPeers(s.peers(all, mtu)); err != nil {
		s.t.Fatal(err)
	}
}

// peers are all sites but s, in both inner families.
func (s *site) peers(all []*site, mtu int) (peers []tunnel.Peer) {
	for _, peer := range all {
		if peer == s {
			continue
		}
		for _, is4 := range []bool{true, false} {
			peers = append(peers, tunnel.Peer{
				Name: peer.host.Name(), Prefixes: []netip.Prefix{peer.subnet(is4)}, MAC: peer.mac, VNI: testVNI,
				Endpoint: netip.AddrPortFrom(peer.outer, interopPort), MTU: mtu, RemoteChecksum: peer.remote,
			})
		}
	}
	return peers
}

// testLog writes what the engine logs into the test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

// end is where traffic starts or ends.
type end struct {
	*lab.Namespace
	addr netip.Addr
}

// ends are the host itself and its pod, in one inner family.
func (s *site) ends(is4 bool) map[string]end {
	return map[string]end{
		"host": {s.host.Namespace, s.self(is4)},
		"pod":  {s.pod, s.podAddr(is4)},
	}
}

const bulk = 3 << 20

// transfer sends a stream of random bytes over TCP and compares what arrives.
func transfer(t *testing.T, from, to end) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	listener, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(to.addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	sent, got := sha256.New(), sha256.New()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err = io.Copy(got, conn)
		return err
	})
	group.Go(func() error {
		conn, err := from.Dial(ctx, "tcp", listener.Addr().String())
		if err != nil {
			listener.Close()
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		random := rand.NewChaCha8([32]byte{1})
		_, err = io.CopyN(io.MultiWriter(conn, sent), random, bulk)
		return err
	})
	if err := group.Wait(); err != nil {
		t.Errorf("TCP: %v", err)
	} else if string(sent.Sum(nil)) != string(got.Sum(nil)) {
		t.Error("TCP: the stream arrived changed")
	}
}

// ping sends echo requests of several sizes, the large ones in fragments.
func ping(t *testing.T, from, to end) {
	t.Helper()
	for _, size := range []int{0, 56, 1400, 4000, 20000} {
		var err error
		for range 5 {
			if _, err = from.Ping(t.Context(), lab.Probe{To: to.addr, PayloadBytes: size, Timeout: time.Second}); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("ping with %d bytes: %v", size, err)
		}
	}
}

// datagrams has UDP datagrams of several sizes echoed, in fragments and, where
// the sender says so by a segment size, cut from a large one.
func datagrams(t *testing.T, from, to end) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addr, err := to.Echo(ctx, netip.AddrPortFrom(to.addr, 0))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := from.Dial(ctx, "udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 64, 1350, 1398, 4000, 30000} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		if err := echo(conn, data, 0); err != nil {
			t.Errorf("UDP with %d bytes: %v", size, err)
		}
	}
	data := make([]byte, 20*1000+7)
	for i := range data {
		data[i] = byte(i >> 3)
	}
	if err := echo(conn, data, 1000); err != nil {
		t.Errorf("UDP in segments: %v", err)
	}
}

// echo sends data, in datagrams of segment bytes if that is not 0, and waits
// until all of it has come back. UDP may lose some, so it tries again.
func echo(conn net.Conn, data []byte, segment int) (err error) {
	if err := setSegment(conn, segment); err != nil {
		return err
	}
	if segment == 0 {
		segment = len(data)
	}
	for range 5 {
		if _, err = conn.Write(data); err != nil {
			return err
		}
		missing := map[string]bool{}
		for rest := data; len(rest) > 0; rest = rest[min(segment, len(rest)):] {
			missing[string(rest[:min(segment, len(rest))])] = true
		}
		buffer := make([]byte, 1<<16)
		if err = conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		for len(missing) > 0 {
			var n int
			if n, err = conn.Read(buffer); err != nil {
				err = fmt.Errorf("%d datagrams did not come back: %w", len(missing), err)
				break
			}
			delete(missing, string(buffer[:n]))
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// exchange tries all traffic between two sites, both inner families, hosts and pods.
func exchange(t *testing.T, from, to *site) {
	for _, is4 := range []bool{true, false} {
		for name, a := range from.ends(is4) {
			b := to.ends(is4)[name]
			t.Run(fmt.Sprintf("%d-%d-%s-%v", from.number, to.number, name, b.addr), func(t *testing.T) {
				ping(t, a, b)
				transfer(t, a, b)
				datagrams(t, a, b)
			})
		}
	}
}

// noDrops reports what engines lost of the traffic that they were meant to carry.
func noDrops(t *testing.T, sites []*site) {
	t.Helper()
	for _, s := range sites {
		if s.engine == nil {
			continue
		}
		s.engine.Stats().Each(func(name string, value uint64) {
			// Router solicitations and the like have no peer.
			if strings.Contains(name, "_drop_") && name != engine.TxDropNoPeer.String() && value != 0 {
				t.Errorf("site %d: %s is %d", s.number, name, value)
			}
		})
	}
}

// TestInterop: engines and kernel VXLAN hosts carry everything to each other,
// on links that cut and sum as virtual ones do, as some do, and as wires do.
func TestInterop(t *testing.T) {
	for _, outerFamily := range []int{4, 6} {
		for _, offload := range []lab.Offload{lab.OffloadFull, lab.OffloadChecksum, lab.OffloadNone} {
			if outerFamily == 6 && offload == lab.OffloadChecksum {
				continue // the same code as over IPv4
			}
			t.Run(fmt.Sprintf("%s%d", offload, outerFamily), func(t *testing.T) {
				sites := newSites(t, outerFamily, offload, false, true, false)
				user, kernel, second := sites[0], sites[1], sites[2]
				exchange(t, user, kernel)
				exchange(t, kernel, user)
				exchange(t, user, second)
				noDrops(t, sites)
				stats := user.engine.Stats()
				t.Logf("%+v", stats)
				for _, c := range []engine.Counter{engine.TxSuperPackets, engine.RxSuperPackets} {
					if stats.Value(c) == 0 {
						t.Errorf("%v is 0", c)
					}
				}
				if offload == lab.OffloadFull {
					for _, c := range []engine.Counter{engine.RxPartial, engine.RxSuperFrames} {
						if stats.Value(c) == 0 {
							t.Errorf("%v is 0: the trap was not met", c)
						}
					}
				}
			})
		}
	}
}

// TestInteropRemoteChecksum: checksums may be left to the receiver, be it an
// engine or a kernel that was told to (remcsumtx and remcsumrx of ip-link).
func TestInteropRemoteChecksum(t *testing.T) {
	for _, outerFamily := range []int{4, 6} {
		for _, offload := range []lab.Offload{lab.OffloadFull, lab.OffloadNone} {
			t.Run(fmt.Sprintf("%s%d", offload, outerFamily), func(t *testing.T) {
				sites := makeSites(t, sitesConfig{outerFamily: outerFamily, link: offload, remote: true}, false, true, false)
				user, kernel, second := sites[0], sites[1], sites[2]
				exchange(t, user, kernel)
				exchange(t, kernel, user)
				before := second.engine.Stats().Value(engine.RxPartial)
				exchange(t, user, second)
				noDrops(t, sites)
				if after := second.engine.Stats().Value(engine.RxPartial); after < before+1000 {
					t.Errorf("%d checksums were left to the second engine", after-before)
				}
			})
		}
	}
}

// TestInteropPeerMTU: a peer with a smaller MTU than the device is reached all
// the same, because senders on the host and in pods are told.
func TestInteropPeerMTU(t *testing.T) {
	sites := newSites(t, 4, lab.OffloadFull, false, true)
	user, kernel := sites[0], sites[1]
	user.setPeers(sites, 1300)
	for _, is4 := range []bool{true, false} {
		for name, a := range user.ends(is4) {
			t.Run(fmt.Sprintf("%s-%v", name, a.addr), func(t *testing.T) {
				b := kernel.ends(is4)[name]
				before := user.engine.Stats()
				transfer(t, a, b)
				datagrams(t, a, b)
				after := user.engine.Stats()
				if after.Value(engine.TxICMP) == before.Value(engine.TxICMP) {
					t.Error("no sender was told")
				}
			})
		}
	}
}

// TestInteropShutdown: a running engine that waits on real devices stops at once.
func TestInteropShutdown(t *testing.T) {
	sites := newSites(t, 4, lab.OffloadFull, false, false)
	var group sync.WaitGroup
	for _, s := range sites {
		group.Go(s.stop)
	}
	group.Wait()
	for _, s := range sites {
		if err := <-s.stopped; err != nil {
			t.Error(err)
		}
		s.stopped <- nil
	}
}
