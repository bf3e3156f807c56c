package engine

import (
	"fmt"

	"github.com/weft-net/weft/tunnel"
)

// tx is the worker from the Device to the Sockets.
type tx struct {
	engine   *Engine
	arena    []byte
	packets  []tunnel.Incoming
	counters counters
}

func newTx(e *Engine) *tx {
	return &tx{engine: e, arena: make([]byte, tunnel.MinArena), packets: make([]tunnel.Incoming, 64)}
}

func (t *tx) run() error {
	for {
		n, err := t.engine.device.Read(t.packets, t.arena)
		t.process(t.packets[:n])
		if err != nil {
			return fmt.Errorf("read %s: %w", t.engine.device.Name(), err)
		}
	}
}

func (t *tx) process(packets []tunnel.Incoming) {
	t.counters.add(TxPackets, len(packets))
	t.counters.publish()
}
