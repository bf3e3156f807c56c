package udp

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

var _ tunnel.Socket = (*Socket)(nil)

var loopbacks = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}

// listen opens a socket that is closed with the test.
func listen(t testing.TB, config Config) *Socket {
	t.Helper()
	s, err := Listen(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// on is a Config for any free port of addr.
func on(addr netip.Addr) Config { return Config{Addr: netip.AddrPortFrom(addr, 0)} }

// pattern is n bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// cut is a run as separate datagrams.
func cut(data []byte, segment int) (out [][]byte) {
	if segment == 0 {
		segment = max(len(data), 1)
	}
	for len(data) > segment {
		out, data = append(out, data[:segment]), data[segment:]
	}
	return append(out, data)
}

// parts splits b at odd places, as headers and payload slices do.
func parts(b []byte) [][]byte {
	if len(b) < 3 {
		return [][]byte{b}
	}
	return [][]byte{b[:1], b[1 : len(b)/2], b[len(b)/2:]}
}

// mustSend sends all of batch.
func mustSend(t testing.TB, s *Socket, batch ...tunnel.Datagrams) {
	t.Helper()
	if n, err := s.Send(batch); n != len(batch) || err != nil {
		t.Fatalf("Send = %d, %v, want %d, nil", n, err, len(batch))
	}
}

// receive receives until it has want datagrams, and returns them one by one
// together with the runs they came in.
func receive(t testing.TB, s *Socket, want int) (datagrams [][]byte, runs []tunnel.Datagrams) {
	t.Helper()
	batch, arena := make([]tunnel.Datagrams, 16), make([]byte, 4*tunnel.MinArena)
	for len(datagrams) < want {
		n, err := s.Receive(batch, arena)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range batch[:n] {
			d.Data = bytes.Clone(d.Data)
			runs = append(runs, d)
			datagrams = append(datagrams, cut(d.Data, d.SegmentSize)...)
		}
	}
	return datagrams, runs
}

func TestBatchOfManyDestinations(t *testing.T) {
	const each = 64
	for _, addr := range loopbacks {
		from := listen(t, on(addr))
		to := []*Socket{listen(t, on(addr)), listen(t, on(addr)), listen(t, on(addr))}
		var batch []tunnel.Datagrams
		for i := range 3 * each {
			batch = append(batch, tunnel.Datagrams{Addr: to[i%len(to)].Local(), Parts: [][]byte{{byte(i)}}})
		}
		mustSend(t, from, batch...)
		for k, s := range to {
			got, _ := receive(t, s, each)
			for i, b := range got {
				if want := byte(k + i*len(to)); b[0] != want {
					t.Fatalf("%v: socket %d got %d as number %d, want %d", addr, k, b[0], i, want)
				}
			}
		}
	}
}

func TestClose(t *testing.T) {
	for _, addr := range loopbacks {
		s := listen(t, on(addr))
		done := make(chan error)
		go func() {
			_, err := s.Receive(make([]tunnel.Datagrams, 1), make([]byte, tunnel.MinArena))
			done <- err
		}()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, tunnel.ErrClosed) {
			t.Errorf("Receive during Close: %v, want %v", err, tunnel.ErrClosed)
		}
		if _, err := s.Receive(make([]tunnel.Datagrams, 1), make([]byte, tunnel.MinArena)); !errors.Is(err, tunnel.ErrClosed) {
			t.Errorf("Receive after Close: %v, want %v", err, tunnel.ErrClosed)
		}
		if _, err := s.Send(make([]tunnel.Datagrams, 1)); !errors.Is(err, tunnel.ErrClosed) {
			t.Errorf("Send after Close: %v, want %v", err, tunnel.ErrClosed)
		}
	}
}

func TestCloseUnderLoad(t *testing.T) {
	a, b := listen(t, on(loopbacks[0])), listen(t, on(loopbacks[0]))
	started := make(chan bool, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		batch, arena := make([]tunnel.Datagrams, 8), make([]byte, 4*tunnel.MinArena)
		for {
			if _, err := b.Receive(batch, arena); err != nil {
				return
			}
			select {
			case started <- true:
			default:
			}
		}
	})
	wait.Go(func() {
		single := []tunnel.Datagrams{{Addr: b.Local(), Parts: parts(pattern(1000))}}
		for {
			if _, err := a.Send(single); errors.Is(err, tunnel.ErrClosed) {
				return
			}
		}
	})
	<-started
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	wait.Wait()
}

func TestSmallArena(t *testing.T) {
	s := listen(t, on(loopbacks[0]))
	if _, err := s.Receive(make([]tunnel.Datagrams, 1), make([]byte, tunnel.MinArena-1)); err == nil {
		t.Error("an arena below MinArena was accepted")
	}
	for range 5 {
		mustSend(t, s, tunnel.Datagrams{Addr: s.Local(), Parts: [][]byte{pattern(2000)}})
	}
	// The smallest arena holds one datagram of unknown size at a time.
	batch, arena := make([]tunnel.Datagrams, 8), make([]byte, tunnel.MinArena)
	for range 5 {
		if n, err := s.Receive(batch, arena); n != 1 || err != nil {
			t.Errorf("Receive = %d, %v, want 1, nil", n, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	addr := netip.MustParseAddrPort("127.0.0.1:0")
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{}, "Addr is not set"},
		{Config{Addr: netip.MustParseAddrPort("[::ffff:127.0.0.1]:0")}, "unmap it"},
		{Config{Addr: addr, SendSockets: -1}, "SendSockets is -1"},
		{Config{Addr: addr, SendSockets: MaxSendSockets + 1}, "SendSockets is 65"},
		{Config{Addr: addr, SendBuffer: -1}, "buffers are 0 and -1"},
		{Config{Addr: netip.MustParseAddrPort("192.0.2.1:8472")}, "listen on 192.0.2.1:8472"},
	} {
		s, err := Listen(tt.config)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Listen(%+v) = %v, want %q in the error", tt.config, err, tt.want)
		}
	}
}

func TestWhatNeverFits(t *testing.T) {
	from := listen(t, on(loopbacks[0]))
	for _, tt := range []struct {
		name string
		bad  tunnel.Datagrams
		want error
	}{
		{"other family", tunnel.Datagrams{Addr: netip.MustParseAddrPort("[::1]:9"), Parts: [][]byte{{1}}}, errFamily},
		{"no address", tunnel.Datagrams{Parts: [][]byte{{1}}}, errFamily},
		{"too big", tunnel.Datagrams{Addr: from.Local(), Parts: [][]byte{pattern(maxPayload + 1)}}, tunnel.ErrTooBig},
		{"run", tunnel.Datagrams{Addr: from.Local(), Parts: [][]byte{pattern(maxPayload + 1)}, SegmentSize: 40000}, tunnel.ErrOffload},
	} {
		ok := tunnel.Datagrams{Addr: from.Local(), Parts: [][]byte{{1}}}
		if n, err := from.Send([]tunnel.Datagrams{ok, tt.bad, ok}); n != 1 || !errors.Is(err, tt.want) {
			t.Errorf("%s: Send = %d, %v, want 1, %v", tt.name, n, err, tt.want)
		}
	}
}
