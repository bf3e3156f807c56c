package engine

import (
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// acks are packets with these acknowledgements; 0 stands for a packet with data.
func acks(p tunneltest.Packet, acknowledgments ...uint32) (all []tunneltest.Packet) {
	for _, n := range acknowledgments {
		next := p
		if next.Acknowledgment = n; n == 0 {
			next.Payload = []byte("data")
		}
		all = append(all, next)
		p.ID++
	}
	return all
}

func bytesOf(packets []tunneltest.Packet) (all [][]byte) {
	for _, p := range packets {
		all = append(all, p.Bytes())
	}
	return all
}

// ackTests are acknowledgements in one batch, and which of them remain: those after
// which comes no other that says more.
var ackTests = map[string]struct {
	given []uint32
	left  []int
}{
	"one":              {[]uint32{100}, []int{0}},
	"ever more":        {[]uint32{100, 200, 300}, []int{2}},
	"something lost":   {[]uint32{100, 200, 200, 200, 300}, []int{1, 2, 4}},
	"out of order":     {[]uint32{100, 300, 200}, []int{1, 2}},
	"data between":     {[]uint32{100, 0, 200, 300}, []int{0, 1, 3}},
	"the end, wrapped": {[]uint32{1<<32 - 1, 1, 2}, []int{2}},
}

func TestAcksFiltered(t *testing.T) {
	for name, tt := range ackTests {
		t.Run(name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, is4 bool) {
				filtered := uint64(len(tt.given) - len(tt.left))
				t.Run("rx", func(t *testing.T) {
					r := newRig(t, everything())
					given := bytesOf(acks(toHere(is4, nil), tt.given...))
					r.inject(far, given...)
					got, _ := r.delivered()
					r.equal(got, choose(given, tt.left))
					r.want(map[Counter]uint64{RxAcksFiltered: filtered, RxPackets: uint64(len(given)), RxWrites: uint64(len(tt.left))})
				})
				t.Run("tx", func(t *testing.T) {
					r := newRig(t, everything())
					given := bytesOf(acks(toFar(is4, nil), tt.given...))
					r.send(finished(given...)...)
					r.equal(r.inners(), choose(given, tt.left))
					r.want(map[Counter]uint64{TxAcksFiltered: filtered, TxPackets: uint64(len(given)), TxDatagrams: uint64(len(tt.left))})
				})
			})
		})
	}
}

func choose(given [][]byte, indexes []int) (chosen [][]byte) {
	for _, i := range indexes {
		chosen = append(chosen, given[i])
	}
	return chosen
}

// What is not known to be whole takes no other packet's place, and what is to be
// kept is.
func TestAcksNotFiltered(t *testing.T) {
	given := bytesOf(acks(toHere(true, nil), 100, 200))
	damaged := append([]byte(nil), given[1]...)
	damaged[len(damaged)-1] ^= 1
	r := newRig(t, everything())
	r.inject(far, given[0], damaged)
	got, _ := r.delivered()
	r.equal(got, [][]byte{given[0], damaged})

	outgoing := bytesOf(acks(toFar(true, nil), 100, 200))
	outgoing[1][len(outgoing[1])-1] ^= 1
	r.send(finished(outgoing...)...)
	r.equal(r.inners(), outgoing)

	r = newRig(t, everything())
	r.engine.keepAcks = true
	r.inject(far, given...)
	got, _ = r.delivered()
	r.equal(got, given)
	r.send(finished(bytesOf(acks(toFar(true, nil), 100, 200))...)...)
	r.want(map[Counter]uint64{TxAcksFiltered: 0, RxAcksFiltered: 0, TxDatagrams: 2})
}

// A checksum that is put off is put off in the packet that is left.
func TestAcksUnfinished(t *testing.T) {
	var outgoing []tunnel.Outgoing
	given := acks(toFar(true, nil), 100, 200)
	for _, p := range given {
		outgoing = append(outgoing, out(p.Partial()))
	}
	r := newRig(t, everything())
	r.send(outgoing...)
	r.equal(r.inners(), bytesOf(given[1:]))

	r = newRig(t, everything())
	for _, p := range acks(toHere(true, nil), 100, 200) {
		data, _ := p.Partial()
		r.wire.Inject(farOuter, hereOuter, 0, far.frame(data))
	}
	r.receive()
	got, offloads := r.delivered()
	r.equal(got, bytesOf(acks(toHere(true, nil), 100, 200)[1:]))
	if len(offloads) != 1 || !offloads[0].NeedsChecksum {
		t.Errorf("written with %+v, want a checksum to be finished", offloads)
	}
}
