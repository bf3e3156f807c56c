package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// flowIdle is how long a UDP flow without datagrams is remembered: two
	// minutes is the least that RFC 4787 (REQ-5) asks of a NAT.
	flowIdle = 2 * time.Minute
	// maxFlows bounds the flows of one listener; the one silent for longest
	// makes room. Resolvers that take a new port for each query fill it fast.
	maxFlows = 1024
	// flowQueue is how many datagrams wait while a flow's target is dialled.
	flowQueue = 16
	// maxDatagram is more than any UDP datagram has, so that none is cut unseen.
	maxDatagram = 1 << 16
	// anyPath is a size in bytes that every path carries.
	anyPath = 1200
)

// flows are the UDP flows of one listener: one connection to a target for each
// key. The key is what tells flows apart, a client's address or a target.
type flows[K comparable] struct {
	ctx   context.Context
	group *sync.WaitGroup
	max   int // flows open at one time
	// dial connects a flow, reply sends what came back to where the key says.
	dial  func(ctx context.Context, key K) (net.Conn, error)
	reply func(key K, payload []byte) error
	count *traffic
	// failed is told of each datagram that was not carried.
	failed func(error)

	mu   sync.Mutex
	open map[K]*flow
}

type flow struct {
	queue  chan []byte
	cancel context.CancelFunc
	active atomic.Int64 // UnixNano of the latest datagram either way
}

func (f *flow) touch() { f.active.Store(time.Now().UnixNano()) }

// send hands a datagram to the flow of key, which is begun if there is none.
// It never waits and copies payload.
func (fs *flows[K]) send(key K, payload []byte) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.ctx.Err() != nil {
		return
	}
	f, ok := fs.open[key]
	if !ok {
		f = fs.begin(key)
	}
	f.touch()
	select {
	case f.queue <- append([]byte(nil), payload...):
	default:
		fs.drop(errors.New("target is not dialled yet: too many datagrams wait"))
	}
}

// begin is called with mu held.
func (fs *flows[K]) begin(key K) *flow {
	if fs.open == nil {
		fs.open = map[K]*flow{}
	}
	if len(fs.open) >= fs.max {
		fs.evict()
	}
	ctx, cancel := context.WithCancel(fs.ctx)
	f := &flow{queue: make(chan []byte, flowQueue), cancel: cancel}
	f.touch() // before anybody looks how long it was silent
	fs.open[key] = f
	fs.count.open.Add(1)
	fs.count.total.Add(1)
	fs.group.Go(func() {
		defer fs.count.open.Add(-1)
		defer cancel()
		if err := fs.run(ctx, key, f); err != nil && ctx.Err() == nil {
			fs.failed(err)
		}
		fs.forget(key, f)
	})
	return f
}

// evict ends the flow that was silent for longest.
func (fs *flows[K]) evict() {
	var oldest K
	var least int64
	var found *flow
	for key, f := range fs.open {
		if at := f.active.Load(); found == nil || at < least {
			oldest, least, found = key, at, f
		}
	}
	delete(fs.open, oldest)
	found.cancel()
}

// forget removes f, after which nothing is queued to it, and counts what was.
func (fs *flows[K]) forget(key K, f *flow) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.open[key] == f {
		delete(fs.open, key)
	}
	fs.count.dropped.Add(uint64(len(f.queue)))
}

func (fs *flows[K]) drop(err error) {
	fs.count.dropped.Add(1)
	fs.failed(err)
}

// run carries one flow until it was silent for flowIdle, breaks or ctx is done.
func (fs *flows[K]) run(ctx context.Context, key K, f *flow) error {
	dialCtx, stopDial := context.WithTimeout(ctx, dialTimeout)
	conn, err := fs.dial(dialCtx, key)
	stopDial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ended := make(chan error, 1)
	fs.group.Go(func() { ended <- fs.receive(conn, key, f) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return err
		case payload := <-f.queue:
			if _, err := conn.Write(payload); err != nil {
				fs.drop(fmt.Errorf("send datagram of %d bytes: %w", len(payload), err))
				if len(payload) <= anyPath {
					return nil // not refused for its size: the target is gone, the next datagram dials anew
				}
				continue
			}
			fs.count.in.Add(uint64(len(payload)))
		}
	}
}

// receive carries what comes back, until the flow was silent for flowIdle or
// conn breaks or is closed.
func (fs *flows[K]) receive(conn net.Conn, key K, f *flow) error {
	buffer := make([]byte, maxDatagram)
	for {
		silent := time.Since(time.Unix(0, f.active.Load()))
		if silent >= flowIdle {
			return nil
		}
		_ = conn.SetReadDeadline(time.Now().Add(flowIdle - silent))
		n, err := conn.Read(buffer)
		if isTimeout(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive datagram: %w", err)
		}
		f.touch()
		if err := fs.reply(key, buffer[:n]); err != nil {
			fs.drop(fmt.Errorf("send datagram of %d bytes back: %w", n, err))
			continue
		}
		fs.count.out.Add(uint64(n))
	}
}

// isTimeout reports whether a deadline has passed.
func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// serveDatagrams gives every datagram that conn receives to fs, with the
// address of who sent it as key, until ctx is done or conn was closed. failing
// is told of each error of conn, and nil once it works again.
func serveDatagrams(ctx context.Context, conn net.PacketConn, fs *flows[netip.AddrPort], failing func(error)) {
	defer closeOn(ctx, conn)()
	buffer := make([]byte, maxDatagram)
	var pause backoff
	for {
		n, from, err := conn.ReadFrom(buffer)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// Some systems report here that an earlier answer found nobody.
			failing(err)
			if errors.Is(err, net.ErrClosed) || !pause.wait(ctx) {
				return
			}
			continue
		}
		pause = 0
		failing(nil)
		if client, ok := from.(*net.UDPAddr); ok {
			fs.send(client.AddrPort(), buffer[:n])
		}
	}
}
