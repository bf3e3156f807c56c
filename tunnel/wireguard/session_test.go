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
	"github.com/weft-net/weft/tunnel/tunneltest"
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

// TestSwaps holds that a wire which only delays and swaps loses nothing, also
// while one session follows another.
func TestSwaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		w.setPass(func(_, _ netip.AddrPort, _ []byte, deliver func()) {
			time.AfterFunc(time.Duration(rand.IntN(300))*time.Millisecond, deliver)
		})
		a, b, toB, toA := pair(t, w)
		must(t, a.send(toB, []byte("first")))
		time.Sleep(time.Second)
		const packets = 5000
		for range packets {
			must(t, a.send(toB, []byte("a")))
			must(t, b.send(toA, []byte("b")))
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if gotB, gotA := len(b.received())-1, len(a.received()); gotA != packets || gotB != packets {
			t.Fatalf("%d and %d of %d packets came", gotA, gotB, packets)
		}
	})
}

// TestWorkersAtOnce has many goroutines use what configuration changes; it is for
// the race detector.
func TestWorkersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, toB, toA := pair(t, newWire())
		var work sync.WaitGroup
		for range 4 {
			work.Go(func() {
				for range 500 {
					_ = a.send(toB, []byte("a"))
					_ = b.send(toA, []byte("b"))
					_, _ = toA.Status(), a.host.Active()
					time.Sleep(time.Second)
				}
			})
		}
		work.Go(func() {
			config := b.peer(a)
			for i := range 500 {
				next := secretKey(byte(100 + i%50))
				config.Keys[1] = next.Public()
				b.setPeers(config)
				if err := a.host.SetKeys(a.key, next); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Second)
			}
		})
		work.Wait()
		synctest.Wait()
		if len(a.received()) != 2000 || len(b.received()) != 2000 {
			t.Errorf("%d and %d of 2000 packets came", len(a.received()), len(b.received()))
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

// TestResponderDoesNotRekey holds that an old session moves its initiator to begin
// the next, and nobody else.
func TestResponderDoesNotRekey(t *testing.T) {
	s, other := sessions(t)
	late := time.Now().Add(lastRekeyAfter)
	for _, s := range []*Session{s, other} {
		s.Received(late, s.Peer().Endpoint(), true)
		s.Peer().Session(late)
		if got := s.Peer().asked.Load(); got != s.initiator {
			t.Errorf("initiator %t: a handshake is asked for: %t", s.initiator, got)
		}
	}
}

// TestStageTooLate holds that a packet is not left behind for which the session
// came between the look for it and the staging.
func TestStageTooLate(t *testing.T) {
	s, _ := sessions(t)
	p := s.Peer()
	p.asked.Store(true)
	if !p.Stage([]byte{1}) || !p.called.Load() {
		t.Error("nobody is told of the packet")
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
		for range 3 { // what pools hold goes with the second
			runtime.GC()
		}
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before, goroutines := heap(), tunneltest.Goroutines("weft/tunnel/wireguard")
	e.setPeers(configs...)
	each := (int64(heap()) - int64(before)) / count
	t.Logf("%d bytes each", each)
	if each > most || each < 100 {
		t.Errorf("an idle peer takes %d bytes, want at most %d", each, most)
	}
	if now := tunneltest.Goroutines("weft/tunnel/wireguard"); now > goroutines {
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
