package datapath_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
)

// soakTime is how long TestSoak runs unless WEFT_SOAK says otherwise, as in 1h:
// then with pauses, so that what waits to be freed in time is seen to be.
const (
	soakTime  = 5 * time.Second
	soakPause = time.Second
)

// footprint is what the process holds.
type footprint struct{ heap, goroutines, files int }

func measure(t *testing.T) footprint {
	t.Helper()
	runtime.GC()
	runtime.GC() // what finalizers freed
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return footprint{heap: int(m.HeapAlloc), goroutines: runtime.NumGoroutine(), files: len(files)}
}

// TestSoak: mixed traffic between two engines and a kernel VXLAN host, while
// peers come and go, takes no more memory, goroutines or files after a long time
// than after a short one, and does not stop.
func TestSoak(t *testing.T) {
	length, pause := soakTime, time.Duration(0)
	if text := os.Getenv("WEFT_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WEFT_SOAK %q: want a time, as in 1h", text)
		}
		pause = soakPause
	}
	sites := makeSites(t, sitesConfig{outerFamily: 4, link: lab.OffloadFull, remote: false}, false, true, false)
	round := func(i int) {
		churn(t, sites, i)
		from, to := sites[i%3], sites[(i+1)%3]
		is4, place := i%2 == 0, []string{"host", "pod"}[i/2%2]
		a, b := from.ends(is4)[place], to.ends(is4)[place]
		ping(t, a, b)
		transfer(t, a, b)
		datagrams(t, a, b)
	}
	rounds := 0
	for ; rounds < 12; rounds++ { // everything has been used once
		round(rounds)
	}
	before, start, last := measure(t), time.Now(), time.Now()
	for time.Since(start) < length && !t.Failed() {
		round(rounds)
		rounds++
		time.Sleep(pause)
		if now := time.Now(); now.Sub(last) > time.Minute {
			t.Logf("%v, %d rounds: %+v", now.Sub(start).Truncate(time.Second), rounds, measure(t))
			last = now
		}
	}
	after := measure(t)
	t.Logf("%d rounds in %v: %+v became %+v", rounds, length, before, after)
	const slack = 4 << 20 // buffers of connections that are still in their last wait
	if after.heap > before.heap+slack || after.goroutines > before.goroutines+2 || after.files > before.files+2 {
		t.Errorf("%+v became %+v", before, after)
	}
}

// churn has a few hundred peers come and others go, while packets to the real ones are under way.
func churn(t *testing.T, sites []*site, round int) {
	t.Helper()
	group, ctx := errgroup.WithContext(context.Background())
	for _, s := range sites {
		if s.engine == nil {
			continue
		}
		group.Go(func() error {
			for i := range 10 {
				var peers []tunnel.Peer
				for n := range 300 {
					peers = append(peers, strangePeer(100*(10*round+i)%10000+n))
				}
				if err := errors.Join(s.engine.SetPeers(append(peers, s.peers(sites, s.mtu)...)), ctx.Err()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}
