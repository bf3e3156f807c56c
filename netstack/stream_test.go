package netstack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// dialFunc and listenFunc make the two ends of streams.
type (
	dialFunc   func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	listenFunc func(is4 bool) (net.Listener, error)
)

func (s *site) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return s.DialContext(ctx, "tcp", to)
}

func (s *site) listen(is4 bool) (net.Listener, error) {
	return s.ListenTCP(netip.AddrPortFrom(s.addr(is4), 0))
}

// transfer sends size random bytes over TCP and compares what arrives.
func transfer(ctx context.Context, dial dialFunc, listen listenFunc, is4 bool, size int64) error {
	listener, err := listen(is4)
	if err != nil {
		return err
	}
	defer listener.Close()
	sent, got := sha256.New(), sha256.New()
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	group.Go(func() error {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err = io.Copy(got, conn)
		return err
	})
	group.Go(func() error {
		conn, err := dial(ctx, listener.Addr().(*net.TCPAddr).AddrPort())
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err = io.CopyN(io.MultiWriter(conn, sent), rand.NewChaCha8([32]byte{byte(size)}), size)
		return err
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	if string(sent.Sum(nil)) != string(got.Sum(nil)) {
		return errors.New("transfer: the stream arrived changed")
	}
	return nil
}

func timeout(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// TestStreams: TCP carries everything unchanged, both ways at once.
func TestStreams(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		for _, is4 := range []bool{true, false} {
			t.Run(fmt.Sprintf("v4=%v", is4), func(t *testing.T) {
				group, ctx := errgroup.WithContext(timeout(t, time.Minute))
				group.Go(func() error { return transfer(ctx, a.dial, b.listen, is4, 20<<20) })
				group.Go(func() error { return transfer(ctx, b.dial, a.listen, is4, 20<<20) })
				if err := group.Wait(); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestManyStreams: 64 streams, half of them either way, of either family.
func TestManyStreams(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		group, ctx := errgroup.WithContext(timeout(t, time.Minute))
		for i := range 64 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			group.Go(func() error { return transfer(ctx, from.dial, to.listen, i%4 < 2, 1<<20) })
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestPing: echo requests are answered, at the network address too, in
// fragments and by the Stack itself.
func TestPing(t *testing.T) {
	wires(t, func(t *testing.T, a, b *site) {
		for _, to := range []netip.Addr{
			b.addr(true), b.addr(false), b.addr(true).Next(), b.addr(false).Next(), a.addr(true), a.addr(false),
		} {
			for _, size := range []int{0, 56, 1400, 4000, 20000} {
				if _, err := a.Ping(timeout(t, 5*time.Second), to, size); err != nil {
					t.Errorf("ping %v with %d bytes: %v", to, size, err)
				}
			}
		}
	})
}
