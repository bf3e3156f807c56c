package engine

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

var discard = slog.New(slog.DiscardHandler)

func TestNewRefuses(t *testing.T) {
	device, _ := tunneltest.NewDevices(testMTU, tunnel.Offloads{})
	socket := tunneltest.NewWire(tunneltest.WireConfig{}).Socket(hereOuter, tunnel.Offloads{})
	sockets := []tunnel.Socket{socket}
	for want, config := range map[string]Config{
		"Workers": {Logger: discard},
		"Device":  {Workers: []Worker{{Sockets: sockets}}, Logger: discard},
		"Sockets": {Workers: []Worker{{Device: device}}, Logger: discard},
		"Logger":  {Workers: []Worker{{Device: device, Sockets: sockets}}},
	} {
		if _, err := New(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", want, err)
		}
	}
}

func TestSetPeersLeavesOut(t *testing.T) {
	r := newRig(t, everything())
	bad := thrd.peers()
	bad[0].Name, bad[0].MTU = "bad", 0
	err := r.engine.SetPeers(append(bad[:1], far.peers()...))
	if err == nil || !strings.Contains(err.Error(), `"bad"`) {
		t.Errorf("error %v", err)
	}
	p := toFar(true, []byte("data")).Bytes()
	r.send(finished(p)...)
	r.equal(r.inners(), [][]byte{p})
}

func TestSetLocalsRefuses(t *testing.T) {
	r := newRig(t, everything())
	twice := append(here.locals(), here.locals()[0])
	unmasked := here.locals()
	unmasked[0].Subnet = netip.PrefixFrom(here4.Addr(), 24)
	for want, locals := range map[string][]tunnel.Local{
		"one per family": twice, "masked prefix": unmasked, "subnet invalid": {{}},
	} {
		if err := r.engine.SetLocals(locals); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	p := toHere(true, []byte("data")).Bytes()
	r.inject(far, p) // as before
	got, _ := r.delivered()
	r.equal(got, [][]byte{p})
}

func TestStats(t *testing.T) {
	r := newRig(t, everything())
	r.send(finished(toFar(true, nil).Bytes())...)
	names := map[string]uint64{}
	stats := r.engine.Stats()
	stats.Each(func(name string, value uint64) {
		if _, twice := names[name]; twice || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("counter %q", name)
		}
		names[name] = value
	})
	if len(names) != counterCount || names["tx_packets"] != 1 || names["rx_packets"] != 0 {
		t.Errorf("%v", names)
	}
}

// member is a host with a running engine.
type member struct {
	host
	engine *Engine
	device *tunneltest.Device // the engine's end
	inside *tunneltest.Device
	socket *tunneltest.Socket
	stop   context.CancelFunc
	done   chan error
}

func newMember(t *testing.T, wire *tunneltest.Wire, h host, others ...host) *member {
	t.Helper()
	m := &member{host: h, done: make(chan error, 1)}
	m.device, m.inside = tunneltest.NewDevices(testMTU, tunneltest.AllOffloads())
	m.socket = wire.Socket(h.outer, tunneltest.AllOffloads())
	var err error
	m.engine, err = New(Config{Workers: []Worker{{Device: m.device, Sockets: []tunnel.Socket{m.socket}}}, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	var peers []tunnel.Peer
	for _, other := range others {
		peers = append(peers, other.peers()...)
	}
	if err := errors.Join(m.engine.SetPeers(peers), m.engine.SetLocals(h.locals())); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(t.Context())
	go func() { m.done <- m.engine.Run(ctx) }()
	return m
}

func (m *member) end(t *testing.T) {
	t.Helper()
	m.stop()
	if err := <-m.done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// received is what the host got, finished.
func (m *member) received(t *testing.T) (all [][]byte) {
	t.Helper()
	r := rig{t: t, host: m.inside}
	all, _ = r.delivered()
	return all
}

// randomTraffic makes packets from one host to another, some to be finished,
// some super-packets, and what they come down to on the wire.
func randomTraffic(t *testing.T, random *rand.Rand, from, to host, count int) (packets []tunnel.Outgoing, want [][]byte) {
	t.Helper()
	for range count {
		p := between(from, to, random.IntN(2) == 0, tunneltest.Random(random, random.IntN(1300)))
		p.Source = withPort(p.Source, uint16(random.IntN(5)+1))
		p.Sequence, p.ID = random.Uint32(), uint16(random.Uint32())
		p.TOS = uint8(random.IntN(4))
		// Where fragmenting is not forbidden, joining keeps the ids of packets.
		p.DontFragment = false
		p.Flags = []uint8{tunneltest.ACK, tunneltest.ACK | tunneltest.PSH, tunneltest.SYN, tunneltest.ACK | tunneltest.CWR}[random.IntN(4)]
		var data []byte
		var offload tunnel.Offload
		switch random.IntN(6) {
		case 0:
			data = asPing(p, random.IntN(1400)).Bytes()
		case 1:
			data, offload = asUDP(p).Partial()
		case 2:
			p.Payload = tunneltest.Random(random, random.IntN(60000)+1)
			data, offload = p.Super(random.IntN(1378) + 1)
		case 3:
			p.Payload = tunneltest.Random(random, random.IntN(20000)+1)
			data, offload = asUDP(p).Super(random.IntN(1378) + 1)
		case 4:
			data, offload = p.Partial()
		default:
			data = p.Bytes()
		}
		finished, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		packets, want = append(packets, out(data, offload)), append(want, finished...)
	}
	return packets, want
}

// Two engines carry anything, in both directions at once, unchanged and in order.
func TestEngineToEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := tunneltest.NewWire(tunneltest.WireConfig{HashPorts: true})
		a, b := newMember(t, wire, here, far), newMember(t, wire, far, here)
		random := rand.New(rand.NewPCG(11, 12))
		for range 30 {
			toB, wantB := randomTraffic(t, random, here, far, random.IntN(40)+1)
			toA, wantA := randomTraffic(t, random, far, here, random.IntN(40)+1)
			var group sync.WaitGroup
			group.Go(func() { _, _ = a.inside.Write(toB) })
			group.Go(func() { _, _ = b.inside.Write(toA) })
			group.Wait()
			synctest.Wait()
			r := rig{t: t}
			r.equal(b.received(t), wantB)
			r.equal(a.received(t), wantA)
		}
		for _, m := range []*member{a, b} {
			stats := m.engine.Stats()
			stats.Each(func(name string, value uint64) {
				if strings.Contains(name, "_drop_") && value != 0 {
					t.Errorf("%s is %d", name, value)
				}
			})
			for _, c := range []Counter{TxSuperPackets, RxSuperPackets} {
				if stats.Value(c) == 0 {
					t.Errorf("%v is 0", c)
				}
			}
			m.end(t)
		}
	})
}

// On a bad wire packets get lost and overtake each other, but none is changed.
func TestEngineToEngineBadWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := tunneltest.NewWire(tunneltest.WireConfig{Seed: 1, Loss: 0.1, Reorder: 0.2})
		a, b := newMember(t, wire, here, far), newMember(t, wire, far, here)
		random := rand.New(rand.NewPCG(13, 14))
		packets, want := randomTraffic(t, random, here, far, 300)
		if _, err := a.inside.Write(packets); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		sent := map[string]int{}
		for _, p := range want {
			sent[content(p)]++
		}
		got := b.received(t)
		for _, p := range got {
			if sent[content(p)]--; sent[content(p)] < 0 {
				t.Fatalf("received what was not sent: %x", p)
			}
		}
		if lost := len(want) - len(got); lost < len(want)/20 || lost > len(want)/5 {
			t.Errorf("%d of %d packets lost", lost, len(want))
		}
		a.end(t)
		b.end(t)
	})
}

// content is a packet without the id that means nothing in one that may not be
// fragmented (RFC 6864), and that joining such packets does not keep.
func content(p []byte) string {
	p = bytes.Clone(p)
	if p[0]>>4 == 4 && p[6]&0x40 != 0 {
		clear(p[4:6])
		fixHeader(p)
	}
	return string(p)
}

// Peers may come and go while packets flow.
func TestSetPeersWhileRunning(t *testing.T) {
	wire := tunneltest.NewWire(tunneltest.WireConfig{})
	a, b := newMember(t, wire, here, far), newMember(t, wire, far, here)
	packets, _ := randomTraffic(t, rand.New(rand.NewPCG(1, 1)), here, far, 50)
	var group sync.WaitGroup
	group.Go(func() {
		for range 50 {
			_ = a.engine.SetPeers(nil)
			_ = a.engine.SetPeers(far.peers())
			_ = b.engine.SetLocals(far.locals())
			_ = a.engine.Stats()
		}
	})
	group.Go(func() {
		for range 20 {
			_, _ = a.inside.Write(packets)
		}
	})
	group.Wait()
	a.end(t)
	b.end(t)
}

// lone is a Device that notices two writers at once.
type lone struct {
	tunnel.Device
	busy, shared atomic.Bool
}

func (l *lone) Write(packets []tunnel.Outgoing) (int, error) {
	if l.busy.Swap(true) {
		l.shared.Store(true)
	}
	runtime.Gosched()
	l.busy.Store(false)
	return len(packets), nil
}

// A Device has one writer at a time, however many sockets there are.
func TestOneWriter(t *testing.T) {
	device, _ := tunneltest.NewDevices(testMTU, tunneltest.AllOffloads())
	watched := &lone{Device: device}
	wire := tunneltest.NewWire(tunneltest.WireConfig{})
	parts := Worker{Device: watched}
	for port := range uint16(3) {
		parts.Sockets = append(parts.Sockets, wire.Socket(withPort(hereOuter, port+1), tunneltest.AllOffloads()))
	}
	e, err := New(Config{Workers: []Worker{parts}, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.SetPeers(far.peers()), e.SetLocals(here.locals())); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, rx := range e.workers[0].rx {
		group.Go(func() {
			frame := far.frame(toHere(true, []byte("data")).Bytes())
			for range 2000 {
				rx.process([]tunnel.Datagrams{{Addr: farOuter, Data: frame}}, false)
			}
		})
	}
	group.Wait()
	if watched.shared.Load() {
		t.Error("two workers wrote at once")
	}
}

func TestRunStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wire := tunneltest.NewWire(tunneltest.WireConfig{})
		m := newMember(t, wire, here, far)
		synctest.Wait()
		m.end(t)
		if err := m.inside.Close(); err != nil {
			t.Error(err)
		}
		if _, err := m.socket.Send([]tunnel.Datagrams{{Addr: farOuter, Parts: [][]byte{{1}}}}); !errors.Is(err, tunnel.ErrClosed) {
			t.Errorf("the socket is still open: %v", err)
		}
		if err := m.engine.Run(t.Context()); err == nil {
			t.Error("it runs twice")
		}
	})
}

// When the Device or a Socket goes away, Run says so and closes the rest.
func TestRunFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, lost := range []string{"read weft0", "receive on 192.0.2.1:8472"} {
			m := newMember(t, tunneltest.NewWire(tunneltest.WireConfig{}), here, far)
			synctest.Wait()
			if lost == "read weft0" {
				_ = m.device.Close()
			} else {
				_ = m.socket.Close()
			}
			if err := <-m.done; !errors.Is(err, tunnel.ErrClosed) || !strings.Contains(err.Error(), lost) {
				t.Errorf("%s: %v", lost, err)
			}
			m.stop()
		}
	})
}
