package wireguard

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/weft-net/weft/tunnel"
)

// TestBadWire holds that each packet comes at most once, whole, and that most
// come, over a wire that loses, doubles, swaps and spoils datagrams.
func TestBadWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		random := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		w.setPass(func(_, _ netip.AddrPort, datagram []byte, deliver func()) {
			mu.Lock()
			defer mu.Unlock()
			switch random.IntN(10) {
			case 0:
				return
			case 1:
				go deliver()
			case 2:
				datagram[random.IntN(len(datagram))] ^= 1 << random.IntN(8)
			}
			delay := time.Duration(random.IntN(300)) * time.Millisecond
			time.AfterFunc(delay, deliver)
		})
		a, b, toB, toA := pair(t, w)
		const packets = 3000
		for i := range packets {
			_ = a.send(toB, fmt.Appendf(nil, "a%d", i))
			_ = b.send(toA, fmt.Appendf(nil, "b%d", i))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for from, e := range map[string]*end{"a": b, "b": a} {
			seen := map[string]bool{}
			for _, packet := range e.received() {
				var i int
				if _, err := fmt.Sscanf(packet, from+"%d", &i); err != nil || i >= packets || seen[packet] {
					t.Fatalf("received %q, seen before: %t", packet, seen[packet])
				}
				seen[packet] = true
			}
			if len(seen) < packets*7/10 {
				t.Errorf("%d of %d packets came", len(seen), packets)
			}
		}
	})
}

// sessions is a session and its other side, without Run.
func sessions(t testing.TB) (s, other *Session) {
	t.Helper()
	make1 := func(key, psk byte, place string, initiator bool) *Session {
		h, err := New(Config{Key: secretKey(key), Send: func(netip.AddrPort, []byte) error { return nil }, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		peers, err := h.SetPeers([]PeerConfig{{Keys: tunnel.WireGuardKeys{secretKey(psk).Public()}, Endpoint: netip.MustParseAddrPort(place)}})
		if err != nil {
			t.Fatal(err)
		}
		send, receive := secretKey(100), secretKey(101)
		if !initiator {
			send, receive = receive, send
		}
		s, err := newSession(peers[0], 7, 7, initiator, send, receive, h.now())
		if err != nil {
			t.Fatal(err)
		}
		h.slots.put(s)
		peers[0].current.Store(s)
		return s
	}
	return make1(1, 2, placeB, true), make1(2, 1, placeA, false)
}

// TestHotPath holds that nothing a worker does for a packet allocates.
func TestHotPath(t *testing.T) {
	s, other := sessions(t)
	scratch := &Scratch{}
	packet, datagram := bytes.Repeat([]byte{9}, 1420), make([]byte, 1420+Overhead)
	place := netip.MustParseAddrPort(placeA)
	other.Received(time.Now(), place, true)
	failed := ""
	allocs := testing.AllocsPerRun(1000, func() {
		now := time.Now()
		p := s.Peer()
		out := p.Session(now)
		counter, ok := out.Reserve(1)
		out.Seal(datagram, packet, counter, scratch)
		p.Sent(now)
		in := other.Peer().host.Lookup(7)
		if in == nil || !ok {
			failed = "no session"
			return
		}
		plaintext, counter, ok := in.Open(datagram, scratch)
		in.LockReplay()
		ok = ok && in.Fresh(counter) && !in.Fresh(counter)
		in.UnlockReplay()
		in.Received(now, place, true)
		if !ok || !bytes.Equal(plaintext, packet) {
			failed = "not the packet"
		}
	})
	if failed != "" || allocs != 0 {
		t.Fatalf("%v allocations for a packet %s", allocs, failed)
	}
}

func TestLimits(t *testing.T) {
	s, _ := sessions(t)
	s.counter.Store(device.RejectAfterMessages - 2)
	if counter, ok := s.Reserve(2); !ok || counter != device.RejectAfterMessages-2 {
		t.Errorf("the last counters: %d, %t", counter, ok)
	}
	if _, ok := s.Reserve(1); ok {
		t.Error("a counter beyond the limit")
	}
	if s.Peer().Session(time.Now()) != nil {
		t.Error("a session that is used up")
	}
	s.counter.Store(device.RekeyAfterMessages)
	s.Peer().asked.Store(false)
	if s.Peer().Session(time.Now()) != s || !s.Peer().asked.Load() {
		t.Error("no handshake is asked for after many messages")
	}
}

func TestStageIsBounded(t *testing.T) {
	s, _ := sessions(t)
	p := s.Peer()
	p.current.Store(nil)
	for i := range stagedPackets + 1 {
		if got, want := p.Stage([]byte{1}), i < stagedPackets; got != want {
			t.Fatalf("packet %d: %t, want %t", i, got, want)
		}
	}
	p.unstage()
	if !p.Stage(make([]byte, stagedBytes)) || p.Stage([]byte{1}) {
		t.Error("the bytes of a peer are not bounded")
	}
	p.unstage()
	p.host.staged.Store(stagedInAll - 1)
	if !p.Stage([]byte{1}) || p.Stage([]byte{1}) {
		t.Error("the bytes of all are not bounded")
	}
}

// TestIdlePeers holds what a peer costs that nobody talks to.
func TestIdlePeers(t *testing.T) {
	const count, most = 5000, 1 << 10
	configs := make([]PeerConfig, count)
	for i := range configs {
		configs[i] = PeerConfig{Name: "peer", Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 51820)}
		configs[i].Keys[0] = tunnel.PublicKey{1, byte(i >> 8), byte(i)}
	}
	e := newEnd(t, newWire(), 1, placeA, Config{})
	heap := func() uint64 {
		var stats runtime.MemStats
		for range 3 { // what other tests have left in pools takes more than one
			runtime.GC()
		}
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	e.setPeers(configs...)
	each := (heap() - before) / count
	t.Logf("%d bytes each", each)
	if each > most {
		t.Errorf("an idle peer takes %d bytes, want at most %d", each, most)
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines more for idle peers", now-goroutines)
	}
	runtime.KeepAlive(e)
	runtime.KeepAlive(configs)
}

// TestManyPeers holds that the table of sessions grows with them.
func TestManyPeers(t *testing.T) {
	var table table
	table.init()
	held := map[uint32]*Session{}
	for range 3000 {
		s := &Session{index: table.free()}
		table.put(s)
		held[s.index] = s
	}
	for index, s := range held {
		if table.get(index) != s || table.get(index^1<<31) == s {
			t.Fatalf("session %d is not found, or by another index", index)
		}
		table.drop(s)
		table.drop(s)
		if table.get(index) != nil {
			t.Fatalf("session %d is found after its end", index)
		}
	}
	if table.used != 0 {
		t.Fatalf("%d slots in use", table.used)
	}
}

func BenchmarkSeal(b *testing.B) {
	s, _ := sessions(b)
	scratch, packet, datagram := &Scratch{}, make([]byte, 1420), make([]byte, 1420+Overhead)
	b.SetBytes(1420)
	b.ReportAllocs()
	for b.Loop() {
		counter, _ := s.Reserve(1)
		s.Seal(datagram, packet, counter, scratch)
	}
}

func BenchmarkOpen(b *testing.B) {
	s, other := sessions(b)
	scratch, sealed, datagram := &Scratch{}, make([]byte, 1420+Overhead), make([]byte, 1420+Overhead)
	s.Seal(sealed, make([]byte, 1420), 1, scratch)
	b.SetBytes(1420)
	b.ReportAllocs()
	for b.Loop() {
		copy(datagram, sealed)
		if _, _, ok := other.Open(datagram, scratch); !ok {
			b.Fatal("not opened")
		}
	}
}
