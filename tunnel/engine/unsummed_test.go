package engine

import (
	"bytes"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// What bears no outer checksum is let in, its inner checksum is looked at before
// it is joined to anything, and its sender is spoken of once.
func TestReceiveUnsummed(t *testing.T) {
	r := newRig(t, everything())
	data, offload := toHere(true, make([]byte, 5000)).Super(1000)
	packets, err := tunneltest.Finish(data, offload)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(packets[2])
	bad[len(bad)-1]++
	packets[2] = bad
	var runs []tunnel.Datagrams
	for _, p := range packets {
		runs = append(runs, tunnel.Datagrams{Addr: farOuter, Data: far.frame(p), Unsummed: true})
	}
	r.process(runs...)
	var got [][]byte
	for range 3 { // two before the bad one, it, and two behind
		data, offload, ok := r.host.TryRead()
		if !ok {
			t.Fatal("too few writes")
		}
		if offload == (tunnel.Offload{}) {
			got = append(got, data)
			continue
		}
		finished, err := tunneltest.Finish(data, offload)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, finished...)
	}
	r.equal(got, packets)
	r.process(runs...)
	r.want(map[Counter]uint64{RxUnsummed: 10, RxPackets: 10})
	if n := r.logged("set udpcsum"); n != 1 {
		t.Errorf("said %d times:\n%s", n, r.log)
	}
	r.process(tunnel.Datagrams{Addr: thirdOuter, Data: thrd.frame(between(thrd, here, true, nil).Bytes()), Unsummed: true})
	if n := r.logged("set udpcsum"); n != 2 {
		t.Errorf("said %d times of two peers:\n%s", n, r.log)
	}
}
