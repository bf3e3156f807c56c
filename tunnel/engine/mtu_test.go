package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/pathmtu"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// asSYN announces an MSS in front of the options of every other packet.
func asSYN(p tunneltest.Packet, flags uint8, mss uint16) tunneltest.Packet {
	p.Flags, p.Payload = flags, nil
	p.TCPOptions = append([]byte{2, 4, byte(mss >> 8), byte(mss)}, p.TCPOptions...)
	return p
}

// mssOf is the MSS that asSYN's packet announces.
func mssOf(b []byte) int {
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[42:]))
	}
	return int(binary.BigEndian.Uint16(b[62:]))
}

// What two hosts tell each other when they connect is what the path carries,
// either way, whoever finishes the checksum.
func TestMSS(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		want := 1300 - 60
		if is4 {
			want = 1300 - 40
		}
		for _, flags := range []uint8{tunneltest.SYN, tunneltest.SYN | tunneltest.ACK} {
			r := newRig(t, everything())
			lowMTU(r)
			from := asSYN(toFar(is4, nil), flags, 1460)
			r.send(append(finished(from.Bytes()), out(from.Partial()))...)
			to := asSYN(toHere(is4, nil), flags, 1460)
			partial, _ := to.Partial()
			r.inject(far, to.Bytes(), partial)
			received, _ := r.delivered()
			all := append(r.inners(), received...)
			if len(all) != 4 {
				t.Fatalf("%d packets, want 4", len(all))
			}
			for i, b := range all {
				if err := tunneltest.Check(b); err != nil || mssOf(b) != want {
					t.Errorf("packet %d: MSS %d, want %d: %v", i, mssOf(b), want, err)
				}
			}
		}
	})
}

// A path MTU holds for what is sent and for what is announced.
func TestPathMTUHolds(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		r.setPathMTU(1310)
		if all := r.engine.PathMTUs(); len(all) != 4 || all[far.subnet(is4)] != 1310 {
			t.Errorf("path MTUs %v", all)
		}
		p := asPing(toFar(is4, nil), 1400).Bytes()
		r.send(finished(p)...)
		if mtu := r.gotTooBig(p); mtu != 1310 {
			t.Errorf("MTU %d", mtu)
		}
		r.inject(far, asSYN(toHere(is4, nil), tunneltest.SYN, 1460).Bytes())
		got, _ := r.delivered()
		if mss := mssOf(got[0]); mss != 1310-40 && mss != 1310-60 {
			t.Errorf("MSS %d", mss)
		}
	})
}

// setPathMTU is as if the prober had found it.
func (r *rig) setPathMTU(mtu int) {
	for _, to := range r.engine.peers.Load().paths {
		to.mtu.Store(int32(mtu))
	}
}

// A TCP packet that does not fit is cut as a super-packet would be, and its
// sender told, unless its checksum is wrong or it may not be cut.
func TestSendCutsTCP(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		headers := 72
		if is4 {
			headers = 52
		}
		p := toFar(is4, tunneltest.Random(rand.New(rand.NewPCG(5, 6)), 1350))
		p.Flags = tunneltest.ACK | tunneltest.PSH | tunneltest.CWR
		data, offload := p.Super(1300 - headers)
		want, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		wrong, syn := p.Bytes(), p
		wrong[len(wrong)-1] ^= 1
		syn.Flags = tunneltest.SYN
		for name, tt := range map[string]struct {
			out  tunnel.Outgoing
			want [][]byte
		}{
			"finished": {out(p.Bytes(), tunnel.Offload{}), want},
			"partial":  {out(p.Partial()), want},
			"wrong":    {out(wrong, tunnel.Offload{}), nil},
			"SYN":      {out(syn.Bytes(), tunnel.Offload{}), nil},
		} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, everything())
				r.setPathMTU(1300)
				r.send(tt.out)
				r.equal(r.inners(), tt.want)
				if mtu := r.gotTooBig(tt.out.Parts[0]); mtu != 1300 {
					t.Errorf("MTU %d", mtu)
				}
				r.want(map[Counter]uint64{TxICMP: 1, TxSuperPackets: 0, TxDropTooBig: 1 - min(uint64(len(tt.want)), 1)})
			})
		}
	})
}

// Where the path carries less of IPv6 than every link has to, TCP is cut to fit,
// and other packets of up to the minimum are left to be fragmented outside.
func TestSendBelowTheMinimum(t *testing.T) {
	super, smaller := toFar(false, make([]byte, 5000)).Super(1378)
	for name, tt := range map[string]struct {
		out  tunnel.Outgoing
		told int // 0: nothing
		sent []int
	}{
		"super":           {out(super, smaller), 1280, []int{1200, 1200, 1200, 1200, 5000 - 4*1128 + 72}},
		"TCP":             {out(toFar(false, make([]byte, 1208)).Bytes(), tunnel.Offload{}), 0, []int{1200, 80 + 72}},
		"small":           {out(toFar(false, make([]byte, 1128)).Bytes(), tunnel.Offload{}), 0, []int{1200}},
		"UDP":             {out(asUDP(toFar(false, make([]byte, 1232))).Bytes(), tunnel.Offload{}), 0, []int{1280}},
		"large UDP":       {out(asUDP(toFar(false, make([]byte, 1233))).Bytes(), tunnel.Offload{}), 1280, nil},
		"UDP super":       {out(asUDP(toFar(false, make([]byte, 3000))).Super(1232)), 0, []int{1280, 1280, 3000 - 2*1232 + 48}},
		"large UDP super": {out(asUDP(toFar(false, make([]byte, 3000))).Super(1233)), 1280, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, everything())
			r.setPathMTU(1200)
			r.send(tt.out)
			var sent []int
			for _, b := range r.inners() {
				if err := tunneltest.Check(b); err != nil {
					t.Error(err)
				}
				sent = append(sent, len(b))
			}
			if !slices.Equal(sent, tt.sent) {
				t.Errorf("sent %v, want %v", sent, tt.sent)
			}
			if tt.told == 0 {
				r.want(map[Counter]uint64{TxICMP: 0})
			} else if mtu := r.gotTooBig(tt.out.Parts[0]); mtu != tt.told {
				t.Errorf("told %d, want %d", mtu, tt.told)
			}
		})
	}
}

// Answers to probes end here, and answers to a person's ping do not.
func TestProbeAnswers(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		r := newRig(t, everything())
		own := r.engine.prober
		var data [probeData]byte
		binary.BigEndian.PutUint64(data[:], own.token)
		reply := func(identifier uint16, to netip.Addr) []byte {
			request := make([]byte, 1000)
			if err := packet.PutEchoRequest(request, packet.Echo{
				Source: to, Destination: far.subnet(is4).Addr(), Identifier: identifier, Data: data[:],
			}); err != nil {
				t.Fatal(err)
			}
			return replyTo(request)
		}
		network := here.subnet(is4).Addr()
		persons := [][]byte{reply(own.identifier+1, network), reply(own.identifier, here.pod(is4).Addr())}
		r.inject(far, append([][]byte{reply(own.identifier, network)}, persons...)...)
		got, _ := r.delivered()
		if len(got) != 2 || !bytes.Equal(got[0], persons[0]) || !bytes.Equal(got[1], persons[1]) {
			t.Errorf("%d packets delivered, want the 2 that are not for the prober", len(got))
		}
		r.want(map[Counter]uint64{ProbeAnswers: 1, RxPackets: 2})
		// Nobody else may answer for a peer.
		r.inject(thrd, reply(own.identifier, network))
		r.want(map[Counter]uint64{ProbeAnswers: 1, RxDropSource: 1})
	})
}

// countingProbe is a ProbeSocket on which nothing comes back.
type countingProbe struct {
	sent   atomic.Int32
	closed atomic.Bool
}

func (c *countingProbe) Local() netip.Addr                 { return hereOuter.Addr() }
func (c *countingProbe) PathMTU(netip.Addr) (int, error)   { return 1500, nil }
func (c *countingProbe) Close() error                      { c.closed.Store(true); return nil }
func (c *countingProbe) Send(netip.AddrPort, []byte) error { c.sent.Add(1); return nil }

func (c *countingProbe) SendRun(netip.AddrPort, []byte, int) error {
	c.sent.Add(runTestMembers)
	return nil
}

// A running engine probes the path of the first large packet, and not before.
func TestRunProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, everything())
		probe := &countingProbe{}
		r.engine.workers[0].given.Probes = []ProbeSocket{probe}
		r.engine.prober.sockets = r.engine.workers[0].given.Probes
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.engine.Run(ctx) }()
		for _, size := range []int{100, 1000} {
			if _, err := r.host.Write(finished(asUDP(toFar(true, make([]byte, size))).Bytes())); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			n := probe.sent.Load()
			if n > 0 != (size >= largePacket) || uint64(n) != r.engine.Stats().Value(Probes) {
				t.Errorf("%d probes after %d bytes, counted as %d", n, size, r.engine.Stats().Value(Probes))
			}
		}
		cancel()
		if err := <-done; err != nil || !probe.closed.Load() {
			t.Errorf("closed %v: %v", probe.closed.Load(), err)
		}
	})
}

func TestPathMTUConfig(t *testing.T) {
	search := pathmtu.Defaults()
	search.Tries = 0
	_, err := New(Config{
		Workers: []Worker{{Device: &tunneltest.Device{}, Sockets: []tunnel.Socket{&tunneltest.Socket{}}}},
		PathMTU: &search, Logger: slog.New(slog.DiscardHandler),
	})
	if err == nil || !strings.Contains(err.Error(), "PathMTU") || !strings.Contains(err.Error(), "Tries") {
		t.Errorf("%v", err)
	}
}
