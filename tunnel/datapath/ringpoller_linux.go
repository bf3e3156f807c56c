package datapath

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
	"github.com/weft-net/weft/tunnel/internal/ring"
)

// ringPoller waits in an io_uring, which reads and receives meanwhile: what is
// ready is in memory already.
type ringPoller struct {
	ring    *ring.Ring
	streams [][]*ring.Stream // by their bits
	waker   *linux.Waker
	spin    spin
	turns

	closed atomic.Bool
	mu     sync.Mutex
	owner  int           // the thread that the ring belongs to; 0: none yet
	freed  chan struct{} // closed when everything is
}

// newRingPoller takes over the ring, also with an error. The streams are in groups, the
// first of which is bit 0.
func newRingPoller(r *ring.Ring, streams [][]*ring.Stream, busyPoll time.Duration) (*ringPoller, error) {
	waker, err := linux.NewWaker()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	r.Watch(waker.Descriptor())
	return &ringPoller{ring: r, streams: streams, waker: waker, spin: newSpin(busyPoll), freed: make(chan struct{})}, nil
}

// Wait implements engine.Poller. What was read and received until now is no longer
// used.
func (p *ringPoller) Wait(spin bool) (ready uint64, err error) {
	if p.owner == 0 {
		if err := p.start(); err != nil {
			return 0, err
		}
	}
	for !p.closed.Load() {
		if ready = p.gather(); ready != 0 {
			return ready, nil
		}
		if err := p.spin.wait(spin, p.look, p.giveTurn); err != nil {
			return 0, fmt.Errorf("wait in io_uring: %w", err)
		}
	}
	return 0, tunnel.ErrClosed
}

// start makes the ring that of the calling thread.
func (p *ringPoller) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed.Load() {
		return tunnel.ErrClosed
	}
	if err := p.ring.Start(); err != nil {
		return err
	}
	p.owner = unix.Gettid()
	return nil
}

// gather takes up what has happened, has everything go on, and returns who has
// something. Whoever had to stop goes on with the next call of the ring: what comes
// between the two steps ends that at once.
func (p *ringPoller) gather() (ready uint64) {
	p.ring.Reap()
	for i, streams := range p.streams {
		for _, s := range streams {
			s.Renew()
			if s.Ready() {
				ready |= 1 << i
			}
		}
	}
	return ready
}

// look has the kernel do what it can, or wait.
func (p *ringPoller) look(sleep bool) (found bool, err error) {
	if sleep {
		return false, p.ring.Enter(1)
	}
	if err := p.ring.Enter(0); err != nil {
		return false, err
	}
	return p.gather() != 0 || p.closed.Load(), nil
}

// Calls implements engine.Poller. Those of the Device and the Sockets are among them.
func (p *ringPoller) Calls() uint64 { return p.calls.Load() + p.ring.Calls() }

// Close implements engine.Poller. It is the ring's thread that ends what the ring
// does, by a Close of its own; others wait for that.
func (p *ringPoller) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.freed:
		return nil
	default:
	}
	p.closed.Store(true)
	if p.owner != 0 && p.owner != unix.Gettid() {
		p.waker.Wake()
		p.mu.Unlock()
		<-p.freed
		p.mu.Lock()
		return nil
	}
	defer close(p.freed)
	var stopped error
	if p.owner != 0 {
		stopped = p.ring.Stop()
	}
	if err := errors.Join(stopped, p.ring.Close(), p.waker.Close()); err != nil {
		return fmt.Errorf("close io_uring: %w", err)
	}
	return nil
}
