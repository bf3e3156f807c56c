package engine

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/peertable"
)

// How long runs to a peer stay shorter before longer ones are tried again: the
// route may have changed. The time doubles with every vain try.
const (
	ladderRetry    = time.Minute
	ladderRetryMax = time.Hour
)

// ladder is what the engine has stopped using because the system refused it,
// and why. Every step down or up is logged once; packets never wait for it.
type ladder struct {
	logger *slog.Logger
	mu     sync.Mutex
	device map[string]string    // by offload, what is done instead and why
	runs   map[*runLimit]string // by peer
}

func newLadder(logger *slog.Logger) *ladder {
	return &ladder{logger: logger, device: map[string]string{}, runs: map[*runLimit]string{}}
}

// note writes down a step, and logs it if it is another one than before.
func note[K comparable](l *ladder, steps map[K]string, key K, concerned, instead string, err error) {
	text := fmt.Sprintf("%s: %s: %v", concerned, instead, err)
	if steps[key] != text {
		l.logger.Warn("going on without an offload", "concerned", concerned, "instead", instead, "error", err)
	}
	steps[key] = text
}

// deviceRefused notes that the Device no longer gets an offload.
func (l *ladder) deviceRefused(device, offload string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	concerned := offload + " by " + device
	note(l, l.device, concerned, concerned, "packets are written finished and one by one", err)
}

// list is all steps, in a fixed order.
func (l *ladder) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(func(yield func(string) bool) {
		for _, all := range []iter.Seq[string]{maps.Values(l.device), maps.Values(l.runs)} {
			for step := range all {
				if !yield(step) {
					return
				}
			}
		}
	})
}

// keep forgets the steps for peers that are gone.
func (l *ladder) keep(paths []*path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.runs) == 0 {
		return
	}
	kept := make(map[*runLimit]bool, len(paths))
	for _, p := range paths {
		kept[&p.runs] = true
	}
	maps.DeleteFunc(l.runs, func(runs *runLimit, _ string) bool { return !kept[runs] })
}

// runLimit bounds the datagrams of a run to one peer. The zero runLimit does not.
type runLimit struct {
	most  atomic.Int32  // 0: no bound
	again atomic.Int64  // when to try longer ones, in nanoseconds of Unix time
	wait  time.Duration // before that; under the ladder's lock
	// lost is set when runs do not arrive, so that only a test can show that they
	// do again; under the ladder's lock.
	lost bool
}

// noLimit is more than any Socket takes.
const noLimit = tunnel.MaxPacket

// limit is how many datagrams a run may have now.
func (r *runLimit) limit() int {
	most := r.most.Load()
	if most == 0 || time.Now().UnixNano() >= r.again.Load() {
		return noLimit
	}
	return int(most)
}

// lowered reports whether there is, or was when last looked at, a bound.
func (r *runLimit) lowered() bool { return r.most.Load() != 0 }

// refused shortens the runs to a peer after one of count datagrams was refused:
// to half where it may have been for its length, else to single datagrams.
func (l *ladder) refused(w way, count int, err error) {
	most, instead := 1, singly
	if errors.Is(err, tunnel.ErrShorter) && count > 3 {
		most = count / 2
		instead = fmt.Sprintf("runs have at most %d datagrams", most)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	runs, now := &w.path.runs, time.Now()
	before := int(runs.most.Load())
	if runs.lost || before != 0 && most >= before && now.UnixNano() < runs.again.Load() {
		return // sent before the bound was
	}
	runs.wait = min(max(2*runs.wait, ladderRetry), ladderRetryMax)
	runs.again.Store(now.Add(runs.wait).UnixNano())
	runs.most.Store(int32(most))
	note(l, l.runs, runs, concernedRuns(w.peer), instead, err)
}

// passed is told of runs that got out to a peer with a bound. One that is longer
// shows that the bound is no longer needed.
func (l *ladder) passed(w way, count int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	runs := &w.path.runs
	if most := int(runs.most.Load()); runs.lost || most == 0 || count <= most {
		return
	}
	l.unbound(w.path, w.peer)
}

// unbound lets runs to a peer have any length.
func (l *ladder) unbound(to *path, peer *peertable.Entry) {
	to.runs.most.Store(0)
	to.runs.wait = 0
	delete(l.runs, &to.runs)
	l.logger.Info("runs pass again", "peer", peer.Name, "endpoint", peer.Endpoint)
}

// errRunsLost is why a peer gets single datagrams though no run was refused.
var errRunsLost = errors.New("runs left without an error, and parts of them never arrived")

// failed stops runs to a peer until proven.
func (l *ladder) failed(to *path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	to.runs.lost = true
	to.runs.again.Store(math.MaxInt64)
	to.runs.most.Store(1)
	note(l, l.runs, &to.runs, concernedRuns(to.peer), singly, errRunsLost)
}

// proven allows them again.
func (l *ladder) proven(to *path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	to.runs.lost = false
	l.unbound(to, to.peer)
}

// singly is what is done for a peer without runs.
const singly = "datagrams are sent one by one"

func concernedRuns(peer *peertable.Entry) string {
	return fmt.Sprintf("runs to %s at %v", peer.Name, peer.Endpoint)
}
