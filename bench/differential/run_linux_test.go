package differential

import (
	"testing"
	"time"

	"github.com/weft-net/weft/tunnel"
)

// run sends cases in batches and compares what comes out.
type run struct {
	t     *testing.T
	judge *judge
	mtu   int // of the tunnel devices
	taps  []*tap
	// read says what a frame seen by a tap is: an output of a host, or nothing
	// of interest.
	read   func(tap int, frame []byte, outgoing bool) (host int, number uint32, o output, ok bool)
	fence  func(number uint32) // sends a packet both hosts let through
	number uint32              // of the last case
	batch  []*testCase
	weight int // packets that the batch may have become
	got    [2]map[uint32][]output
	cut    map[tunnel.GSOType]int // super-packets that came out as several packets
}

const (
	// maxBatch is so few packets that every queue on the way, and an ordinary
	// user's socket buffer, holds them.
	maxBatch = 100
	// patience is for a machine that has other things to do: nothing depends on it otherwise.
	patience = 20 * time.Second
	// grace is how long packets are awaited that may have been overtaken.
	grace = time.Second
)

func newRun(t *testing.T, j *judge, n network) *run {
	r := &run{t: t, judge: j, mtu: n.mtu(), number: firstNumber, cut: map[tunnel.GSOType]int{}}
	r.clear()
	return r
}

func (r *run) clear() {
	r.batch, r.weight = nil, 0
	for i := range r.got {
		r.got[i] = map[uint32][]output{}
	}
}

// nextCase makes an empty case with a number of its own.
func (r *run) nextCase(is4 bool) *testCase {
	r.t.Helper()
	if r.number++; r.number >= lastNumber {
		r.t.Fatal("no numbers left: fewer packets, or a wider subnet")
	}
	return &testCase{number: r.number, is4: is4, mtu: r.mtu}
}

// sent notes cases that have been sent, of so many packets on the wire.
func (r *run) sent(weight int, cases ...*testCase) {
	r.t.Helper()
	r.batch = append(r.batch, cases...)
	r.weight += weight
	r.collect()
	if r.weight >= maxBatch {
		r.settle()
	}
}

// collect takes what has come out.
func (r *run) collect() {
	r.t.Helper()
	for i, p := range r.taps {
		for {
			frame, outgoing, ok := p.next()
			if !ok {
				break
			}
			host, number, o, ok := r.read(i, frame, outgoing)
			if !ok {
				continue
			}
			o.packet = append([]byte(nil), o.packet...)
			r.got[host][number] = append(r.got[host][number], o)
		}
	}
}

// settle waits until everything of the batch has come out, and compares it.
func (r *run) settle() {
	r.t.Helper()
	fence := r.nextCase(true).number
	r.fence(fence)
	passed := func() bool { return len(r.got[kernelHost][fence]) > 0 && len(r.got[engineHost][fence]) > 0 }
	r.await(passed, patience)
	if !passed() {
		r.t.Fatalf("the packet behind the batch arrived at kernel: %v, engine: %v",
			len(r.got[kernelHost][fence]) > 0, len(r.got[engineHost][fence]) > 0)
	}
	r.await(r.explained, grace)
	known := map[uint32]bool{fence: true}
	for _, c := range r.batch {
		known[c.number] = true
		r.judge.record(r.t, c, r.got[kernelHost][c.number], r.got[engineHost][c.number])
		if len(r.got[engineHost][c.number]) > 1 {
			r.cut[c.gso]++
		}
	}
	for host, outputs := range r.got {
		for number, o := range outputs {
			if !known[number] {
				r.t.Errorf("host %d: packets of number %d, which is not on its way\n%s", host, number, list("", o))
			}
		}
	}
	for i, p := range r.taps {
		if n := p.lost(); n > 0 {
			r.t.Fatalf("tap %d lost %d frames", i, n)
		}
	}
	r.clear()
}

// explained reports whether all of the batch is as it should be.
func (r *run) explained() bool {
	for _, c := range r.batch {
		engine := r.got[engineHost][c.number]
		if _, want := verdict(r.judge.where, c, r.got[kernelHost][c.number], engine); !same(want, engine) {
			return false
		}
	}
	return true
}

func (r *run) await(done func() bool, most time.Duration) {
	r.t.Helper()
	for deadline := time.Now().Add(most); ; wait(r.taps, time.Until(deadline)) {
		if r.collect(); done() || !time.Now().Before(deadline) {
			return
		}
	}
}
