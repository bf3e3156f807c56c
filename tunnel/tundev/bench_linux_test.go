package tundev

import (
	"fmt"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
)

// BenchmarkThroughKernel writes to one device and reads from another that the
// kernel forwards to, in one goroutine.
func BenchmarkThroughKernel(b *testing.B) {
	for _, tt := range []struct{ payload, segment int }{{43 * 1398, 1398}, {1398, 0}, {60, 0}} {
		b.Run(fmt.Sprintf("%d bytes of %d", tt.payload, tt.segment), func(b *testing.B) {
			host := hosts(b, "a")[0]
			from, to := open(b, host, Config{}, "10.77.0.1/24"), open(b, host, Config{Name: "weft1"}, "10.78.0.1/24")
			out := []tunnel.Outgoing{superPacket{network: "10.77.0.2 10.78.0.2", protocol: packet.TCP, payload: tt.payload, segment: tt.segment}.build()}
			packets, arena := make([]tunnel.Incoming, 64), make([]byte, 8*tunnel.MinArena)
			b.SetBytes(int64(tt.payload))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := from.Write(out); err != nil {
					b.Fatal(err)
				}
				if _, err := to.Read(packets, arena); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
