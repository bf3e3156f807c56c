package datapath

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/ring"
	"github.com/weft-net/weft/tunnel/tundev"
)

// newRinged is a ringPoller of what comes through the pipes that it writes to.
func newRinged(t *testing.T, pipes int) (p *ringPoller, writers []*os.File) {
	t.Helper()
	r, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	var streams [][]*ring.Stream
	for range pipes {
		from, to, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = from.Close(), to.Close() })
		stream, err := r.Stream(ring.StreamConfig{Descriptor: int(from.Fd()), SlotSize: 1 << 10, Slots: 4, Large: 2})
		if err != nil {
			t.Fatal(err)
		}
		streams, writers = append(streams, []*ring.Stream{stream}), append(writers, to)
	}
	if p, err = newRingPoller(r, streams, time.Hour); err != nil {
		t.Fatal(err)
	}
	return p, writers
}

// What has come is ready until it is taken, and with a spin as without one.
func TestRingPollerReady(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, writers := newRinged(t, 2)
	p.spin.patience = time.Hour // however busy the machine is
	for _, test := range []struct {
		spin  bool
		write []int
		ready uint64
	}{{false, []int{1}, 2}, {false, []int{0}, 1}, {true, []int{1}, 2}, {false, []int{0, 1}, 3}} {
		p.spin.soon = test.spin
		write := func() {
			for _, i := range test.write {
				if _, err := writers[i].Write([]byte("hello")); err != nil {
					t.Error(err)
				}
			}
		}
		if test.spin {
			time.AfterFunc(5*time.Millisecond, write)
		} else {
			write()
		}
		for range 2 {
			if ready, err := p.Wait(test.spin); ready != test.ready || err != nil {
				t.Errorf("%v are written to: ready %b, %v, want %b", test.write, ready, err, test.ready)
			}
		}
		for _, i := range test.write {
			if slot, ok, errno := p.streams[i][0].Take(); !ok || slot.Length != 5 || errno != 0 {
				t.Errorf("took %+v, %v, %v", slot, ok, errno)
			}
		}
	}
	if p.spin.soon {
		t.Error("the poller has slept where it was to spin")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// However much more comes than there is room for, all of it is waited for, and the kernel
// need not say in one go that it has come and that there was no more room.
func TestRingPollerRunsDry(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	r, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := r.Stream(ring.StreamConfig{Descriptor: fds[0], SlotSize: 64, Slots: 2, Large: 2})
	if err != nil {
		t.Fatal(err)
	}
	p, err := newRingPoller(r, [][]*ring.Stream{{stream}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	overdue := time.AfterFunc(10*time.Second, func() { panic("a message is overlooked") })
	defer overdue.Stop()
	for round := range 100 {
		const sent = 5
		for i := range sent {
			if _, err := unix.Write(fds[1], []byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		for got := 0; got < sent; {
			if _, err := p.Wait(false); err != nil {
				t.Fatal(err)
			}
			for more := true; more; {
				if _, more, _ = stream.Take(); more {
					got++
				}
			}
			for range round % 3 {
				unix.Getppid() // a call, after which the kernel may say something
			}
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// Close ends a Wait, and returns when the thread that waited has ended what the ring
// did; before a Wait there is nothing to wait for.
func TestRingPollerClosed(t *testing.T) {
	p, _ := newRinged(t, 1)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Wait(false); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Wait after Close: %v, want ErrClosed", err)
	}
	for _, spin := range []bool{true, false} {
		p, _ := newRinged(t, 1)
		p.spin.soon = spin
		ended := make(chan struct{})
		go func() {
			runtime.LockOSThread() // for good
			defer close(ended)
			for range 2 {
				if _, err := p.Wait(spin); !errors.Is(err, tunnel.ErrClosed) {
					t.Errorf("Wait during Close: %v, want ErrClosed", err)
				}
			}
			time.Sleep(5 * time.Millisecond)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(5 * time.Millisecond)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		select {
		case <-p.freed:
		default:
			t.Error("Close has returned before the ring was freed")
		}
		<-ended
	}
}

// Without io_uring workers do without, and say so once and in the status, unless that was
// insisted on.
func TestWantsRing(t *testing.T) {
	for _, test := range []struct {
		wish    tunnel.Switch
		refused error
		want    bool
		why     string // "": it is an error
	}{
		{tunnel.Auto, nil, true, "-"},
		{tunnel.On, nil, true, "-"},
		{tunnel.Off, nil, false, "no io_uring: switched off"},
		{tunnel.Auto, unix.EPERM, false, "no io_uring: operation not permitted"},
		{tunnel.On, unix.EPERM, false, ""},
	} {
		var log bytes.Buffer
		queues := []*tundev.Device{{}, {}}
		config := Config{Device: "weft0", Offloads: Offloads{Ring: test.wish}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		got, err := wantsRing(config, queues, func() error { return test.refused })
		if got != test.want || (err != nil) != (test.why == "") {
			t.Errorf("%v, %v: %v, %v", test.wish, test.refused, got, err)
		}
		if err != nil && !errors.Is(err, test.refused) {
			t.Errorf("%v: %v, want %v", test.wish, err, test.refused)
		}
		lacking := err == nil && !test.want
		if n := strings.Count(log.String(), test.why); lacking != (n == 1 && test.why != "") {
			t.Errorf("%v, %v: logged %q", test.wish, test.refused, &log)
		}
		for _, queue := range queues {
			if why := strings.Join(queue.Offloads().Why, "; "); lacking && why != test.why || !lacking && why != "" {
				t.Errorf("%v, %v: a queue lacks %q, want %q", test.wish, test.refused, why, test.why)
			}
		}
	}
}
