package ring

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	slotSize = 1 << 10
	slots    = 8
	large    = 2
)

// open opens a Ring for the test's thread, stopped and closed when the test ends. What is
// made before Start is made in prepare.
func open(t *testing.T, prepare func(r *Ring)) *Ring {
	t.Helper()
	runtime.LockOSThread()
	r, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	prepare(r)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.Stop(), r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// pair is two sockets that messages go between.
func pair(t *testing.T) (from, to int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
	return fds[0], fds[1]
}

func newStream(t *testing.T, r *Ring, fd int) *Stream {
	t.Helper()
	s, err := r.Stream(StreamConfig{Descriptor: fd, SlotSize: slotSize, Slots: slots, Large: large, Offset: 10})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// send sends messages of a size, number first and after it.
func send(t *testing.T, fd, first, count, size int) {
	t.Helper()
	for i := range count {
		if _, err := unix.Write(fd, message(first+i, size)); err != nil {
			t.Fatal(err)
		}
	}
}

func message(number, size int) []byte {
	return append(fmt.Appendf(nil, "%04d", number), bytes.Repeat([]byte{byte(number)}, size-4)...)
}

// take takes what has arrived, which are messages of that size from number first on.
func take(t *testing.T, s *Stream, first, size int) (taken []Slot) {
	t.Helper()
	for {
		slot, ok, errno := s.Take()
		if errno != 0 {
			t.Fatal(errno)
		}
		if !ok {
			return taken
		}
		taken = append(taken, slot)
		if got, want := in(s, slot), message(first+len(taken)-1, size); !bytes.Equal(got, want) {
			t.Errorf("slot %d has %.8q, want %.8q", slot.Number, got, want)
		}
	}
}

// in is what is in a slot.
func in(s *Stream, slot Slot) []byte {
	return s.Memory()[slot.Number*slotSize+10:][:slot.Length]
}

func TestSupported(t *testing.T) {
	if err := Supported(); err != nil {
		t.Error(err)
	}
}

// Everything arrives in order, however much more than there are slots, and what has been
// taken stays as it is until it is given back.
func TestStream(t *testing.T) {
	for _, size := range []int{10, 900} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			from, to := pair(t)
			var s *Stream
			r := open(t, func(r *Ring) { s = newStream(t, r, from) })
			const total = 5 * slots
			next, sent := 0, 0
			for next < total {
				for ; sent < total && sent < next+slots; sent++ {
					send(t, to, sent, 1, size)
				}
				s.Renew()
				if err := r.Enter(1); err != nil {
					t.Fatal(err)
				}
				taken := take(t, s, next, size)
				if most := map[int]int{10: slots, 900: large}[size]; len(taken) > most {
					t.Errorf("%d slots of %d bytes are used, want at most %d", len(taken), size, most)
				}
				if err := r.Enter(0); err != nil {
					t.Fatal(err)
				}
				for i, slot := range taken {
					if !bytes.Equal(in(s, slot), message(next+i, size)) {
						t.Errorf("slot %d has changed while it was taken", slot.Number)
					}
				}
				next += len(taken)
			}
		})
	}
}

// What there was no slot for is taken up by Refill.
func TestStreamDry(t *testing.T) {
	from, to := pair(t)
	var s *Stream
	r := open(t, func(r *Ring) { s = newStream(t, r, from) })
	s.Renew()
	send(t, to, 0, large+1, 10)
	if err := r.Enter(1); err != nil {
		t.Fatal(err)
	}
	for range large { // the kernel says that it has stopped with the last one or after it
		if err := r.Enter(0); err != nil {
			t.Fatal(err)
		}
	}
	if taken := take(t, s, 0, 10); len(taken) != large || !s.Dry() {
		t.Errorf("%d have arrived, dry: %v, want %d and true", len(taken), s.Dry(), large)
	}
	if err := s.Refill(); err != nil {
		t.Fatal(err)
	}
	if taken := take(t, s, large, 10); len(taken) != 1 || s.Dry() {
		t.Errorf("%d more have arrived, dry: %v, want 1 and false", len(taken), s.Dry())
	}
	calls := r.Calls()
	if err := s.Refill(); err != nil || r.Calls() != calls {
		t.Errorf("Refill of what is not dry: %v, %d calls", err, r.Calls()-calls)
	}
}

// A Stream that cannot go on says why, after all that had arrived.
func TestStreamEnds(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	for name, test := range map[string]struct {
		fd   int
		want unix.Errno
	}{"no descriptor": {-1, unix.EBADF}, "end of a pipe": {pipe[0], unix.EPIPE}} {
		t.Run(name, func(t *testing.T) {
			var s *Stream
			r := open(t, func(r *Ring) { s = newStream(t, r, test.fd) })
			s.Renew()
			if test.fd >= 0 {
				send(t, pipe[1], 0, 1, 10)
				if err := r.Enter(1); err != nil {
					t.Fatal(err)
				}
				unix.Close(pipe[1])
			}
			for !s.Ready() || s.err == 0 {
				if err := r.Enter(1); err != nil {
					t.Fatal(err)
				}
			}
			if test.fd >= 0 {
				if _, ok, errno := s.Take(); !ok || errno != 0 {
					t.Errorf("what had arrived is not returned: %v", errno)
				}
			}
			for range 2 {
				if _, ok, errno := s.Take(); ok || errno != test.want {
					t.Errorf("Take = %v, %v, want false, %v", ok, errno, test.want)
				}
				s.Renew()
			}
		})
	}
}

// Writes have room for so many, and so many parts.
func TestWritesRoom(t *testing.T) {
	var w *Writes
	open(t, func(r *Ring) { w = r.Writes(-1, 4, 5) })
	w.Add([]byte{1}, [][]byte{{2}, {3}})
	if !w.Room(2) || w.Room(3) {
		t.Errorf("room for 2: %v, for 3: %v", w.Room(2), w.Room(3))
	}
	if results, err := w.Do(); err != nil || !slices.Equal(results, []int32{-int32(unix.EBADF)}) || !w.Room(5) {
		t.Errorf("results %v, %v, then room: %v", results, err, w.Room(5))
	}
}

// Writes are done in order by one call, those behind one that fails, too.
func TestWrites(t *testing.T) {
	from, to := pair(t)
	var w *Writes
	r := open(t, func(r *Ring) { w = r.Writes(to, 4, 20) })
	for range 2 {
		sizes := []int{10, 20, 1 << 20, 30}
		for i, size := range sizes {
			data := message(i, size)
			if !w.Room(3) {
				t.Errorf("no room for number %d", i)
			}
			w.Add(data[:5], [][]byte{data[5:7], data[7:]})
		}
		if w.Room(1) || w.Queued() != len(sizes) {
			t.Errorf("room for more than %d, or %d are queued", len(sizes), w.Queued())
		}
		before := r.Calls()
		results, err := w.Do()
		if want := []int32{10, 20, -int32(unix.EMSGSIZE), 30}; err != nil || !slices.Equal(results, want) || r.Calls() != before+1 {
			t.Fatalf("results %v, %v, %d calls, want %v and 1", results, err, r.Calls()-before, want)
		}
		for i, size := range []int{10, 20, 0, 30} {
			if size == 0 {
				continue
			}
			buffer := make([]byte, 100)
			if n, err := unix.Read(from, buffer); err != nil || !bytes.Equal(buffer[:n], message(i, size)) {
				t.Errorf("wrote %.8q, %v", buffer[:n], err)
			}
		}
	}
}

// A descriptor that is watched ends every Enter that waits.
func TestWatch(t *testing.T) {
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	r := open(t, func(r *Ring) { r.Watch(event) })
	time.AfterFunc(5*time.Millisecond, func() { _, _ = unix.Write(event, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	for range 5 {
		if err := r.Enter(1); err != nil {
			t.Fatal(err)
		}
		r.Reap()
	}
}

// After Stop nothing is left of what a Ring was told to do; after Close it does nothing.
func TestStop(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	from, to := pair(t)
	s := newStream(t, r, from)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	s.Renew()
	if err := r.Enter(0); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(); err != nil || r.left != 0 {
		t.Errorf("Stop: %v, %d operations are left", err, r.left)
	}
	send(t, to, 0, 1, 10)
	if n, err := unix.Read(from, make([]byte, 100)); n != 10 || err != nil {
		t.Errorf("after Stop the Ring still reads: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.Enter(0); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Enter after Close: %v, want ErrClosed", err)
	}
}
