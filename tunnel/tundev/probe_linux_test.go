package tundev

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// What a probe was refused for is not used, all else is.
func TestProbeWrites(t *testing.T) {
	for _, test := range []struct {
		refused        tunnel.GSOType
		tcp, udp       bool
		want           string
		offered, tried int
	}{
		{tunnel.GSONone, true, true, "", 2, 3},
		{tunnel.GSOTCP4, false, true, "no TCP", 2, 2},
		{tunnel.GSOTCP6, false, true, "no TCP", 2, 3},
		{tunnel.GSOUDP, true, false, "no UDP", 2, 3},
		{tunnel.GSONone, false, false, "", 0, 0},
	} {
		tried := 0
		offered := tunnel.Offloads{Checksum: true, TCP: test.offered > 0, UDP: test.offered > 0}
		got := probeWrites(Config{}, offered, func(p *tunnel.Outgoing) error {
			tried++
			finished, err := tunneltest.Finish(p.Parts[0], p.Offload)
			if err != nil || len(finished) != 2 {
				t.Errorf("probe %v has %d segments: %v", p.GSO, len(finished), err)
			}
			if p.GSO == test.refused {
				return fmt.Errorf("write: %w", tunnel.ErrOffload)
			}
			return nil
		})
		if got.TCP != test.tcp || got.UDP != test.udp || !got.Checksum || tried != test.tried {
			t.Errorf("%v refused: %+v after %d probes", test.refused, got, tried)
		}
		if why := strings.Join(got.Why, ";"); !strings.HasPrefix(why, test.want) || (why == "") != (test.want == "") {
			t.Errorf("%v refused: why is %q", test.refused, why)
		}
	}
}

// Who insists is not contradicted.
func TestProbeWritesInsists(t *testing.T) {
	offered := tunnel.Offloads{TCP: true, UDP: true}
	got := probeWrites(Config{TSO: tunnel.On, USO: tunnel.On}, offered, func(*tunnel.Outgoing) error { return tunnel.ErrOffload })
	if !got.TCP || !got.UDP {
		t.Errorf("offloads are %+v", got)
	}
}

// The running kernel takes the probes, and says nothing about them to anybody,
// be it a router or not.
func TestProbesAreSilent(t *testing.T) {
	host := labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "router"})
	var d *Device
	err := host.Do(func() (err error) {
		d, err = Open(Config{Name: "probed", MTU: 1450, Polled: true})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !d.offloads.TCP || !d.offloads.UDP {
		t.Errorf("offloads are %+v", d.offloads)
	}
	for range 100 {
		if got := probeWrites(Config{}, d.offloads, d.writeOne); len(got.Why) != len(d.offloads.Why) {
			t.Fatal(got.Why)
		}
	}
	packets, arena := make([]tunnel.Incoming, 64), make([]byte, 4*tunnel.MinArena)
	n, err := d.Read(packets, arena)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packets[:n] {
		// Listeners announce themselves; nothing else is said.
		if p.Data[0]>>4 == 4 && p.Data[9] == 1 || p.Data[0]>>4 == 6 && p.Data[6] == 58 && p.Data[40] < 128 {
			t.Errorf("the kernel answers: %x", p.Data)
		}
	}
}
