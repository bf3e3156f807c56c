package datapath_test

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/datapath"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// TestCallBudget: bulk TCP crosses the engines in super-packets, at each of the
// four points where there is a system call, and with io_uring several of them, and of
// these points, share one. With one call per segment there would be more than a
// thousand for 1000 of them.
func TestCallBudget(t *testing.T) {
	for name, test := range map[string]struct {
		ring tunnel.Switch
		most uint64 // calls of an end for 1000 segments
	}{"io_uring": {tunnel.On, 60}, "epoll": {tunnel.Off, 100}} {
		t.Run(name, func(t *testing.T) { callBudget(t, test.ring, test.most) })
	}
}

func callBudget(t *testing.T, ring tunnel.Switch, most uint64) {
	sites := makeSites(t, sitesConfig{outerFamily: 4, link: lab.OffloadFull, remote: true, offloads: datapath.Offloads{Ring: ring}}, false, false)
	for _, is4 := range []bool{true, false} {
		var before [2]engine.Stats
		for i, s := range sites {
			before[i] = s.engine.Stats()
		}
		stream(t, sites[0].ends(is4)["host"], sites[1].ends(is4)["host"], 256<<20)
		for i, s := range sites {
			after := s.engine.Stats()
			delta := func(counters ...engine.Counter) (n uint64) {
				for _, c := range counters {
					n += after.Value(c) - before[i].Value(c)
				}
				return n
			}
			segments := delta(engine.TxDatagrams, engine.RxDatagrams)
			calls := delta(engine.DeviceCalls, engine.SocketCalls, engine.PollCalls)
			t.Logf("site %d: %d calls for %d segments: %d per 1000", i+1, calls, segments, calls*1000/segments)
			if calls == 0 || calls*1000/segments > most {
				t.Errorf("site %d: %d calls for %d segments, want at most %d per 1000", i+1, calls, segments, most)
			}
		}
	}
}

// stream sends bytes over one TCP connection and waits until they have arrived.
func stream(t *testing.T, from, to end, bytes int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	listener, err := to.Listen(ctx, "tcp", netip.AddrPortFrom(to.addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		n, err := io.Copy(io.Discard, conn)
		if err == nil && n != bytes {
			t.Errorf("%d bytes arrived, want %d", n, bytes)
		}
		return err
	})
	group.Go(func() error {
		conn, err := from.Dial(ctx, "tcp", listener.Addr().String())
		if err != nil {
			listener.Close()
			return err
		}
		defer conn.Close()
		_, err = io.CopyN(conn, zeros{}, bytes)
		return err
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestPeersCostNoGoroutine: an engine has as many goroutines with 5000 peers as with one.
func TestPeersCostNoGoroutine(t *testing.T) {
	sites := newSites(t, 4, lab.OffloadFull, false, false)
	before := settledGoroutines()
	var peers []tunnel.Peer
	for i := range 5000 {
		peers = append(peers, strangePeer(i))
	}
	for _, s := range sites {
		if err := s.engine.SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	if after := settledGoroutines(); after > before {
		t.Errorf("%d goroutines became %d", before, after)
	}
}

// settledGoroutines counts those of weft when their number has not changed for a
// while: an engine that has just been told to run begins them one by one.
func settledGoroutines() int {
	count := tunneltest.Goroutines("weft/tunnel")
	for same := 0; same < 20; same++ {
		time.Sleep(10 * time.Millisecond)
		if now := tunneltest.Goroutines("weft/tunnel"); now != count {
			count, same = now, 0
		}
	}
	return count
}

// strangePeer is a peer that there is nothing behind.
func strangePeer(i int) tunnel.Peer {
	return tunnel.Peer{
		Name:     "stranger",
		Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24)},
		Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), interopPort),
		MAC:      tunnel.MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}, VNI: testVNI, MTU: 1450, RemoteChecksum: i%2 == 0,
	}
}
