package engine

import (
	"fmt"

	"github.com/weft-net/weft/tunnel"
)

// rx is the worker from one Socket to the Device.
type rx struct {
	engine   *Engine
	socket   tunnel.Socket
	arena    []byte
	batch    []tunnel.Datagrams
	counters counters
}

func newRx(e *Engine, socket tunnel.Socket) *rx {
	return &rx{engine: e, socket: socket, arena: make([]byte, tunnel.MaxPacket), batch: make([]tunnel.Datagrams, 64)}
}

func (r *rx) run() error {
	for {
		n, err := r.socket.Receive(r.batch, r.arena)
		r.process(r.batch[:n])
		if err != nil {
			return fmt.Errorf("receive on %v: %w", r.socket.Local(), err)
		}
	}
}

func (r *rx) process(runs []tunnel.Datagrams) {
	r.counters.add(RxRuns, len(runs))
	r.counters.publish()
}
