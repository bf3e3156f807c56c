package wireguard

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// wire carries datagrams between the ends of a test, in memory.
type wire struct {
	mu   sync.Mutex
	ends map[netip.AddrPort]func(datagram []byte, from netip.AddrPort)
	// pass, if set, decides what becomes of a datagram: it is delivered as often
	// as deliver is called.
	pass func(from, to netip.AddrPort, datagram []byte, deliver func())
	sent int
}

func newWire() *wire {
	return &wire{ends: map[netip.AddrPort]func([]byte, netip.AddrPort){}}
}

func (w *wire) connect(at netip.AddrPort, receive func([]byte, netip.AddrPort)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[at] = receive
}

func (w *wire) setPass(pass func(from, to netip.AddrPort, datagram []byte, deliver func())) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pass = pass
}

func (w *wire) send(from, to netip.AddrPort, datagram []byte) error {
	w.mu.Lock()
	receive, pass := w.ends[to], w.pass
	w.sent++
	w.mu.Unlock()
	kept := bytes.Clone(datagram)
	deliver := func() {
		if receive != nil {
			receive(bytes.Clone(kept), from)
		}
	}
	if pass != nil {
		pass(from, to, kept, deliver)
	} else {
		deliver()
	}
	return nil
}

// end is a host with an engine of the simplest kind.
type end struct {
	t    testing.TB
	host *Host
	wire *wire
	key  tunnel.SecretKey
	log  bytes.Buffer

	mu   sync.Mutex
	at   netip.AddrPort
	got  [][]byte
	stop func()
}

func secretKey(seed byte) tunnel.SecretKey {
	var key tunnel.SecretKey
	for i := range key {
		key[i] = seed + byte(i)
	}
	return key
}

func newEnd(t testing.TB, w *wire, seed byte, at string, config Config) *end {
	t.Helper()
	e := &end{t: t, wire: w, key: secretKey(seed), at: netip.MustParseAddrPort(at)}
	config.Key = e.key
	config.Send = func(to netip.AddrPort, datagram []byte) error { return w.send(e.place(), to, datagram) }
	config.Logger = slog.New(slog.NewTextHandler(&e.log, nil))
	host, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	e.host = host
	w.connect(e.at, e.receive)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	e.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(e.stop)
	return e
}

func (e *end) place() netip.AddrPort {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at
}

// roam changes where the end sends from and receives at.
func (e *end) roam(at string) {
	e.wire.connect(e.place(), nil)
	e.mu.Lock()
	e.at = netip.MustParseAddrPort(at)
	e.mu.Unlock()
	e.wire.connect(e.place(), e.receive)
}

func (e *end) peer(other *end) PeerConfig {
	return PeerConfig{Name: other.at.String(), Keys: tunnel.WireGuardKeys{other.key.Public()}, Endpoint: other.place()}
}

func (e *end) setPeers(configs ...PeerConfig) []*Peer {
	e.t.Helper()
	peers, err := e.host.SetPeers(configs)
	if err != nil {
		e.t.Fatal(err)
	}
	return peers
}

func (e *end) receive(datagram []byte, from netip.AddrPort) {
	if len(datagram) < Overhead || datagram[0] != 4 {
		e.host.Handshake(datagram, from)
		return
	}
	s := e.host.Lookup(binary.LittleEndian.Uint32(datagram[4:]))
	if s == nil {
		e.host.Unknown(from)
		return
	}
	plaintext, counter, ok := s.Open(datagram, new(Scratch))
	if !ok {
		return
	}
	s.LockReplay()
	ok = s.Fresh(counter)
	s.UnlockReplay()
	if !ok {
		return
	}
	s.Received(time.Now(), from, len(plaintext) > 0)
	if len(plaintext) > 0 {
		e.mu.Lock()
		e.got = append(e.got, plaintext)
		e.mu.Unlock()
	}
}

// send sends a packet as the engine does.
func (e *end) send(p *Peer, packet []byte) error {
	now := time.Now()
	s := p.Session(now)
	if s == nil {
		if !p.Stage(packet) {
			return errors.New("not staged")
		}
		return nil
	}
	counter, ok := s.Reserve(1)
	if !ok {
		return errors.New("session is used up")
	}
	datagram := make([]byte, len(packet)+Overhead)
	s.Seal(datagram, packet, counter, new(Scratch))
	p.Sent(now)
	return e.wire.send(e.place(), p.Endpoint(), datagram)
}

func (e *end) received() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var got []string
	for _, packet := range e.got {
		got = append(got, string(packet))
	}
	return got
}

// eventually waits for what happens in other goroutines on the real clock.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("%s: did not come about", what))
		}
	}
}

// trace counts datagrams by sender and type. An empty packet counts as type 5.
type trace struct {
	mu    sync.Mutex
	count map[netip.AddrPort]map[byte]int
}

const keepaliveType = 5

// watch traces what goes over the wire, of which block drops what it says so for.
func (w *wire) watch(block func(from netip.AddrPort, kind byte) bool) *trace {
	tr := &trace{count: map[netip.AddrPort]map[byte]int{}}
	w.setPass(func(from, _ netip.AddrPort, datagram []byte, deliver func()) {
		kind := datagram[0]
		if kind == 4 && len(datagram) == Overhead {
			kind = keepaliveType
		}
		tr.mu.Lock()
		if tr.count[from] == nil {
			tr.count[from] = map[byte]int{}
		}
		tr.count[from][kind]++
		tr.mu.Unlock()
		if block == nil || !block(from, kind) {
			deliver()
		}
	})
	return tr
}

func (tr *trace) of(e *end, kind byte) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.count[e.place()][kind]
}
