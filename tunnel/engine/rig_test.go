package engine

import (
	"bytes"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// The hosts of most tests: here is the one under test, far is its peer, and
// third another peer. Each has a subnet of either inner family.
var (
	hereMAC  = tunnel.MAC{2, 0, 0, 0, 0, 1}
	farMAC   = tunnel.MAC{2, 0, 0, 0, 0, 2}
	thirdMAC = tunnel.MAC{2, 0, 0, 0, 0, 3}

	hereOuter  = netip.MustParseAddrPort("192.0.2.1:8472")
	farOuter   = netip.MustParseAddrPort("192.0.2.2:8472")
	thirdOuter = netip.MustParseAddrPort("192.0.2.3:8472")

	here4  = netip.MustParseAddrPort("10.244.1.7:40000")
	far4   = netip.MustParseAddrPort("10.244.2.9:80")
	third4 = netip.MustParseAddrPort("10.244.3.5:81")
	here6  = netip.MustParseAddrPort("[fd00:10:244:1::7]:40000")
	far6   = netip.MustParseAddrPort("[fd00:10:244:2::9]:80")
	third6 = netip.MustParseAddrPort("[fd00:10:244:3::5]:81")

	here = host{mac: hereMAC, outer: hereOuter, pod4: here4, pod6: here6}
	far  = host{mac: farMAC, outer: farOuter, pod4: far4, pod6: far6}
	thrd = host{mac: thirdMAC, outer: thirdOuter, pod4: third4, pod6: third6}
)

const (
	testVNI = 7
	testMTU = 1450
)

// host is all the engines need to know of a host.
type host struct {
	mac        tunnel.MAC
	outer      netip.AddrPort
	pod4, pod6 netip.AddrPort
}

func (h host) pod(is4 bool) netip.AddrPort {
	if is4 {
		return h.pod4
	}
	return h.pod6
}

func (h host) subnet(is4 bool) netip.Prefix {
	bits := 64
	if is4 {
		bits = 24
	}
	return netip.PrefixFrom(h.pod(is4).Addr(), bits).Masked()
}

func (h host) peers() []tunnel.Peer {
	var peers []tunnel.Peer
	for _, is4 := range []bool{true, false} {
		peers = append(peers, tunnel.Peer{
			Name: h.outer.String(), Prefixes: []netip.Prefix{h.subnet(is4)},
			Endpoint: h.outer, MAC: h.mac, VNI: testVNI, MTU: testMTU,
		})
	}
	return peers
}

func (h host) locals() []tunnel.Local {
	var locals []tunnel.Local
	for _, is4 := range []bool{true, false} {
		locals = append(locals, tunnel.Local{Subnet: h.subnet(is4), MAC: h.mac, VNI: testVNI})
	}
	return locals
}

// rig is an engine whose workers the test drives, batch by batch.
type rig struct {
	t      testing.TB
	engine *Engine
	device *tunneltest.Device // the engine's end
	host   *tunneltest.Device
	wire   *tunneltest.Wire
	socket *tunneltest.Socket
	sent   []tunnel.Datagrams // runs that went out, with their bytes in Data
	log    *bytes.Buffer
}

type rigConfig struct {
	device tunnel.Offloads
	socket tunnel.Offloads
	outer  netip.AddrPort // where the socket is bound; zero: hereOuter
}

func everything() rigConfig {
	return rigConfig{device: tunneltest.AllOffloads(), socket: tunneltest.AllOffloads()}
}

func newRig(t testing.TB, config rigConfig) *rig {
	t.Helper()
	if !config.outer.IsValid() {
		config.outer = hereOuter
	}
	r := &rig{t: t, wire: tunneltest.NewWire(tunneltest.WireConfig{}), log: &bytes.Buffer{}}
	r.device, r.host = tunneltest.NewDevices(testMTU, config.device)
	r.socket = r.wire.Socket(config.outer, config.socket)
	r.socket.Refuse(r.record)
	var err error
	r.engine, err = New(Config{
		Workers: []Worker{{Device: r.device, Sockets: []tunnel.Socket{r.socket}}},
		Logger:  slog.New(slog.NewTextHandler(r.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.engine.SetLocals(here.locals()); err != nil {
		t.Fatal(err)
	}
	r.setPeers(append(far.peers(), thrd.peers()...))
	return r
}

func (r *rig) setPeers(peers []tunnel.Peer) {
	r.t.Helper()
	if err := r.engine.SetPeers(peers); err != nil {
		r.t.Fatal(err)
	}
}

// record keeps what the engine sends, in memory of its own.
func (r *rig) record(run tunnel.Datagrams) error {
	for _, part := range run.Parts {
		run.Data = append(run.Data, part...)
	}
	run.Parts = nil
	r.sent = append(r.sent, run)
	return nil
}

// send has the host put packets on the Device, and the tx worker process them in one batch.
func (r *rig) send(packets ...tunnel.Outgoing) {
	r.t.Helper()
	if len(packets) == 0 {
		r.t.Fatal("no packets")
	}
	if _, err := r.host.Write(packets); err != nil {
		r.t.Fatal(err)
	}
	tx := r.engine.workers[0].tx
	for sent := 0; sent < len(packets); {
		n, err := r.device.Read(tx.packets, tx.arena)
		if err != nil {
			r.t.Fatal(err)
		}
		tx.process(tx.packets[:n])
		sent += n
	}
}

// receive has the rx worker process what is there in one batch.
func (r *rig) receive() {
	r.t.Helper()
	rx := r.engine.workers[0].rx[0]
	n, err := r.socket.Receive(rx.batch, rx.arena)
	if err != nil {
		r.t.Fatal(err)
	}
	rx.process(rx.batch[:n], false)
}

// process has the rx worker process runs made by hand.
func (r *rig) process(runs ...tunnel.Datagrams) { r.engine.workers[0].rx[0].process(runs, false) }

// inject puts inner packets on the wire as a host sends them, and receives them.
func (r *rig) inject(from host, packets ...[]byte) {
	r.t.Helper()
	for _, p := range packets {
		r.wire.Inject(from.outer, hereOuter, 0, from.frame(p))
	}
	r.receive()
}

// frame is a datagram from h to here.
func (h host) frame(packet []byte) []byte {
	etherType := uint16(0x86dd)
	if len(packet) > 0 && packet[0]>>4 == 4 {
		etherType = 0x0800
	}
	return tunneltest.Frame(testVNI, hereMAC, h.mac, etherType, packet)
}

// delivered is what the host gets from the Device, with what was put off done.
func (r *rig) delivered() (finished [][]byte, offloads []tunnel.Offload) {
	r.t.Helper()
	for {
		data, offload, ok := r.host.TryRead()
		if !ok {
			return finished, offloads
		}
		offloads = append(offloads, offload)
		packets, err := tunneltest.Finish(data, offload)
		if err != nil {
			r.t.Fatal(err)
		}
		finished = append(finished, packets...)
	}
}

// datagrams is the sent runs cut into single datagrams.
func (r *rig) datagrams() (all [][]byte) {
	for _, run := range r.sent {
		size := run.SegmentSize
		if size == 0 {
			size = len(run.Data)
		}
		for rest := run.Data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			all = append(all, rest[:min(size, len(rest))])
		}
	}
	return all
}

// inners is the inner packets of the sent datagrams.
func (r *rig) inners() (all [][]byte) {
	for _, d := range r.datagrams() {
		all = append(all, d[22:])
	}
	return all
}

// want checks counters: those named have a value, and no other drop counter is set.
func (r *rig) want(values map[Counter]uint64) {
	r.t.Helper()
	stats := r.engine.Stats()
	for c, value := range values {
		if got := stats.Value(c); got != value {
			r.t.Errorf("%v is %d, want %d", c, got, value)
		}
	}
	for c := range Counter(counterCount) {
		if _, named := values[c]; !named && bytes.Contains([]byte(c.String()), []byte("_drop_")) && stats.Value(c) != 0 {
			r.t.Errorf("%v is %d, want 0", c, stats.Value(c))
		}
	}
}

func (r *rig) equal(got, want [][]byte) {
	r.t.Helper()
	if len(got) != len(want) {
		r.t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			r.t.Fatalf("packet %d is\n%x, want\n%x", i, got[i], want[i])
		}
	}
}

// out makes an Outgoing of one part.
func out(data []byte, offload tunnel.Offload) tunnel.Outgoing {
	return tunnel.Outgoing{Offload: offload, Parts: [][]byte{data}}
}

// finished makes Outgoings of packets that need nothing.
func finished(packets ...[]byte) (all []tunnel.Outgoing) {
	for _, p := range packets {
		all = append(all, out(p, tunnel.Offload{}))
	}
	return all
}

// toFar is a TCP packet from here to the far host, and toHere the reverse.
func toFar(is4 bool, payload []byte) tunneltest.Packet { return between(here, far, is4, payload) }

func toHere(is4 bool, payload []byte) tunneltest.Packet { return between(far, here, is4, payload) }

func between(from, to host, is4 bool, payload []byte) tunneltest.Packet {
	return tunneltest.Packet{
		Source: from.pod(is4), Destination: to.pod(is4), Protocol: tunneltest.TCP, Payload: payload,
		DontFragment: true, Flags: tunneltest.ACK, Sequence: 1000, Acknowledgment: 5, ID: 9,
		TCPOptions: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2},
	}
}

func asUDP(p tunneltest.Packet) tunneltest.Packet {
	p.Protocol = tunneltest.UDP
	return p
}

func asPing(p tunneltest.Packet, size int) tunneltest.Packet {
	is4 := p.Source.Addr().Is4()
	p.Protocol, p.Payload = tunneltest.ICMPv6, tunneltest.Echo(is4, size)
	if is4 {
		p.Protocol = tunneltest.ICMPv4
	}
	return p
}

func bothFamilies(t *testing.T, f func(t *testing.T, is4 bool)) {
	t.Helper()
	t.Run("4", func(t *testing.T) { f(t, true) })
	t.Run("6", func(t *testing.T) { f(t, false) })
}
