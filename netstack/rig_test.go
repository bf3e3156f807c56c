package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
	"github.com/weft-net/weft/tunnel/udp"
)

const testMTU = 1450

// site is a Stack with an engine. Number n has 10.244.n.0/24 and
// fd00:10:244:n::/64, and their network addresses.
type site struct {
	number int
	*Stack
	engine *engine.Engine
	socket tunnel.Socket
	mac    tunnel.MAC
}

func subnet(number int, is4 bool) netip.Prefix {
	if is4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x10, 4: 2, 5: 0x44, 7: byte(number)}), 64)
}

func (s *site) addr(is4 bool) netip.Addr { return subnet(s.number, is4).Addr() }

// peers are others as an engine sees them.
func peers(others ...*site) (peers []tunnel.Peer) {
	for _, o := range others {
		for _, is4 := range []bool{true, false} {
			peers = append(peers, tunnel.Peer{
				Name: fmt.Sprintf("site%d", o.number), Prefixes: []netip.Prefix{subnet(o.number, is4)},
				Endpoint: o.socket.Local(), MAC: o.mac, VNI: 7, MTU: testMTU,
			})
		}
	}
	return peers
}

// newSite makes a Stack and an engine that has socket.
func newSite(t testing.TB, number int, socket tunnel.Socket) *site {
	t.Helper()
	s := &site{number: number, socket: socket, mac: tunnel.MAC{2, 0, 0, 0, 0, byte(number)}}
	logger := slog.New(slog.DiscardHandler)
	var err error
	s.Stack, err = New(Config{
		Name: fmt.Sprintf("weft%d", number), MTU: testMTU, Logger: logger,
		Addresses: []netip.Addr{s.addr(true), s.addr(false), s.addr(true).Next(), s.addr(false).Next()},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.engine, err = engine.New(engine.Config{
		Workers: []engine.Worker{{Device: s.Stack, Sockets: []tunnel.Socket{socket}}}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	var locals []tunnel.Local
	for _, is4 := range []bool{true, false} {
		locals = append(locals, tunnel.Local{Subnet: subnet(number, is4), MAC: s.mac, VNI: 7})
	}
	if err := s.engine.SetLocals(locals); err != nil {
		t.Fatal(err)
	}
	return s
}

// run starts the engines of sites that know each other, and stops them when
// the test ends.
func run(t testing.TB, sites ...*site) {
	t.Helper()
	for i, s := range sites {
		var others []*site
		others = append(append(others, sites[:i]...), sites[i+1:]...)
		if err := s.engine.SetPeers(peers(others...)); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		stopped := make(chan error, 1)
		go func() { stopped <- s.engine.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-stopped; err != nil && !errors.Is(err, tunnel.ErrClosed) {
				t.Error(err)
			}
		})
	}
}

// wires are the underlays that tests run over.
func wires(t *testing.T, test func(t *testing.T, a, b *site)) {
	t.Run("memory", func(t *testing.T) {
		a, b := onWire(t, tunneltest.WireConfig{}, tunneltest.AllOffloads())
		test(t, a, b)
	})
	t.Run("loopback", func(t *testing.T) {
		a, b := onLoopback(t)
		test(t, a, b)
	})
}

// onWire makes two sites that are joined in memory.
func onWire(t testing.TB, config tunneltest.WireConfig, offloads tunnel.Offloads) (a, b *site) {
	wire := tunneltest.NewWire(config)
	a = newSite(t, 1, wire.Socket(netip.MustParseAddrPort("192.0.2.1:8472"), offloads))
	b = newSite(t, 2, wire.Socket(netip.MustParseAddrPort("192.0.2.2:8472"), offloads))
	run(t, a, b)
	return a, b
}

// onLoopback makes two sites that are joined by the system's UDP sockets.
func onLoopback(t testing.TB) (a, b *site) {
	t.Helper()
	var sockets []tunnel.Socket
	for i := range 2 {
		socket, err := udp.Listen(udp.Config{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}), 0)})
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, socket)
	}
	a, b = newSite(t, 1, sockets[0]), newSite(t, 2, sockets[1])
	run(t, a, b)
	return a, b
}
