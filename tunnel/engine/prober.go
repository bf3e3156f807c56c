package engine

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/proof"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/pathmtu"
	"github.com/weft-net/weft/tunnel/peertable"
	"github.com/weft-net/weft/tunnel/schedule"
	"github.com/weft-net/weft/tunnel/wireguard"
)

// ProbeSocket sends the probes of path MTUs in one outer family.
type ProbeSocket interface {
	// Local is the address it sends from.
	Local() netip.Addr
	// Send sends a datagram that nobody may fragment, whatever is known of the path.
	Send(to netip.AddrPort, datagram []byte) error
	// SendRun sends a run of datagrams of segment bytes, the last of which may be
	// shorter, in the way that Sockets send theirs. ErrOffload means that those
	// send none, or that a run was refused.
	SendRun(to netip.AddrPort, run []byte, segment int) error
	// PathMTU is the largest outer packet that the system believes to get to an
	// address. Larger ones it would send in fragments, or runs of them not at all.
	PathMTU(to netip.Addr) (int, error)
	Close() error
}

const (
	probeEvents = 256 // wake-ups, and answers, that wait for the prober
	probeData   = 24  // bytes in a probe that the peer sends back
	// probeEvery bounds all probes to one in so much time, while none is lost.
	probeEvery = time.Millisecond
	// probeBurst bounds those sent at one time, so that their answers find room;
	// after burstPause there may be as many again.
	probeBurst, burstPause = 64, time.Millisecond
)

// prober keeps the path MTU of every peer that large packets are sent to. It is
// one goroutine for all, which sleeps while there is no such traffic. A probe is
// an ICMP echo request to the peer's network address, which every host of the
// network has on its tunnel device, so that the peer needs nothing for it.
type prober struct {
	sockets    []ProbeSocket
	sealed     []ProbeSocket // for peers that get WireGuard
	logger     *slog.Logger
	configs    searchConfigs
	ladder     *ladder
	token      uint64 // tells answers to these probes from others
	prover     proof.Prover
	answeredBy func(token uint64) // told of answers to probes of ways; nil: nobody
	identifier uint16
	epoch      time.Time

	wakes   chan *path
	answers chan probeAnswer
	changed chan struct{} // setPeers has changed what is due

	mu       sync.Mutex
	counters counters
	locals   []tunnel.Local
	paths    map[pathKey]*path
	numbers  map[uint32]*path
	last     uint32 // number given
	queue    schedule.Queue[*path]
	burst    int       // probes sent ...
	pause    time.Time // ... since this less burstPause
	sizes    []int
	buffer   []byte // one datagram
	plain    []byte // one packet to be sealed
	scratch  wireguard.Scratch
}

// pathKey is what a peer has to keep to be the same peer on the same path.
type pathKey struct {
	endpoint netip.AddrPort
	network  netip.Prefix
	encap    tunnel.Encap
}

// probeAnswer is what an answer to a probe says.
type probeAnswer struct {
	source netip.Addr
	number uint32
	size   int
	sent   time.Duration // since the epoch
}

func newProber(sockets, sealed []ProbeSocket, configs searchConfigs, ladder *ladder, logger *slog.Logger) *prober {
	return &prober{
		sockets: sockets, sealed: sealed, logger: logger, configs: configs, ladder: ladder,
		token: rand.Uint64(), prover: proof.New(), identifier: uint16(rand.Uint32()), epoch: time.Now(),
		wakes: make(chan *path, probeEvents), answers: make(chan probeAnswer, probeEvents),
		changed: make(chan struct{}, 1), paths: map[pathKey]*path{}, numbers: map[uint32]*path{},
		buffer: make([]byte, wireguard.Overhead+tunnel.MaxPacket), plain: make([]byte, tunnel.MaxPacket),
	}
}

// setPeers replaces the peers, and returns a path for each. That of a peer which
// was there before is the same. The peers must not change from now on. sealed
// are those who have keys, as WireGuard knows them.
func (p *prober) setPeers(peers []*peertable.Entry, sealed []*wireguard.Peer) []*path {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, before := time.Now(), p.paths
	p.paths = make(map[pathKey]*path, len(peers))
	all := make([]*path, len(peers))
	for i, peer := range peers {
		key := pathKey{peer.Endpoint, peer.Prefixes[0], peer.Encap}
		known, ok := before[key]
		if ok {
			delete(before, key)
		} else {
			p.last++
			known = &path{number: p.last}
			p.numbers[known.number] = known
		}
		if known.peer = peer; sealed != nil {
			known.sealed = sealed[i]
		}
		p.paths[key], all[i] = known, known
		if known.search == nil {
			known.mtu.Store(int32(peer.MTU))
			continue
		}
		p.setCeiling(known, now)
		p.schedule(known, known.nextStep())
	}
	for _, gone := range before {
		delete(p.numbers, gone.number)
		p.unwatch(gone)
	}
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return all
}

func (p *prober) setLocals(locals []tunnel.Local) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.locals = locals
}

// sent is what a worker says of every packet it sends to a peer.
func (p *prober) sent(to *path, size int) {
	if size >= largePacket && !to.used.Load() {
		to.used.Store(true)
		if !to.watched.Load() {
			p.wake(to)
		}
	}
}

// tooBig is what a worker says when a Socket called a packet of size bytes too big.
func (p *prober) tooBig(to *path, size int) {
	if to.refused.CompareAndSwap(0, int32(size)) {
		p.wake(to)
	}
}

// wake has the prober look at a path. With more waking than it can take, what
// woke it comes again with a later packet.
func (p *prober) wake(to *path) {
	select {
	case p.wakes <- to:
	default:
		to.used.Store(false)
		to.refused.Store(0)
	}
}

// answered takes a packet to our network address that is the answer to a probe.
// It is false for any other.
func (p *prober) answered(v packet.View) bool {
	echo, ok := packet.ParseEchoReply(v)
	if !ok || echo.Identifier != p.identifier || len(echo.Data) < probeData || binary.BigEndian.Uint64(echo.Data) != p.token {
		return false
	}
	if binary.BigEndian.Uint32(echo.Data[20:]) == wayNumber {
		p.answeredWay(echo)
		return true
	}
	if binary.BigEndian.Uint32(echo.Data[16:])&runTestMark != 0 && !intactRun(echo) {
		return true
	}
	answer := probeAnswer{
		source: echo.Source,
		sent:   time.Duration(binary.BigEndian.Uint64(echo.Data[8:])),
		size:   int(binary.BigEndian.Uint32(echo.Data[16:])),
		number: binary.BigEndian.Uint32(echo.Data[20:]),
	}
	select {
	case p.answers <- answer:
	default: // counts as lost
	}
	return true
}

// Run probes until ctx is done, and returns nil.
func (p *prober) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case to := <-p.wakes:
			p.woken(to)
		case answer := <-p.answers:
			p.hear(answer)
		case <-p.changed:
		case <-timer.C:
		}
		p.drain()
		if wait, ok := p.advance(time.Now()); ok {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// drain takes in all that is there: what has been answered is not lost, however
// late the prober comes to hear of it.
func (p *prober) drain() {
	for {
		select {
		case to := <-p.wakes:
			p.woken(to)
		case answer := <-p.answers:
			p.hear(answer)
		default:
			return
		}
	}
}

// advance takes the steps that are due, or as many as may be taken at one time,
// and returns the time to the next.
func (p *prober) advance(now time.Time) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !now.Before(p.pause) {
		p.burst, p.pause = 0, now.Add(burstPause)
	}
	for {
		first, ok := p.queue.First()
		if !ok {
			return 0, false
		}
		if now.Before(first.Due()) {
			return first.Due().Sub(now), true
		}
		if p.burst >= probeBurst {
			return p.pause.Sub(now), true
		}
		p.burst += p.step(first, now)
	}
}

// woken looks at a path that a worker has said something of.
func (p *prober) woken(to *path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.numbers[to.number] != to {
		return // its peer is gone
	}
	now := time.Now()
	if to.search == nil {
		to.search = pathmtu.New(p.configs.of(to), to.peer.MTU, now)
		to.logged = to.peer.MTU
	}
	if size := int(to.refused.Load()); size != 0 {
		p.refused(to, size, now)
	}
	if !to.Scheduled() {
		to.watched.Store(true)
		p.queue.Put(to, now)
	}
}

// refused lowers the MTU to what the system says, or else to a usual size.
func (p *prober) refused(to *path, size int, now time.Time) {
	before := to.search.MTU()
	p.setCeiling(to, now)
	if to.search.MTU() >= size {
		to.search.Hint(now, to.lowerMTU(size))
	}
	if to.search.MTU() < before {
		to.refused.Store(0)
	} // else it cannot be helped, and one word on it until the next step will do
	p.publish(to, "a packet was refused as too big")
	p.schedule(to, to.nextStep())
}

// hear takes in an answer.
func (p *prober) hear(answer probeAnswer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	to := p.numbers[answer.number]
	if to == nil || to.search == nil || !owns(to.peer, answer.source) {
		return
	}
	now, sent := time.Now(), p.epoch.Add(answer.sent)
	if answer.size&runTestMark != 0 {
		p.heardRun(to, answer.size&^runTestMark, sent, now)
	} else {
		to.search.Answered(now, answer.size, sent)
		p.publish(to, "")
	}
	p.schedule(to, to.nextStep())
}

func owns(peer *peertable.Entry, inner netip.Addr) bool {
	for _, prefix := range peer.Prefixes {
		if prefix.Contains(inner) {
			return true
		}
	}
	return false
}

// step sends what is due on a path, or leaves it alone if nobody uses it, and
// returns the number of probes.
func (p *prober) step(to *path, now time.Time) int {
	if !to.search.Busy() && p.idle(to) {
		return 0
	}
	p.setCeiling(to, now)
	to.refused.Store(0)
	p.sizes = to.search.Probes(now, p.sizes)
	for _, size := range p.sizes {
		p.probe(to, size, now)
	}
	if len(p.sizes) > 0 {
		to.begun = now
		p.counters.publish()
	}
	p.publish(to, "larger probes are lost while smaller ones are answered")
	due := to.search.Due()
	if crowded := to.begun.Add(time.Duration(p.queue.Len()) * probeEvery); !to.search.Busy() && due.Before(crowded) {
		due = crowded
	}
	tested := p.testRuns(to, now)
	p.schedule(to, earlier(due, to.test.due))
	return len(p.sizes) + tested
}

// idle takes a path out of the queue if no large packet was sent since the last
// look. The order keeps a worker's word from being lost in between.
func (p *prober) idle(to *path) bool {
	if to.used.Swap(false) {
		return false
	}
	to.watched.Store(false)
	if to.used.Swap(false) {
		to.watched.Store(true)
		return false
	}
	p.unwatch(to)
	return true
}

func (p *prober) unwatch(to *path) {
	to.watched.Store(false)
	p.queue.Remove(to)
}

// schedule moves a path that is in the queue.
func (p *prober) schedule(to *path, due time.Time) {
	if to.Scheduled() {
		p.queue.Put(to, due)
	}
}

// setCeiling bounds the search by the peer's MTU and by what the system
// believes of the path: it would not send larger packets in one piece.
func (p *prober) setCeiling(to *path, now time.Time) {
	ceiling := to.peer.MTU
	if socket := p.socket(to); socket != nil {
		if outer, err := socket.PathMTU(to.peer.Endpoint.Addr()); err == nil {
			ceiling = min(ceiling, max(outer-to.outerHeaders(), p.configs.of(to).Floor))
		}
	}
	to.search.SetCeiling(now, ceiling)
	p.publish(to, "bounded by the peer or by what the system knows")
}

func (p *prober) socket(to *path) ProbeSocket {
	sockets := p.sockets
	if to.peer.Encap == tunnel.EncapWireGuard {
		sockets = p.sealed
	}
	for _, socket := range sockets {
		if socket.Local().Is4() == to.peer.Endpoint.Addr().Is4() {
			return socket
		}
	}
	return nil
}

// publish shows the workers what the search has found. The log hears of every
// step down, and of where a way up has led.
func (p *prober) publish(to *path, why string) {
	before, after := to.MTU(), to.search.MTU()
	switch {
	case after < before:
		p.counters.add(MTULowered, 1)
	case after > before:
		p.counters.add(MTURaised, 1)
	}
	if before != after {
		to.mtu.Store(int32(after))
		p.counters.publish()
	}
	if after > to.logged {
		why = "larger probes are answered"
	}
	if after < to.logged || after > to.logged && !to.search.Busy() {
		p.logger.Info("path MTU changed", "peer", to.peer.Name, "endpoint", to.peer.Endpoint,
			"inner_from", to.logged, "inner_to", after, "reason", why)
		to.logged = after
	}
}
