package differential

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
)

// TestReceiveCases is what chance brings about too seldom.
func TestReceiveCases(t *testing.T) {
	tests := []struct {
		name   string
		change func(first []byte) // the first of two packets that arrive as one run
	}{
		{"nothing", func([]byte) {}},
		{"length beyond the datagram", func(first []byte) {
			binary.BigEndian.PutUint16(first[2:], uint16(len(first)+10))
			sumHeader(first)
		}},
	}
	n := networks[0]
	w := newWorld(t, n, lab.OffloadNone)
	j := newJudge(t, receive)
	x := newReception(t, w, j)
	g := newGenerator(j.seed, receive, n)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			x.t = t
			var datagrams []datagram
			for i := range 2 {
				c := x.nextCase(true)
				p := g.simple(peer.random(g, true), own.address(c.number, true), 100)
				p.Protocol = 17
				c.kind, c.sent = test.name, [][]byte{p.Bytes()}
				if i == 0 {
					test.change(c.sent[0])
				}
				datagrams = append(datagrams, datagram{payload: frame(c.sent[0], true), from: netip.AddrPortFrom(w.outer, port)})
				x.batch = append(x.batch, c)
			}
			x.send(datagrams)
			x.settle()
		})
	}
}
