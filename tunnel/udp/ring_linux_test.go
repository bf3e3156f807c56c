package udp

import (
	"bytes"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/ring"
	"github.com/weft-net/weft/tunnel/internal/ring/ringtest"
)

// ringed is a group of one socket that receives by a Ring, in the test's thread.
func ringed(t *testing.T, config Config) (s *Socket, receive func(bytes int) []tunnel.Datagrams) {
	t.Helper()
	s = group(t, config, 1)[0]
	var streams []*ring.Stream
	r := ringtest.Start(t, func(r *ring.Ring) (err error) {
		streams, err = s.UseRing(r)
		return err
	})
	batch, arena := make([]tunnel.Datagrams, 64), make([]byte, tunnel.MinArena)
	return s, func(bytes int) (all []tunnel.Datagrams) {
		for bytes > 0 {
			for _, stream := range streams {
				stream.Renew()
			}
			if err := r.Enter(1); err != nil {
				t.Fatal(err)
			}
			n, err := s.Receive(batch, arena)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range batch[:n] {
				d.Data = append([]byte(nil), d.Data...)
				bytes -= len(d.Data)
				all = append(all, d)
			}
		}
		return all
	}
}

// By a Ring everything is received that is without, and the same said of it.
func TestRingReceives(t *testing.T) {
	for _, addr := range loopbacks {
		to, receive := ringed(t, on(addr))
		from := listen(t, on(addr))
		for _, test := range []struct {
			segment, total int
			ecn            uint8
		}{{0, 1, 0}, {0, 1472, 1}, {0, maxPayload, 2}, {100, 6300, 3}, {1472, 44 * 1472, 0}, {1472, 43*1472 + 5, 2}} {
			data := pattern(test.total)
			mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), SegmentSize: test.segment, ECN: test.ecn, Parts: parts(data)})
			got := receive(test.total)
			if len(got) != 1 || !bytes.Equal(got[0].Data, data) {
				t.Fatalf("%v, %+v: received %d runs", addr, test, len(got))
			}
			if d := got[0]; d.Addr != from.Local() || d.ECN != test.ecn || d.SegmentSize != test.segment || d.Unsummed {
				t.Errorf("%v, %+v: received from %v, segments of %d, ECN %d, unsummed: %v", addr, test, d.Addr, d.SegmentSize, d.ECN, d.Unsummed)
			}
		}
		// More than there are slots, in order.
		const many = 3 * receiveBatch
		for i := range many {
			mustSend(t, from, tunnel.Datagrams{Addr: to.Local(), ECN: uint8(i % 4), Parts: [][]byte{{byte(i)}}})
		}
		for i, d := range receive(many) {
			if d.Data[0] != byte(i) || d.ECN != uint8(i%4) {
				t.Errorf("%v: datagram %d is number %d, ECN %d", addr, i, d.Data[0], d.ECN)
			}
		}
	}
}

// What is too short for what the kernel says of a message is no message.
func TestRingDecode(t *testing.T) {
	for size := range 16 + nameSpace + controlSpace {
		if (&Socket{}).decode(&tunnel.Datagrams{}, make([]byte, size)) {
			t.Errorf("%d bytes are a message", size)
		}
	}
}
