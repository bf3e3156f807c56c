package engine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/tunnel"
)

// Worker is one share of an engine's work: a Device, or one queue of it, and
// Sockets, one or more per outer family in use; equal flows leave by the same
// one. Workers share nothing but the table of peers.
type Worker struct {
	Device  tunnel.Device
	Sockets []tunnel.Socket
	// Sealed are the Sockets that carry WireGuard, at most one per outer family. Each
	// sends from the port it receives on, to which peers answer.
	Sealed []tunnel.Socket
	// Probes find the MTUs of the paths to all peers, whichever Worker has them:
	// one per outer family. Without one, only what Sockets refuse lowers an MTU.
	Probes []ProbeSocket
	// SealedProbes are those for WireGuard, on the ports of Sealed.
	SealedProbes []ProbeSocket
	// Poller lets one thread serve the Device and all Sockets, whose Read and
	// Receive must then not wait, each batch being carried to its end before the
	// next is taken. Without one every source has a goroutine of its own.
	Poller Poller
}

// Close closes what was given, the Poller first, as nothing it waits for may go
// before. An Engine that runs does so at its end.
func (w Worker) Close() error {
	var errs []error
	if w.Poller != nil {
		errs = append(errs, w.Poller.Close())
	}
	errs = append(errs, w.Device.Close())
	for _, socket := range slices.Concat(w.Sockets, w.Sealed) {
		errs = append(errs, socket.Close())
	}
	for _, socket := range slices.Concat(w.Probes, w.SealedProbes) {
		errs = append(errs, socket.Close())
	}
	return errors.Join(errs...)
}

// Poller waits for the Device and the Sockets of one Worker.
type Poller interface {
	// Wait waits until something can be read: of the Device, which is bit 0, or
	// of Sockets[i], which is bit 1+i, or of Sealed[i], whose bits follow. It
	// returns ErrClosed after Close. With spin it may look for a short time without
	// sleeping: the next packet is likely to come soon.
	Wait(spin bool) (ready uint64, err error)
	// Yield gives threads a turn that wait for this processor, if it costs no more
	// than a short one. It does not wait for anything. The thread that calls it does
	// nothing else: Yield may change how it is scheduled.
	Yield()
	// Calls is the number of system calls made by Wait and Yield.
	Calls() uint64
	// Close ends a Wait and returns after it. It may return only after a Close by the
	// thread that has called Wait, which that thread calls before it ends.
	Close() error
}

// gatherer is a Device that reads while its Worker waits.
type gatherer interface {
	// Arena is the only one that Read takes; nil: it takes any.
	Arena() []byte
	// More reports whether another Read is likely to return something although the
	// last did not return as much as it could.
	More() bool
}

// worker moves the packets of one Worker.
type worker struct {
	given   Worker
	device  tunnel.Device
	sources []source // by their bits

	tx *tx
	rx []*rx // one with a Poller, else one per source
}

// source is one of the worker's Sockets.
type source struct {
	tunnel.Socket
	sealed bool // carries WireGuard
}

func newWorker(e *Engine, parts Worker) *worker {
	w := &worker{given: parts, device: parts.Device}
	for _, socket := range parts.Sockets {
		w.sources = append(w.sources, source{Socket: socket})
	}
	for _, socket := range parts.Sealed {
		w.sources = append(w.sources, source{Socket: socket, sealed: true})
	}
	readers := 1
	if w.given.Poller == nil {
		w.device = &shared{Device: parts.Device}
		readers = len(w.sources)
	}
	w.tx = newTx(e, w)
	for range readers {
		w.rx = append(w.rx, newRx(e, w))
	}
	return w
}

// shared is a Device with its writers put one after the other: every socket
// has one, and so have the ICMP errors of the other direction.
type shared struct {
	tunnel.Device
	mu sync.Mutex
}

func (d *shared) Write(packets []tunnel.Outgoing) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.Device.Write(packets)
}

// start adds the worker's goroutines to the group. Each ends with an error.
func (w *worker) start(group *errgroup.Group) {
	if w.given.Poller != nil {
		group.Go(w.run)
		return
	}
	group.Go(func() error {
		for {
			if _, _, err := w.read(); err != nil {
				return err
			}
		}
	})
	for i, from := range w.sources {
		group.Go(func() error {
			for {
				if _, _, err := w.receive(w.rx[i], from); err != nil {
					return err
				}
			}
		})
	}
}

// run serves all sources in turn. Its thread is its own: a wake-up of it is
// then one of the kernel's alone.
func (w *worker) run() (err error) {
	runtime.LockOSThread() // for good: what Yield has changed ends with the thread
	defer func() { err = errors.Join(err, w.given.Poller.Close()) }()
	calm := 0 // waits in succession that brought few bytes
	for {
		ready, err := w.given.Poller.Wait(calm > calmRounds)
		if err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
		bytes, err := w.rounds(ready)
		if err != nil {
			return err
		}
		if calm++; bytes >= calmBytes {
			calm = 0
		}
	}
}

// After more than calmRounds waits in succession that brought less than calmBytes
// each, what passes is most likely requests and answers, and the next one is worth
// waiting for awake. Bulk is carried with fewer calls if more of it gathers meanwhile.
const (
	calmRounds = 8
	calmBytes  = 16 << 10
)

// maxRounds bounds the batches taken of sources that are never empty before
// Wait looks at the others.
const maxRounds = 4

// rounds serves what is ready. What has filled a batch has more, most likely, and
// need not be waited for.
func (w *worker) rounds(ready uint64) (bytes int, err error) {
	for range maxRounds {
		more, n, err := w.serve(ready)
		if err != nil {
			return 0, err
		}
		bytes += n
		if ready = more; ready == 0 {
			break
		}
	}
	return bytes, nil
}

// serve takes a batch of every source that is ready, and returns those that
// have more, and how many bytes there were.
func (w *worker) serve(ready uint64) (more uint64, bytes int, err error) {
	for i, from := range w.sources {
		if ready&(2<<i) == 0 {
			continue
		}
		n, full, err := w.receive(w.rx[0], from)
		if err != nil {
			return 0, 0, err
		}
		bytes += n
		if full {
			more |= 2 << i
		}
	}
	if ready&1 != 0 {
		n, full, err := w.read()
		if err != nil {
			return 0, 0, err
		}
		bytes += n
		if full {
			more |= 1
		}
	}
	return more, bytes, nil
}

// read takes one batch from the Device to its end, of so many bytes. Full means
// that there is more, most likely.
func (w *worker) read() (bytes int, full bool, err error) {
	n, err := w.device.Read(w.tx.packets, w.tx.arena)
	packets := w.tx.packets[:n]
	for i := range packets {
		bytes += len(packets[i].Data)
	}
	w.tx.process(packets)
	if err != nil {
		return 0, false, fmt.Errorf("read %s: %w", w.device.Name(), err)
	}
	full = n == len(w.tx.packets) || bytes >= txBatch
	if g, ok := w.device.(gatherer); ok && !full {
		full = g.More()
	}
	return bytes, full, nil
}

// receive takes one batch from a Socket to its end. What it returns is as in read.
func (w *worker) receive(r *rx, from source) (bytes int, full bool, err error) {
	n, err := from.Receive(r.batch, r.arena)
	runs := r.batch[:n]
	for i := range runs {
		bytes += len(runs[i].Data)
	}
	r.process(runs, from.sealed)
	if err != nil {
		return 0, false, fmt.Errorf("receive on %v: %w", from.Local(), err)
	}
	return bytes, n == len(r.batch) || bytes >= tunnel.MaxBatch, nil
}

// caller is a Device or Socket that counts its system calls.
type caller interface{ Calls() uint64 }

// loser is a Socket that counts what it did not return.
type loser interface {
	Lost() (truncated, overflow uint64)
}

// addTo adds the worker's counts.
func (w *worker) addTo(stats *Stats) {
	w.tx.counters.addTo(stats)
	for _, r := range w.rx {
		r.counters.addTo(stats)
	}
	device := w.device
	if s, ok := device.(*shared); ok {
		device = s.Device
	}
	if c, ok := device.(caller); ok {
		stats.values[DeviceCalls] += c.Calls()
	}
	for _, from := range w.sources {
		if c, ok := from.Socket.(caller); ok {
			stats.values[SocketCalls] += c.Calls()
		}
		if l, ok := from.Socket.(loser); ok {
			truncated, overflow := l.Lost()
			stats.values[RxDropTooLong] += truncated
			stats.values[RxDropOverflow] += overflow
		}
	}
	if w.given.Poller != nil {
		stats.values[PollCalls] += w.given.Poller.Calls()
	}
}
