package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// tcpPair returns the two ends of a stream over loopback.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial(TCP, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	deadline := time.Now().Add(30 * time.Second)
	_ = dialled.SetDeadline(deadline)
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// startRelay relays between two pairs and returns the outer ends.
func startRelay(t *testing.T) (near, far *net.TCPConn, done chan struct{}, cancel context.CancelFunc) {
	t.Helper()
	near, innerNear := tcpPair(t)
	far, innerFar := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	done = make(chan struct{})
	go func() {
		defer close(done)
		relay(ctx, newCounted(innerNear, &traffic{}), innerFar)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return near, far, done, cancel
}

func readAll(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	if got, err := io.ReadAll(conn); err != nil || string(got) != want {
		t.Errorf("read %.40q, %v; want %q", got, err, want)
	}
}

// TestRelayHalfClose holds that the end of each direction arrives alone, in
// either order.
func TestRelayHalfClose(t *testing.T) {
	for _, nearFirst := range []bool{true, false} {
		near, far, done, _ := startRelay(t)
		first, second := near, far
		if !nearFirst {
			first, second = far, near
		}
		io.WriteString(first, "question")
		first.CloseWrite()
		readAll(t, second, "question")
		io.WriteString(second, "answer")
		second.CloseWrite()
		readAll(t, first, "answer")
		<-done
	}
}

// TestRelayReset holds that a reset arrives as a reset on the other side.
func TestRelayReset(t *testing.T) {
	for _, ofNear := range []bool{true, false} {
		near, far, done, _ := startRelay(t)
		broken, other := near, far
		if !ofNear {
			broken, other = far, near
		}
		io.WriteString(broken, "x")
		if _, err := io.ReadFull(other, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		broken.SetLinger(0)
		broken.Close()
		if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("near %v: other side reads %v, want a reset", ofNear, err)
		}
		<-done
	}
}

// TestRelayVanishedReader holds that who has closed altogether, and not one
// direction alone, is let go when something is sent to him.
func TestRelayVanishedReader(t *testing.T) {
	near, far, done, _ := startRelay(t)
	near.Close()
	readAll(t, far, "")
	for range 1000 {
		if _, err := far.Write(make([]byte, 1000)); err != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	<-done
}

// TestRelayBytes sends more than all buffers hold, both ways at once.
func TestRelayBytes(t *testing.T) {
	near, far, done, _ := startRelay(t)
	sent := make([]byte, 8<<20)
	rand.Read(sent)
	var all sync.WaitGroup
	for _, ends := range [][2]*net.TCPConn{{near, far}, {far, near}} {
		all.Go(func() {
			ends[0].Write(sent)
			ends[0].CloseWrite()
		})
		all.Go(func() {
			if got, err := io.ReadAll(ends[1]); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("got %d bytes, %v; want the %d sent", len(got), err, len(sent))
			}
		})
	}
	all.Wait()
	<-done
}

func TestRelayCancel(t *testing.T) {
	near, far, done, cancel := startRelay(t)
	cancel()
	<-done
	for _, conn := range []net.Conn{near, far} {
		if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("after the end a side reads: %v", err)
		}
	}
}

// halfPipe is a net.Pipe whose sending direction can be closed alone.
type halfPipe struct {
	net.Conn
	ended chan struct{}
}

func (p halfPipe) CloseWrite() error { close(p.ended); return nil }

// endsOnce reads like its connection until ended is closed, and then the end.
type endsOnce struct {
	halfPipe
	stop chan struct{}
}

func (e endsOnce) Read([]byte) (int, error) {
	<-e.stop
	return 0, io.EOF
}

// TestRelayIdle holds that a silent stream lives for ever while both
// directions are open, and is let go an hour after one of them ended.
func TestRelayIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := net.Pipe()
		far, peer := net.Pipe()
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			relay(t.Context(), endsOnce{halfPipe{near, make(chan struct{})}, stop}, halfPipe{far, make(chan struct{})})
		}()
		isDone := func() bool {
			synctest.Wait()
			select {
			case <-done:
				return true
			default:
				return false
			}
		}
		time.Sleep(1000 * time.Hour)
		if isDone() {
			t.Fatal("an idle stream was ended")
		}
		close(stop)
		time.Sleep(halfOpenIdle - time.Second)
		if isDone() {
			t.Fatal("a stream open in one direction was ended too early")
		}
		time.Sleep(2 * time.Second)
		if !isDone() {
			t.Error("a stream open in one direction alone was not ended")
		}
		peer.Close()
		<-done
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var pause backoff
		for range 20 {
			if !pause.wait(t.Context()) {
				t.Fatal("not waited")
			}
		}
		if took := time.Since(begun); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("20 failures took %v, want a bit more than a second each after the first few", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if pause.wait(ctx) {
			t.Error("waited although it was to end")
		}
	})
}
