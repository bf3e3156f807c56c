package engine

import (
	"errors"
	"slices"
	"testing"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

// arrivals is a Poller at whose Waits the Device gets so many bytes, and then
// ends. It notes at which of them it might have spun.
type arrivals struct {
	Poller
	host  *tunneltest.Device
	bytes []int
	spun  []int
	waits int
}

func (p *arrivals) Wait(spin bool) (ready uint64, err error) {
	if spin {
		p.spun = append(p.spun, p.waits)
	}
	if p.waits == len(p.bytes) {
		return 0, tunnel.ErrClosed
	}
	size := p.bytes[p.waits]
	p.waits++
	data, offload := toFar(true, make([]byte, size)).Super(1000)
	_, err = p.host.Write([]tunnel.Outgoing{out(data, offload)})
	return 1, err
}

func (*arrivals) Close() error { return nil }

// A worker stays awake for what follows on a number of small batches, and only then.
func TestWorkerSpins(t *testing.T) {
	const few, much = 1500, calmBytes
	for name, test := range map[string]struct {
		bytes []int
		spun  []int
	}{
		"few":               {slices.Repeat([]int{few}, calmRounds+2), []int{calmRounds + 1, calmRounds + 2}},
		"bulk":              {slices.Repeat([]int{much}, 2*calmRounds), nil},
		"bulk now and then": {slices.Repeat(append(slices.Repeat([]int{few}, calmRounds-1), much), 3), nil},
		"bulk, then few":    {append([]int{much}, slices.Repeat([]int{few}, calmRounds+1)...), []int{calmRounds + 2}},
		"few, then bulk":    {append(slices.Repeat([]int{few}, calmRounds+1), much, few), []int{calmRounds + 1}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, everything())
			p := &arrivals{host: r.host, bytes: test.bytes}
			e, err := New(Config{Workers: []Worker{{Device: r.device, Sockets: []tunnel.Socket{r.socket}, Poller: p}}, Logger: discard})
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error)
			go func() { ended <- e.workers[0].run() }() // it keeps its thread
			if err := <-ended; !errors.Is(err, tunnel.ErrClosed) {
				t.Errorf("run: %v, want ErrClosed", err)
			}
			if !slices.Equal(p.spun, test.spun) {
				t.Errorf("spins at waits %v, want %v", p.spun, test.spun)
			}
		})
	}
}
