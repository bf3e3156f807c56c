package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newTestFlows are flows by number whose targets echo, through pipes.
func newTestFlows(t *testing.T, max int) (fs *flows[int], replies chan int, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	replies = make(chan int, 1024)
	fs = &flows[int]{
		ctx: ctx, group: &group, max: max, count: &traffic{},
		dial: func(context.Context, int) (net.Conn, error) {
			near, far := net.Pipe()
			group.Go(func() { echo(far); far.Close() })
			return near, nil
		},
		reply:  func(key int, _ []byte) error { replies <- key; return nil },
		failed: func(error) {},
	}
	return fs, replies, func() {
		cancel()
		group.Wait()
		if left := fs.count.open.Load(); left != 0 {
			t.Errorf("%d flows left", left)
		}
	}
}

// TestFlowsExpire holds that a flow lives while there are datagrams and goes
// after its idle time.
func TestFlowsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, replies, end := newTestFlows(t, 10)
		defer end()
		for range 5 {
			fs.send(1, []byte("x"))
			<-replies
			time.Sleep(flowIdle - time.Second)
		}
		if open, total := fs.count.open.Load(), fs.count.total.Load(); open != 1 || total != 1 {
			t.Errorf("%d flows open of %d, want the one", open, total)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if open := fs.count.open.Load(); open != 0 {
			t.Errorf("%d flows open after the idle time", open)
		}
		fs.send(1, []byte("x"))
		<-replies
	})
}

// TestFlowsBounded holds that a flood of new flows makes the one silent for
// longest go, and no other.
func TestFlowsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, replies, end := newTestFlows(t, 3)
		defer end()
		for _, key := range []int{1, 2, 3, 1, 4, 1, 5} {
			fs.send(key, []byte("x"))
			if got := <-replies; got != key {
				t.Errorf("answer for %d, want %d", got, key)
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		fs.mu.Lock()
		defer fs.mu.Unlock()
		for _, key := range []int{1, 4, 5} {
			if _, ok := fs.open[key]; !ok {
				t.Errorf("flow %d is gone", key)
			}
		}
		if open := fs.count.open.Load(); open != 3 {
			t.Errorf("%d flows open, want 3", open)
		}
	})
}

// TestFlowsDialLate holds that datagrams wait for a slow dial, that too many
// are dropped and counted, and that other flows are not held up.
func TestFlowsDialLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, replies, end := newTestFlows(t, 10)
		defer end()
		quick := fs.dial
		fs.dial = func(ctx context.Context, key int) (net.Conn, error) {
			if key == 1 {
				time.Sleep(time.Second)
			}
			return quick(ctx, key)
		}
		const extra = 3
		for range flowQueue + extra {
			fs.send(1, []byte("x"))
		}
		fs.send(2, []byte("x"))
		if got := <-replies; got != 2 {
			t.Errorf("first answer for %d, want 2", got)
		}
		for range flowQueue {
			<-replies
		}
		if dropped := fs.count.dropped.Load(); dropped != extra {
			t.Errorf("%d dropped, want %d", dropped, extra)
		}
	})
}

// failingConn refuses datagrams above a size, or all.
type failingConn struct {
	net.Conn
	limit int
}

func (c failingConn) Write(p []byte) (int, error) {
	if len(p) > c.limit {
		return 0, errors.New("message too long")
	}
	return c.Conn.Write(p)
}

// TestFlowsOversized holds that a datagram that is refused is counted, and
// that its flow ends only where it cannot have been the size.
func TestFlowsOversized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, replies, end := newTestFlows(t, 10)
		defer end()
		told := 0
		fs.failed = func(error) { told++ }
		pipe := fs.dial
		limit := 2000
		fs.dial = func(ctx context.Context, key int) (net.Conn, error) {
			conn, err := pipe(ctx, key)
			return failingConn{conn, limit}, err
		}
		fs.send(1, make([]byte, 2001))
		fs.send(1, bytes.Repeat([]byte("x"), 2000))
		<-replies
		synctest.Wait()
		if dropped, total := fs.count.dropped.Load(), fs.count.total.Load(); dropped != 1 || total != 1 || told != 1 {
			t.Errorf("dropped %d, told of %d, in %d flows; want 1, 1, 1", dropped, told, total)
		}
		limit = 0
		fs.send(2, []byte("x"))
		synctest.Wait()
		if open := fs.count.open.Load(); open != 1 {
			t.Errorf("%d flows open, want the first alone", open)
		}
	})
}
