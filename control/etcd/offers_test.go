package etcd

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/weft-net/weft/control"
)

// Offers are one more field of the value: written to the byte, read by others,
// put right where someone changes them, and gone with the engine that made them.
func TestOffers(t *testing.T) {
	st := network(t, net4)
	checksums := control.Offers{VXLAN: control.VXLANOffer{RemoteChecksum: true}}
	offering := claim(1)
	offering.Offers = checksums
	cfg := st.config()
	cfg.Previous = append(cfg.Previous, prefix("10.244.1.0/24"))
	s := st.source(cfg)
	if got := st.acquire(s, offering); got.Offers != checksums {
		t.Errorf("have %+v", got)
	}
	const key = "subnets/10.244.1.0-24"
	value := strings.TrimSuffix(value4(1), "}") + `,"WeftOffers":{"version":1,"vxlan":{"remoteChecksum":true}}}`
	before := st.all()[key]
	if before.value != value {
		t.Errorf("have %s, want %s", before.value, value)
	}

	own := st.run(s)
	offers := func(want control.Offers, problems int) func(control.Snapshot) bool {
		return func(s control.Snapshot) bool {
			l := s.Leases[0]
			return len(l.Legs) == 1 && l.Offers == want && len(l.Problems) == problems
		}
	}
	own.until("the own offers", offers(checksums, 0))
	st.put(key, value4(1), clientv3.WithLease(before.etcd))
	own.until("the offers put back", func(s control.Snapshot) bool {
		return offers(checksums, 0)(s) && st.all()[key].value == value
	})

	peer := member(t, st, st.config(), 2)
	st.put(key, strings.Replace(value, `"version":1`, `"version":2`, 1), clientv3.WithLease(before.etcd))
	peer.until("a problem, and the leg", offers(control.Offers{}, 1))
	own.cancel()

	// The kernel's engine on the same host offers nothing.
	st.acquire(st.source(cfg), claim(1))
	if have := st.all()[key].value; have != value4(1) {
		t.Errorf("have %s, want %s", have, value4(1))
	}
	peer.until("no offers", offers(control.Offers{}, 0))
}
