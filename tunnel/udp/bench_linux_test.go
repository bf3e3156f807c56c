package udp

import (
	"fmt"
	"testing"

	"github.com/weft-net/weft/tunnel"
)

// BenchmarkLoopback sends and receives in one goroutine, so that it shows the
// work of both and no hand-off.
func BenchmarkLoopback(b *testing.B) {
	for _, tt := range []struct{ total, segment int }{{44 * 1472, 1472}, {1472, 0}, {100, 0}} {
		b.Run(fmt.Sprintf("%d bytes of %d", tt.total, tt.segment), func(b *testing.B) {
			from, to := listen(b, on(loopbacks[0])), listen(b, on(loopbacks[0]))
			run := []tunnel.Datagrams{{Addr: to.Local(), Parts: parts(pattern(tt.total)), SegmentSize: tt.segment}}
			batch, arena := make([]tunnel.Datagrams, 64), make([]byte, 8*tunnel.MinArena)
			b.SetBytes(int64(tt.total))
			b.ReportAllocs()
			for b.Loop() {
				mustSend(b, from, run...)
				if _, err := to.Receive(batch, arena); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
