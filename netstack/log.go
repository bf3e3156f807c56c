package netstack

import (
	"fmt"
	"log/slog"
	"time"

	"gvisor.dev/gvisor/pkg/log"
)

// logTo is where gVisor's own log goes. It has one for the whole process, so
// that the Stack that was made last gets it.
type logTo struct{ logger *slog.Logger }

// Emit implements log.Emitter. What gVisor warns of is what any host on the
// network may bring about.
func (l logTo) Emit(_ int, _ log.Level, _ time.Time, format string, args ...any) {
	l.logger.Debug("gVisor says", "text", fmt.Sprintf(format, args...))
}
