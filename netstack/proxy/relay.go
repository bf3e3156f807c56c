package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// halfOpenIdle is how long one direction of a stream may be silent after the
// other has ended. Who closes altogether looks just like who closes one
// direction, so that without it a vanished client would be waited for without
// end. Streams open in both directions have no such bound.
const halfOpenIdle = time.Hour

// Streams wait with small buffers, so that ten thousand idle ones cost little,
// and take large ones while much arrives.
const (
	smallBuffer = 4 << 10
	largeBuffer = 64 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// relay carries bytes both ways between two streams until both directions have
// ended, one of them broke, or ctx is done, and closes both. The end of one
// direction is passed on alone; a reset becomes a reset.
func relay(ctx context.Context, near, far net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer closeOn(ctx, near)()
	defer closeOn(ctx, far)()
	r := &relayed{cancel: cancel}
	var both sync.WaitGroup
	both.Go(func() { r.half(near, far) })
	r.half(far, near)
	both.Wait()
	if watch := r.watch.Load(); watch != nil {
		watch.Stop()
	}
	near.Close()
	far.Close()
}

// relayed is a relay at work.
type relayed struct {
	cancel context.CancelFunc
	// watch ends the relay when it was silent for too long; set when the first of
	// the two directions has ended.
	watch atomic.Pointer[time.Timer]
}

// half carries one direction to its end.
func (r *relayed) half(from, to net.Conn) {
	err := r.pump(from, to)
	if err == nil {
		err = closeWrite(to)
	}
	if err != nil {
		reset(from)
		reset(to)
		return
	}
	watch := time.AfterFunc(halfOpenIdle, r.cancel)
	if !r.watch.CompareAndSwap(nil, watch) {
		watch.Stop()
	}
}

// pump copies until from ends, which is nil, or either breaks.
func (r *relayed) pump(from, to net.Conn) error {
	large := false
	for {
		n, err := pumpOnce(from, to, large)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		large = n > smallBuffer || !large && n == smallBuffer
		if watch := r.watch.Load(); watch != nil {
			watch.Reset(halfOpenIdle)
		}
	}
}

func pumpOnce(from, to net.Conn, large bool) (int, error) {
	var buffer []byte
	if large {
		held := largeBuffers.Get().(*[largeBuffer]byte)
		defer largeBuffers.Put(held)
		buffer = held[:]
	} else {
		held := smallBuffers.Get().(*[smallBuffer]byte)
		defer smallBuffers.Put(held)
		buffer = held[:]
	}
	n, err := from.Read(buffer)
	if n > 0 {
		if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
			return n, writeErr
		}
	}
	return n, err
}

// closeOn closes c when ctx ends. The caller calls release when that is no
// longer wanted; once it returns, c is closed or will not be.
func closeOn(ctx context.Context, c io.Closer) (release func()) {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		c.Close()
	})
	return func() {
		if !stop() {
			<-closed
		}
	}
}

// below finds the connection under wrappers that has what T asks for.
func below[T any](conn net.Conn) (T, bool) {
	for {
		if found, ok := conn.(T); ok {
			return found, true
		}
		wrapper, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			var none T
			return none, false
		}
		conn = wrapper.NetConn()
	}
}

// closeWrite ends the sending direction. A connection that is gone already is
// no error: reading it says so too. One that cannot close one direction alone is.
func closeWrite(conn net.Conn) error {
	half, ok := below[interface{ CloseWrite() error }](conn)
	if !ok {
		return errors.ErrUnsupported
	}
	_ = half.CloseWrite()
	return nil
}

// reset closes conn so that the other end sees that it broke, where that can be.
func reset(conn net.Conn) {
	if lingering, ok := below[interface{ SetLinger(seconds int) error }](conn); ok {
		_ = lingering.SetLinger(0)
	}
	conn.Close()
}

// counted is a client's connection whose bytes, opening and closing are
// counted.
type counted struct {
	net.Conn
	count  *traffic
	closed sync.Once
	// gone is closed with the connection.
	gone chan struct{}
}

func newCounted(conn net.Conn, count *traffic) *counted {
	count.open.Add(1)
	count.total.Add(1)
	return &counted{Conn: conn, count: count, gone: make(chan struct{})}
}

// NetConn returns the connection below.
func (c *counted) NetConn() net.Conn { return c.Conn }

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.count.in.Add(uint64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.count.out.Add(uint64(n))
	return n, err
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.closed.Do(func() {
		c.count.open.Add(-1)
		close(c.gone)
	})
	return err
}

// accept hands every connection of a listener to handle, each in a goroutine
// of group, until ctx is done or the listener was closed. failing is told of
// each error of the listener, and nil once it works again. ctx's end closes
// the listener.
func accept(ctx context.Context, group *sync.WaitGroup, listener net.Listener, count *traffic, failing func(error), handle func(*counted)) {
	defer closeOn(ctx, listener)()
	var serving atomic.Int64
	var pause backoff
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return
		}
		if err != nil {
			failing(err)
			if errors.Is(err, net.ErrClosed) || !pause.wait(ctx) {
				return
			}
			continue
		}
		pause = 0
		failing(nil)
		if serving.Load() >= maxConnections {
			count.dropped.Add(1)
			reset(conn)
			continue
		}
		client := newCounted(conn, count)
		serving.Add(1)
		group.Go(func() {
			defer serving.Add(-1)
			defer client.Close()
			handle(client)
		})
	}
}

// backoff is the pause after the next failure in a row; zero to begin with.
type backoff time.Duration

// wait pauses, longer each time, and reports false if ctx ended meanwhile.
func (b *backoff) wait(ctx context.Context) bool {
	*b = min(max(*b*2, backoff(5*time.Millisecond)), backoff(time.Second))
	timer := time.NewTimer(time.Duration(*b))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
