package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/pathmtu"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/tunneltest"
	"github.com/weft-net/weft/tunnel/vxlan"
)

// underlay is a ProbeSocket, the path behind it, and the peers at its end.
type underlay struct {
	t      *testing.T
	prober *prober
	local  netip.Addr

	mu     sync.Mutex
	limit  int // outer packet that passes
	system int // what the system believes; 0: it does not say
	delay  time.Duration
	silent bool
	forge  func(reply []byte)                    // changes answers
	cut    func(place int, datagram []byte) bool // what becomes of a run's members; false: lost
	runs   int
	count  map[netip.AddrPort]int
	at     time.Time // of the last probe,
	same   int       // and how many were sent then,
	peak   int       // and at most at one time
}

func (u *underlay) Local() netip.Addr { return u.local }

func (u *underlay) PathMTU(netip.Addr) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.system == 0 {
		return 0, errors.New("not known")
	}
	return u.system, nil
}

func (u *underlay) Close() error { return nil }

func (u *underlay) headers() int {
	if u.local.Is4() {
		return 28
	}
	return 48
}

func (u *underlay) Send(to netip.AddrPort, datagram []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count[to]++
	if now := time.Now(); now != u.at {
		u.at, u.same = now, 0
	}
	u.same++
	u.peak = max(u.peak, u.same)
	frame, err := vxlan.Parse(datagram)
	if err != nil {
		u.t.Error(err)
		return err
	}
	if u.count[to] < 20 { // it takes time
		if err := tunneltest.Check(frame.Packet); err != nil {
			u.t.Error(err)
		}
	}
	if len(datagram)+u.headers() <= u.limit {
		u.answer(frame.Packet)
	}
	return nil
}

func (u *underlay) answer(request []byte) {
	if u.silent {
		return
	}
	reply := replyTo(request)
	if u.forge != nil {
		u.forge(reply)
	}
	time.AfterFunc(u.delay, func() {
		if v, err := packet.Parse(reply); err != nil || !u.prober.answered(v) {
			u.t.Errorf("answer not taken: %v", err)
		}
	})
}

func (u *underlay) set(change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
}

// probes is how many have been sent to one peer, or to all.
func (u *underlay) probes(to netip.AddrPort) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for addr, count := range u.count {
		if addr == to || !to.IsValid() {
			n += count
		}
	}
	return n
}

// replyTo is the answer to an echo request.
func replyTo(request []byte) []byte {
	source, destination, _ := packet.Addresses(request)
	p := tunneltest.Packet{
		Source: netip.AddrPortFrom(destination, 0), Destination: netip.AddrPortFrom(source, 0), Protocol: tunneltest.ICMPv6,
	}
	if source.Is4() {
		p.Protocol, p.Payload = tunneltest.ICMPv4, bytes.Clone(request[20:])
		p.Payload[0] = 0
	} else {
		p.Payload = bytes.Clone(request[40:])
		p.Payload[0] = 129
	}
	return p.Bytes()
}

// probing runs a test with a prober that runs, on a healthy underlay of 1500.
func probing(t *testing.T, outer netip.AddrPort, f func(t *testing.T, p *prober, u *underlay)) {
	synctest.Test(t, func(t *testing.T) {
		u := &underlay{
			t: t, local: outer.Addr(), limit: 1500, delay: time.Millisecond, count: map[netip.AddrPort]int{},
		}
		p := newProber([]ProbeSocket{u}, nil, newSearchConfigs(pathmtu.Defaults()), newLadder(slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
		u.prober = p
		p.setLocals(here.locals())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		f(t, p, u)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour) // answers under way
	})
}

// use sends large packets on a path for some time.
func use(p *prober, d time.Duration, paths ...*path) {
	for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		for _, to := range paths {
			p.sent(to, to.MTU())
		}
	}
	synctest.Wait()
}

func wantMTU(t *testing.T, to *path, want int, when string) {
	t.Helper()
	if got := to.MTU(); got != want {
		t.Errorf("%s: MTU %d, want %d", when, got, want)
	}
}

func entries(peers ...tunnel.Peer) (all []*peertable.Entry) {
	for i, peer := range peers {
		all = append(all, &peertable.Entry{Peer: peer, Number: i})
	}
	return all
}

func TestProberFollowsThePath(t *testing.T) {
	outer6 := netip.MustParseAddrPort("[2001:db8::1]:8472")
	for _, outer := range []netip.AddrPort{hereOuter, outer6} {
		t.Run(outer.Addr().String(), func(t *testing.T) {
			probing(t, outer, func(t *testing.T, p *prober, u *underlay) {
				peers, headers := far.peers(), outerHeaders4+vxlan.Overhead
				for i := range peers {
					if outer.Addr().Is6() {
						peers[i].Endpoint, headers = netip.MustParseAddrPort("[2001:db8::2]:8472"), outerHeaders6+vxlan.Overhead
					}
					peers[i].MTU = 1500 - headers
				}
				paths := p.setPeers(entries(peers...), nil)
				use(p, 10*time.Second, paths...)
				wantMTU(t, paths[0], 1500-headers, "healthy")
				for _, outer := range []int{1400, 1357, 1500} {
					u.set(func() { u.limit = outer })
					use(p, time.Second, paths...)
					if outer < 1500 && paths[0].MTU() > outer-headers {
						t.Errorf("still MTU %d a second after %d", paths[0].MTU(), outer)
					}
					use(p, 30*time.Second, paths...)
					for _, to := range paths {
						wantMTU(t, to, outer-headers, fmt.Sprint(to.peer.Prefixes, " of ", outer))
					}
				}
			})
		})
	}
}

// What the system knows of a path holds at once, without a probe.
func TestProberAsksTheSystem(t *testing.T) {
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		to := p.setPeers(entries(far.peers()...), nil)[0]
		u.set(func() { u.system = 1500 })
		use(p, 10*time.Second, to)
		u.set(func() { u.system = 1400 })
		p.tooBig(to, 1450)
		synctest.Wait()
		wantMTU(t, to, 1350, "refused")
		use(p, 10*time.Second, to)
		u.set(func() { u.system = 1300 })
		use(p, 500*time.Millisecond, to)
		wantMTU(t, to, 1250, "learned without a refusal")
		u.set(func() { u.system = 1500 })
		use(p, 5*time.Second, to)
		wantMTU(t, to, 1450, "forgotten")
	})
}

// Where the system says nothing, a refused packet still lowers the MTU, once,
// until probes tell more.
func TestProberRefusedPacket(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
			paths := p.setPeers(entries(far.peers()...), nil)
			to := paths[1]
			if is4 {
				to = paths[0]
			}
			u.set(func() { u.limit = 1460 })
			p.tooBig(to, 1450)
			synctest.Wait()
			wantMTU(t, to, 1400, "refused")
			use(p, 10*time.Second, to)
			wantMTU(t, to, 1410, "probed")
			p.tooBig(to, 100) // that cannot be helped
			synctest.Wait()
			if mtu := to.MTU(); mtu < p.configs.of(to).Floor {
				t.Errorf("MTU %d", mtu)
			}
			use(p, 30*time.Second, to)
			wantMTU(t, to, 1410, "probed again")
		})
	})
}

// Only paths in use for large packets are probed.
func TestProberSparesTheIdle(t *testing.T) {
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		paths := p.setPeers(entries(append(far.peers(), thrd.peers()...)...), nil)
		time.Sleep(time.Hour)
		for range 1000 {
			p.sent(paths[0], 100)
			time.Sleep(time.Millisecond)
		}
		if n := u.probes(netip.AddrPort{}); n != 0 {
			t.Errorf("%d probes of paths that carry nothing large", n)
		}
		use(p, time.Minute, paths[0])
		if n := u.probes(thirdOuter); n != 0 {
			t.Errorf("%d probes of another path", n)
		}
		n := u.probes(farOuter)
		if n < 60 || n > 130 {
			t.Errorf("%d probes in a minute", n)
		}
		time.Sleep(time.Hour)
		if more := u.probes(farOuter) - n; more > 2 {
			t.Errorf("%d probes of an idle path", more)
		}
		u.set(func() { u.limit = 1400 })
		use(p, time.Second, paths[0])
		wantMTU(t, paths[0], 1350, "in use again")
	})
}

// What has been found outlives a change of peers that is not one of this peer.
func TestProberSetPeers(t *testing.T) {
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		peers := far.peers()
		to := p.setPeers(entries(peers...), nil)[0]
		u.set(func() { u.limit = 1400 })
		use(p, 10*time.Second, to)
		wantMTU(t, to, 1350, "found")

		all := append(thrd.peers(), far.peers()...)
		paths := p.setPeers(entries(all...), nil)
		if paths[2] != to || to.MTU() != 1350 {
			t.Errorf("another path with MTU %d", paths[2].MTU())
		}
		wantMTU(t, paths[0], 1450, "a new peer")
		all[2].MTU = 1300
		p.setPeers(entries(all...), nil)
		wantMTU(t, to, 1300, "a lower MTU of the peer")
		all[2].MTU = 1450
		p.setPeers(entries(all...), nil)
		use(p, 5*time.Second, to)
		wantMTU(t, to, 1350, "a higher one")

		all[2].Endpoint = netip.MustParseAddrPort("192.0.2.77:8472")
		paths = p.setPeers(entries(all...), nil)
		wantMTU(t, paths[2], 1450, "on another path")
		n := u.probes(farOuter)
		p.sent(to, 1450) // a worker that has not heard of the change
		p.tooBig(to, 1450)
		use(p, time.Minute, paths[2])
		if more := u.probes(farOuter) - n; more != 0 {
			t.Errorf("%d probes of a path that is gone", more)
		}
		p.setPeers(nil, nil)
		n = u.probes(netip.AddrPort{})
		use(p, time.Minute, paths...)
		if more := u.probes(netip.AddrPort{}) - n; more != 0 || len(p.numbers) != 0 || p.queue.Len() != 0 {
			t.Errorf("%d probes without peers, %d numbers, %d in the queue", more, len(p.numbers), p.queue.Len())
		}
	})
}

// A peer can only lie about the way to itself.
func TestProberForgedAnswers(t *testing.T) {
	peers := append(far.peers(), thrd.peers()...)
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		paths := p.setPeers(entries(peers...), nil)
		u.set(func() { u.limit = 1400 })
		use(p, 10*time.Second, paths[0])
		u.set(func() {
			u.forge = func(reply []byte) { // as if from the third host, and larger
				copy(reply[12:16], third4.Addr().AsSlice())
				binary.BigEndian.PutUint32(reply[28+16:], 1450)
				fixIPv4(reply)
			}
		})
		use(p, time.Minute, paths[0])
		wantMTU(t, paths[0], 1350, "of the third host's answers")
		wantMTU(t, paths[2], 1450, "of the third host")
		u.set(func() {
			u.forge = func(reply []byte) {
				binary.BigEndian.PutUint32(reply[28+16:], 1<<31+5)
				fixIPv4(reply)
			}
		})
		use(p, time.Minute, paths[0])
		wantMTU(t, paths[0], 1350, "of sizes that cannot be")
	})
}

// fixIPv4 makes the checksums of an ICMPv4 packet right.
func fixIPv4(b []byte) {
	clear(b[10:12])
	binary.BigEndian.PutUint16(b[10:], ^packet.Fold(packet.Sum(b[:20], 0)))
	clear(b[22:24])
	binary.BigEndian.PutUint16(b[22:], ^packet.Fold(packet.Sum(b[20:], 0)))
}

// Only answers to our own probes are taken; a person's ping gets its own.
func TestProberTakesItsOwnOnly(t *testing.T) {
	p := newProber(nil, nil, newSearchConfigs(pathmtu.Defaults()), newLadder(slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	var data [probeData]byte
	binary.BigEndian.PutUint64(data[:], p.token)
	taken := func(identifier uint16, data []byte) bool {
		request := make([]byte, 100)
		if err := packet.PutEchoRequest(request, packet.Echo{
			Source: here4.Addr(), Destination: far4.Addr(), Identifier: identifier, Data: data,
		}); err != nil {
			t.Fatal(err)
		}
		reply := replyTo(request)
		if len(data) < probeData {
			short := tunneltest.Packet{Source: far4, Destination: here4, Protocol: tunneltest.ICMPv4, Payload: reply[20 : 28+len(data)]}
			reply = short.Bytes()
		}
		v, err := packet.Parse(reply)
		return err == nil && p.answered(v)
	}
	if !taken(p.identifier, data[:]) {
		t.Error("its own is not taken")
	}
	other := data
	other[0] ^= 1
	if taken(p.identifier^1, data[:]) || taken(p.identifier, other[:]) || taken(p.identifier, data[:probeData-1]) {
		t.Error("another one is taken")
	}
	v, err := packet.Parse(toHere(true, []byte{1}).Bytes())
	if err != nil || p.answered(v) {
		t.Errorf("TCP is taken: %v", err)
	}
}

// With more going on than the prober can take in, nothing waits and nothing is
// forgotten for good.
func TestProberOverflow(t *testing.T) {
	p := newProber(nil, nil, newSearchConfigs(pathmtu.Defaults()), newLadder(slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	var peers []tunnel.Peer
	for i := range 2 * probeEvents {
		peers = append(peers, manyPeer(i))
	}
	paths := p.setPeers(entries(peers...), nil)
	for _, to := range paths {
		p.sent(to, 1450)
		p.tooBig(to, 1450)
	}
	for _, to := range paths[probeEvents:] {
		if to.used.Load() || to.refused.Load() != 0 {
			t.Fatal("a path that is not heard of will never be")
		}
	}
	p.drain()
	for _, to := range paths {
		p.sent(to, 1450)
	}
	if len(p.wakes) == 0 {
		t.Error("what did not fit does not come again")
	}
	p.drain()
	paths[0].used.Store(false)
	if p.sent(paths[0], 1450); len(p.wakes) != 0 {
		t.Error("a path that is looked at anyway wakes the prober")
	}
}

func manyPeer(i int) tunnel.Peer {
	peer := far.peers()[0]
	peer.Prefixes = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
	peer.Endpoint = netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 8472)
	return peer
}

// Thousands of peers are one goroutine, and no more probes than so many a second.
func TestProberManyPeers(t *testing.T) {
	const many = 1000
	var peers []tunnel.Peer
	for i := range many {
		peers = append(peers, manyPeer(i))
	}
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		synctest.Wait() // Run has begun
		before := tunneltest.Goroutines("tunnel/engine.(*prober)")
		paths := p.setPeers(entries(peers...), nil)
		time.Sleep(time.Minute)
		if n := u.probes(netip.AddrPort{}); n != 0 {
			t.Errorf("%d probes without traffic", n)
		}
		use(p, 10*time.Second, paths...)
		n := u.probes(netip.AddrPort{})
		use(p, 10*time.Second, paths...)
		if perSecond := (u.probes(netip.AddrPort{}) - n) / 10; perSecond > 1050 || perSecond < 500 {
			t.Errorf("%d probes in a second", perSecond)
		}
		if u.peak > probeBurst+2*len(outerSizes) {
			t.Errorf("%d probes at one time", u.peak)
		}
		if after := tunneltest.Goroutines("tunnel/engine.(*prober)"); after > before {
			t.Errorf("%d goroutines more", after-before)
		}
		u.set(func() { u.limit = 1400 })
		use(p, 15*time.Second, paths...)
		for _, to := range paths {
			wantMTU(t, to, 1350, to.peer.Endpoint.String())
		}
	})
}

func TestProberLogs(t *testing.T) {
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		var log bytes.Buffer
		p.logger = slog.New(slog.NewTextHandler(&log, nil))
		to := p.setPeers(entries(far.peers()...), nil)[0]
		u.set(func() { u.limit = 1400 })
		use(p, 5*time.Second, to)
		text := log.String()
		if strings.Count(text, "\n") != 1 || !strings.Contains(text, "inner_from=1450 inner_to=1350") {
			t.Errorf("log: %s", text)
		}
	})
}

// What a worker says per packet costs nothing.
func TestProberWordsDoNotAllocate(t *testing.T) {
	p := newProber(nil, nil, newSearchConfigs(pathmtu.Defaults()), newLadder(slog.New(slog.DiscardHandler)), slog.New(slog.DiscardHandler))
	to := p.setPeers(entries(far.peers()...), nil)[0]
	if n := testing.AllocsPerRun(1000, func() { p.sent(to, 1450); p.tooBig(to, 1450) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
