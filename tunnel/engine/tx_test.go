package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

func TestSendSingle(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		p := toFar(is4, []byte("data"))
		p.TOS = 2 // ECT(0)
		r.send(finished(p.Bytes())...)
		etherType := uint16(0x86dd)
		if is4 {
			etherType = 0x0800
		}
		want := tunneltest.Frame(testVNI, farMAC, hereMAC, etherType, p.Bytes())
		if len(r.sent) != 1 || !bytes.Equal(r.sent[0].Data, want) {
			t.Fatalf("sent %v, want %x", r.sent, want)
		}
		if run := r.sent[0]; run.Addr != farOuter || run.ECN != 2 || run.SegmentSize != 0 {
			t.Errorf("run %+v", run)
		}
		r.want(map[Counter]uint64{TxBatches: 1, TxPackets: 1, TxBytes: uint64(len(p.Bytes())), TxRuns: 1, TxDatagrams: 1})
	})
}

// The outer family is the peer's business alone.
func TestSendOverIPv6(t *testing.T) {
	config := everything()
	config.outer = netip.MustParseAddrPort("[2001:db8::1]:8472")
	r := newRig(t, config)
	peers := far.peers()
	for i := range peers {
		peers[i].Endpoint = netip.MustParseAddrPort("[2001:db8::2]:8472")
	}
	r.setPeers(peers)
	p4, p6 := toFar(true, nil).Bytes(), toFar(false, nil).Bytes()
	r.send(finished(p4, p6)...)
	r.equal(r.inners(), [][]byte{p4, p6})
}

// Consecutive packets of one flow and size leave as one run; a shorter one ends it.
func TestSendRuns(t *testing.T) {
	sizes := func(r *rig) string {
		var s []string
		for _, run := range r.sent {
			s = append(s, fmt.Sprintf("%d/%d", len(run.Data), run.SegmentSize))
		}
		return strings.Join(s, " ")
	}
	data := func(n int) []byte { return toFar(true, make([]byte, n)).Bytes() }
	headers := 22 + 52
	other := toFar(true, make([]byte, 100))
	other.Source = netip.AddrPortFrom(other.Source.Addr(), 41000)
	marked := toFar(true, make([]byte, 100))
	marked.TOS = 3
	third := between(here, thrd, true, make([]byte, 100)).Bytes()
	limited := everything()
	limited.socket.MaxSegments = 2
	without := everything()
	without.socket.UDP = false
	tests := []struct {
		name    string
		config  rigConfig
		packets [][]byte
		want    string
	}{
		{"equal", everything(), [][]byte{data(100), data(100), data(100)}, "522/174"},
		{"shorter ends", everything(), [][]byte{data(100), data(50), data(50)}, "298/174 124/0"},
		{"longer begins", everything(), [][]byte{data(100), data(101)}, "174/0 175/0"},
		{"other flow", everything(), [][]byte{data(100), other.Bytes(), data(100)}, "174/0 174/0 174/0"},
		{"other ECN", everything(), [][]byte{data(100), marked.Bytes()}, "174/0 174/0"},
		{"other peer", everything(), [][]byte{data(100), third}, "174/0 174/0"},
		{"bound of the socket", limited, [][]byte{data(100), data(100), data(100)}, "348/174 174/0"},
		{"no runs", without, [][]byte{data(100), data(100)}, "174/0 174/0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, test.config)
			r.send(finished(test.packets...)...)
			if got := sizes(r); got != test.want {
				t.Errorf("runs %s, want %s (headers %d)", got, test.want, headers)
			}
			r.equal(r.inners(), test.packets)
			r.want(map[Counter]uint64{TxDatagrams: uint64(len(test.packets)), TxRuns: uint64(len(r.sent))})
		})
	}
}

// More than fits into the worker's memory is sent in several flushes.
func TestSendMany(t *testing.T) {
	r := newRig(t, everything())
	var packets [][]byte
	for i := range 3 * txRuns {
		p := toFar(true, make([]byte, i%7*10))
		p.Source = netip.AddrPortFrom(p.Source.Addr(), uint16(1000+i))
		packets = append(packets, p.Bytes())
	}
	r.send(finished(packets...)...)
	r.equal(r.inners(), packets)
}

func TestSendUnfinished(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		for _, p := range []tunneltest.Packet{toFar(is4, []byte("data")), asUDP(toFar(is4, []byte("dat")))} {
			r.send(out(p.Partial()))
			r.equal(r.inners(), [][]byte{p.Bytes()})
			r.sent = nil
		}
		r.want(nil)
	})
}

func TestSendSuper(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		limited := everything()
		limited.socket.MaxSegments = 10
		without := everything()
		without.socket.UDP = false
		for name, config := range map[string]rigConfig{"runs": everything(), "bounded": limited, "singles": without} {
			for _, size := range []int{7, 100, 1378} {
				for _, length := range []int{1, 3000, 60000} {
					random := rand.New(rand.NewPCG(1, uint64(length)))
					for _, p := range []tunneltest.Packet{
						toFar(is4, tunneltest.Random(random, length)),
						asUDP(toFar(is4, tunneltest.Random(random, length))),
					} {
						r := newRig(t, config)
						p.Flags = tunneltest.ACK | tunneltest.PSH | tunneltest.FIN | tunneltest.CWR
						data, offload := p.Super(size)
						want, err := tunneltest.Finish(data, offload)
						if err != nil {
							t.Fatal(err)
						}
						r.send(out(data, offload))
						r.equal(r.inners(), want)
						r.want(map[Counter]uint64{TxSuperPackets: 1, TxDatagrams: uint64(len(want)), TxRuns: uint64(len(r.sent))})
						// It is one allocation for the worker's life.
						if tx := r.engine.workers[0].tx; cap(tx.parts) != txParts || cap(tx.boxes4[0].runs) != txRuns {
							t.Errorf("memory grew: %d parts, %d runs", cap(tx.parts), cap(tx.boxes4[0].runs))
						}
						for _, run := range r.sent {
							if len(run.Data) > maxRun || name == "bounded" && run.SegmentSize > 0 && len(run.Data) > 10*run.SegmentSize {
								t.Errorf("%s: run of %d bytes by %d", name, len(run.Data), run.SegmentSize)
							}
						}
					}
				}
			}
		}
	})
}

// Headers as long as they get do not exhaust the memory for them.
func TestSendLongHeaders(t *testing.T) {
	r := newRig(t, everything())
	peers := far.peers()
	peers[1].MTU = 16000
	r.setPeers(peers)
	p := toFar(false, make([]byte, 20000))
	p.FirstExtension = 60
	p.Extensions = make([]byte, 7*2048)
	for i := range 7 {
		p.Extensions[i*2048], p.Extensions[i*2048+1] = 60, 255
	}
	p.Extensions[6*2048] = tunneltest.TCP
	data, offload := p.Super(1000)
	want, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	r.send(out(data, offload))
	r.equal(r.inners(), want)
}

// Where not even the headers fit, nothing can be cut to fit.
func TestSendHeadersTooBig(t *testing.T) {
	r := newRig(t, everything())
	peers := far.peers()[:1]
	peers[0].MTU = 68
	r.setPeers(peers)
	p := toFar(true, make([]byte, 1000))
	p.DontFragment = false
	p.TCPOptions = make([]byte, 28)
	r.send(out(p.Super(500)))
	r.want(map[Counter]uint64{TxDropTooBig: 1, TxDatagrams: 0})
}

// The super-packet that the datapath is built for leaves as one run.
func TestSendSuperAtOnce(t *testing.T) {
	r := newRig(t, everything())
	r.send(out(toFar(true, make([]byte, 44*1398)).Super(1398)))
	if len(r.sent) != 1 || r.sent[0].SegmentSize != 22+testMTU {
		t.Errorf("%d runs of segment size %d", len(r.sent), r.sent[0].SegmentSize)
	}
}

func TestSendDrops(t *testing.T) {
	good := toFar(true, []byte("data"))
	lost := good
	lost.Destination = netip.MustParseAddrPort("10.245.0.1:1")
	wrongGSO, gso := asUDP(good).Super(2)
	gso.GSO = tunnel.GSOTCP4
	tests := []struct {
		name   string
		setup  func(r *rig)
		packet tunnel.Outgoing
		reason Counter
	}{
		{"not IP", nil, out([]byte{0x50, 1, 2, 3}, tunnel.Offload{}), TxDropMalformed},
		{"cut off", nil, out(good.Bytes()[:30], tunnel.Offload{}), TxDropMalformed},
		{"no peer", nil, out(lost.Bytes(), tunnel.Offload{}), TxDropNoPeer},
		{"peer gone", func(r *rig) { r.setPeers(thrd.peers()) }, out(good.Bytes(), tunnel.Offload{}), TxDropNoPeer},
		{"multicast", nil, out(tunneltest.Packet{
			Source: here6, Destination: netip.MustParseAddrPort("[ff02::2]:0"), Protocol: tunneltest.ICMPv6, Payload: make([]byte, 8),
		}.Bytes(), tunnel.Offload{}), TxDropNoPeer},
		{"no local of the family", func(r *rig) { _ = r.engine.SetLocals(here.locals()[1:]) }, out(good.Bytes(), tunnel.Offload{}), TxDropNoLocal},
		{"no socket of the family", func(r *rig) {
			p := far.peers()[:1]
			p[0].Endpoint = netip.MustParseAddrPort("[2001:db8::2]:8472")
			r.setPeers(p)
		}, out(good.Bytes(), tunnel.Offload{}), TxDropNoSocket},
		{"another protocol than the super-packet's", nil, out(wrongGSO, gso), TxDropUnfinished},
		{"super-packet of pings", nil, out(asPing(good, 100).Bytes(), tunnel.Offload{
			GSO: tunnel.GSOTCP4, SegmentSize: 9, NeedsChecksum: true,
		}), TxDropUnfinished},
		{"socket failed", func(r *rig) {
			r.socket.Refuse(func(tunnel.Datagrams) error { return errors.New("no route to host") })
		}, out(good.Bytes(), tunnel.Offload{}), TxDropSend},
		{"socket full", func(r *rig) {
			r.socket.Refuse(func(tunnel.Datagrams) error { return fmt.Errorf("send: %w", tunnel.ErrFull) })
		}, out(good.Bytes(), tunnel.Offload{}), TxDropFull},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, everything())
			if test.setup != nil {
				test.setup(r)
			}
			r.send(test.packet)
			if len(r.sent) != 0 {
				t.Errorf("sent %v", r.sent)
			}
			r.want(map[Counter]uint64{test.reason: 1, TxPackets: 1, TxDatagrams: 0})
		})
	}
}

// A checksum that lies outside its packet is no reason to panic.
func TestSendChecksumOutside(t *testing.T) {
	r := newRig(t, everything())
	tx := r.engine.workers[0].tx
	data := toFar(true, []byte("data")).Bytes()
	copy(tx.arena[tunnel.Headroom:], data)
	tx.process([]tunnel.Incoming{{
		Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 65535, ChecksumOffset: 65535},
		Data:    tx.arena[tunnel.Headroom : tunnel.Headroom+len(data)], Offset: tunnel.Headroom,
	}})
	r.want(map[Counter]uint64{TxDropUnfinished: 1})
}

// Failures of a socket are logged, but not with every packet.
func TestSendFailureLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		r.socket.Refuse(func(tunnel.Datagrams) error { return errors.New("no route to host") })
		for range 10 {
			r.send(finished(toFar(true, []byte("data")).Bytes())...)
		}
		if n := strings.Count(r.log.String(), "no route to host"); n != 1 {
			t.Errorf("%d log lines: %s", n, r.log)
		}
		time.Sleep(quietFor)
		r.send(finished(toFar(true, []byte("data")).Bytes())...)
		if n := strings.Count(r.log.String(), "no route to host"); n != 2 {
			t.Errorf("%d log lines after a while", n)
		}
	})
}

// A failing run does not hold up those behind it.
func TestSendGoesOn(t *testing.T) {
	r := newRig(t, everything())
	r.socket.Refuse(func(run tunnel.Datagrams) error {
		if run.Addr == thirdOuter {
			return tunnel.ErrFull
		}
		return r.record(run)
	})
	first, lost, last := toFar(true, []byte("1")).Bytes(), between(here, thrd, true, nil).Bytes(), toFar(true, []byte("22")).Bytes()
	r.send(finished(first, lost, last)...)
	r.equal(r.inners(), [][]byte{first, last})
	r.want(map[Counter]uint64{TxDropFull: 1, TxRuns: 2, TxDatagrams: 2})
}

func TestSendFallsBack(t *testing.T) {
	for _, size := range []int{7, 1398} {
		r := newRig(t, everything())
		r.socket.Refuse(func(run tunnel.Datagrams) error {
			if run.SegmentSize != 0 {
				return fmt.Errorf("send: %w", tunnel.ErrOffload)
			}
			return r.record(run)
		})
		data, offload := toFar(true, tunneltest.Random(rand.New(rand.NewPCG(1, 1)), 5000)).Super(size)
		want, _ := tunneltest.Finish(data, offload)
		r.send(out(data, offload))
		r.equal(r.inners(), want)
		r.want(map[Counter]uint64{TxDatagrams: uint64(len(want))})
		if r.engine.Stats().Value(TxFallbacks) == 0 {
			t.Error("no fallback is counted")
		}
	}
}

// A Socket that refuses even single datagrams is no endless loop.
func TestSendFallbackRefused(t *testing.T) {
	r := newRig(t, everything())
	r.socket.Refuse(func(tunnel.Datagrams) error { return tunnel.ErrOffload })
	r.send(out(toFar(true, make([]byte, 5000)).Super(1398)))
	r.want(map[Counter]uint64{TxFallbacks: 1, TxDropSend: 4})
}

// Flows spread over the sockets of a family, and each stays on one.
func TestSendSpreads(t *testing.T) {
	wire := tunneltest.NewWire(tunneltest.WireConfig{})
	device, host := tunneltest.NewDevices(testMTU, tunneltest.AllOffloads())
	seen := map[netip.AddrPort]map[uint32]bool{}
	parts := Worker{Device: device}
	for _, local := range []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "[2001:db8::1]:1"} {
		socket := wire.Socket(netip.MustParseAddrPort(local), tunneltest.AllOffloads())
		seen[socket.Local()] = map[uint32]bool{}
		socket.Refuse(func(run tunnel.Datagrams) error {
			seen[socket.Local()][run.Flow] = true
			return nil
		})
		parts.Sockets = append(parts.Sockets, socket)
	}
	e, err := New(Config{Workers: []Worker{parts}, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.SetPeers(far.peers()), e.SetLocals(here.locals())); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, engine: e, device: device, host: host}
	for port := range uint16(300) {
		p := toFar(true, nil)
		p.Source = netip.AddrPortFrom(p.Source.Addr(), port%100)
		r.send(finished(p.Bytes())...)
	}
	total := 0
	for local, flows := range seen {
		if local.Addr().Is4() == (len(flows) < 20) {
			t.Errorf("%v has %d flows", local, len(flows))
		}
		total += len(flows)
	}
	if total != 100 {
		t.Errorf("100 flows became %d", total)
	}
}
