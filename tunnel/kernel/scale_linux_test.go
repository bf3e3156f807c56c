package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
)

// manyPeers returns the objects for n peers on flannel.1.
func manyPeers(n int) (objects []tunnel.Object) {
	for i := range n {
		mac := tunnel.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
		var subnet, remote [4]byte
		binary.BigEndian.PutUint32(subnet[:], 10<<24|uint32(i+1)<<8)
		binary.BigEndian.PutUint32(remote[:], 172<<24|16<<16|uint32(i+1))
		objects = append(objects, peer("flannel.1", fmt.Sprintf("%s/24", netip.AddrFrom4(subnet)), mac, netip.AddrFrom4(remote).String())...)
	}
	return objects
}

// TestManyPeers programs the size that flannel stopped at.
func TestManyPeers(t *testing.T) {
	h := newHost(t)
	objects := append([]tunnel.Object{device4()}, manyPeers(5000)...)
	h.apply(objects...)
	h.check(objects...)
	h.awaitToken("5000 peers")
	h.reconcile()
	h.check()
}

func BenchmarkApplyPeer(b *testing.B) {
	driver := benchDriver(b)
	objects := manyPeers(5000)
	b.ResetTimer()
	for i := range b.N {
		for _, want := range objects[i%5000*3:][:3] {
			if err := driver.Apply(b.Context(), want); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkObserve5000(b *testing.B) {
	driver := benchDriver(b)
	for _, want := range manyPeers(5000) {
		if err := driver.Apply(b.Context(), want); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		have, err := driver.Observe(b.Context())
		if err != nil || len(have) != 15001 {
			b.Fatal(len(have), err)
		}
	}
}

func benchDriver(b *testing.B) (driver *Driver) {
	b.Helper()
	host, err := labtest.New(b).Host(lab.HostConfig{Name: "a", Addresses: underlay})
	if err != nil {
		b.Fatal(err)
	}
	if err := host.Do(func() (err error) {
		driver, err = Open(Config{Logger: discard})
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { driver.Close() })
	if err := driver.Apply(b.Context(), device4()); err != nil {
		b.Fatal(err)
	}
	return driver
}
