package engine

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel/tunneltest"
	"github.com/weft-net/weft/tunnel/vxlan"
)

// SendRun cuts a run as hardware would, or as u.cut says.
func (u *underlay) SendRun(to netip.AddrPort, run []byte, segment int) error {
	u.set(func() { u.runs++ })
	for place := 0; len(run) > 0; place++ {
		n := min(segment, len(run))
		if datagram := bytes.Clone(run[:n]); u.cut == nil || u.cut(place, datagram) {
			u.deliver(datagram)
		}
		run = run[n:]
	}
	return nil
}

// deliver has the peer answer a member of a run, if its checksums are right.
func (u *underlay) deliver(datagram []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if frame, err := vxlan.Parse(datagram); err == nil && tunneltest.Check(frame.Packet) == nil {
		u.answer(frame.Packet)
	}
}

// Runs to a peer are tested when the first large packet is sent to it, and then
// rarely.
func TestRunTestPasses(t *testing.T) {
	for _, outer := range []netip.AddrPort{hereOuter, netip.MustParseAddrPort("[2001:db8::1]:8472")} {
		probing(t, outer, func(t *testing.T, p *prober, u *underlay) {
			peers := far.peers()
			for i := range peers {
				if outer.Addr().Is6() {
					peers[i].Endpoint = netip.MustParseAddrPort("[2001:db8::2]:8472")
				}
			}
			paths := p.setPeers(entries(peers...), nil)
			use(p, time.Second, paths...)
			if u.runs != len(paths) {
				t.Errorf("%d runs to %d peers", u.runs, len(paths))
			}
			use(p, 21*time.Minute, paths...)
			if want := 3 * len(paths); u.runs != want {
				t.Errorf("%d runs after 21 minutes, want %d", u.runs, want)
			}
			for _, to := range paths {
				if to.runs.lowered() || to.test.lost > 0 {
					t.Errorf("not passed: %+v", &to.test)
				}
			}
		})
	}
}

// Whatever way of cutting a run wrongly shows: the peer gets single datagrams,
// the log says so once, and runs come back when they arrive again.
func TestRunTestFails(t *testing.T) {
	var first []byte
	for name, cut := range map[string]func(place int, datagram []byte) bool{
		"nothing arrives": func(int, []byte) bool { return false },
		"only the first":  func(place int, _ []byte) bool { return place == 0 },
		"not the last":    func(place int, _ []byte) bool { return place < runTestMembers-1 },
		"wrong checksums": func(place int, b []byte) bool { b[len(b)-1] ^= byte(place); return true },
		"the first, repeated": func(place int, b []byte) bool {
			if place == 0 {
				first = bytes.Clone(b)
			}
			return copy(b, first) == len(first)
		},
	} {
		t.Run(name, func(t *testing.T) {
			probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
				to := p.setPeers(entries(far.peers()...), nil)[0]
				u.cut = cut
				use(p, (runTestTries+1)*runTestWait, to)
				if to.runs.limit() != 1 || p.counters.own[RunTestsFailed] != 1 {
					t.Fatalf("runs of %d, %d failures", to.runs.limit(), p.counters.own[RunTestsFailed])
				}
				notes := p.ladder.list()
				if len(notes) != 1 || !strings.Contains(notes[0], "one by one") || !strings.Contains(notes[0], "never arrived") {
					t.Errorf("notes %q", notes)
				}
				wantMTU(t, to, to.peer.MTU, "of single datagrams")
				// A run that was under way proves nothing.
				p.ladder.passed(way{path: to, peer: to.peer}, 40)
				use(p, 4*ladderRetry, to)
				if to.runs.limit() != 1 || p.counters.own[RunTestsFailed] < 2 {
					t.Errorf("runs of %d after %d failures", to.runs.limit(), p.counters.own[RunTestsFailed])
				}
				u.set(func() { u.cut = nil })
				use(p, 10*ladderRetry, to)
				if to.runs.limit() != noLimit || len(p.ladder.list()) != 0 {
					t.Errorf("runs of %d where they arrive again, notes %q", to.runs.limit(), p.ladder.list())
				}
			})
		})
	}
}

// Loss that hits one datagram like another is no reason to give up runs, nor is
// a peer that answers nothing.
func TestRunTestUnderLoss(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		paths := p.setPeers(entries(append(far.peers(), thrd.peers()...)...), nil)
		u.cut = func(int, []byte) bool { return random.IntN(5) > 0 }
		for range 20 {
			use(p, 10*time.Minute, paths...)
		}
		u.set(func() { u.silent = true })
		use(p, time.Hour, paths...)
		for _, to := range paths {
			if to.runs.lowered() {
				t.Errorf("runs of %d", to.runs.limit())
			}
		}
	})
}

// What comes back must be what was sent, whatever its checksum says.
func TestRunTestPattern(t *testing.T) {
	probing(t, hereOuter, func(t *testing.T, p *prober, u *underlay) {
		to := p.setPeers(entries(far.peers()...), nil)[0]
		u.forge = func(reply []byte) {
			if data := reply[28:]; binary.BigEndian.Uint32(data[16:]) == runTestMark|2 {
				data[200]++
				fixIPv4(reply)
			}
		}
		use(p, (runTestTries+1)*runTestWait, to)
		if to.runs.limit() != 1 {
			t.Errorf("runs of %d", to.runs.limit())
		}
	})
	seen := map[string]bool{}
	for place := range runTestMembers {
		if pattern := string(runTestPattern(place, runTestLast)); !seen[pattern] {
			seen[pattern] = true
			continue
		}
		t.Errorf("place %d has the pattern of another", place)
	}
}
