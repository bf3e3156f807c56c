package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/proxy"

	"github.com/weft-net/weft/bench/lab"
)

// streams are TCP streams that are sent through a SOCKS5 proxy. What counts is
// what the far side has read, slow start included, as with iperf3, unless there
// is a time for it.
type streams struct {
	count int
	start time.Duration // does not count
}

const (
	streamPort  = 5203
	streamBlock = 128 << 10 // bytes per call at either end, as iperf3 has it
)

// run connects all streams, one after the other, then sends on them.
func (s streams) run(ctx context.Context, b *bench, w *way) (o outcome, err error) {
	listener, err := w.listen(ctx)
	if err != nil {
		return outcome{}, err
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var near, far []net.Conn
	defer func() {
		for _, conn := range append(near, far...) {
			conn.Close()
		}
	}()
	for range s.count {
		from, err := w.dialProxy(ctx)
		if err != nil {
			return outcome{}, err
		}
		near = append(near, from)
		to, err := listener.Accept()
		if err != nil {
			return outcome{}, errors.Join(err, ctx.Err())
		}
		far = append(far, to)
	}
	if o = pour(ctx, near, far, s.start, b.Duration); o.bits == 0 {
		return outcome{}, errors.Join(fmt.Errorf("of %d streams through the proxy nothing arrived", s.count), ctx.Err())
	}
	return o, nil
}

// pour sends from near to far, first for a time that does not count, then for
// one that does, and closes all.
func pour(ctx context.Context, near, far []net.Conn, before, duration time.Duration) (o outcome) {
	var arrived atomic.Int64
	var group sync.WaitGroup
	for i := range near {
		group.Go(func() {
			block := make([]byte, streamBlock)
			for err := error(nil); err == nil; {
				_, err = near[i].Write(block)
			}
		})
		group.Go(func() {
			block := make([]byte, streamBlock)
			for {
				n, err := far[i].Read(block)
				arrived.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	wait(ctx, before)
	early, start := arrived.Load(), time.Now()
	wait(ctx, duration)
	o = outcome{early: 8 * float64(early), bits: 8 * float64(arrived.Load()-early), seconds: time.Since(start).Seconds()}
	// The far side first: what is still on its way is then refused, not carried
	// into the next measurement.
	for _, conns := range [][]net.Conn{far, near} {
		for _, conn := range conns {
			conn.Close()
		}
	}
	group.Wait()
	return o
}

// wait waits for a while, or until ctx is done.
func wait(ctx context.Context, duration time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(duration):
	}
}

// listen is where streams arrive.
func (w *way) listen(ctx context.Context) (net.Listener, error) {
	return w.to.Listen(ctx, "tcp", netip.AddrPortFrom(w.addr, streamPort).String())
}

// dialProxy connects to where streams arrive by the proxy on the near side.
func (w *way) dialProxy(ctx context.Context) (net.Conn, error) {
	dialer, err := proxy.SOCKS5("tcp", proxyAddress, nil, inside{w.from})
	if err != nil {
		return nil, err
	}
	return dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", netip.AddrPortFrom(w.addr, streamPort).String())
}

// inside dials in a namespace.
type inside struct{ *lab.Namespace }

// Dial implements proxy.Dialer.
func (i inside) Dial(network, address string) (net.Conn, error) {
	return i.DialContext(context.Background(), network, address)
}

// DialContext implements proxy.ContextDialer.
func (i inside) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return i.Namespace.Dial(ctx, network, address)
}

// checkProxy waits until the proxy reaches the far side.
func (w *way) checkProxy(ctx context.Context) error {
	listener, err := w.listen(ctx)
	if err != nil {
		return err
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		conn, err := w.dialProxy(ctx)
		if err == nil {
			return conn.Close()
		}
		if wait(ctx, 10*time.Millisecond); ctx.Err() != nil {
			return err
		}
	}
}
