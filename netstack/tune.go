package netstack

import (
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// Buffers start at bufferDefault bytes and TCP's grow to bufferMax as a
	// connection is seen to need it.
	bufferMin     = 4 << 10
	bufferDefault = 1 << 20
	bufferMax     = 8 << 20

	// timeWait and lingerTime are how long a closed connection is remembered. On
	// an overlay nothing lives for the minutes that the Internet once feared, and
	// gVisor has no bound on the number of them.
	timeWait   = 5 * time.Second
	lingerTime = 15 * time.Second
)

// tune sets gVisor's TCP up for paths like an overlay's: short, fast, and with
// little loss. Data that is not acknowledged is sent again after no less than
// gVisor's 200 ms, as in Linux, which is what delayed acknowledgements need.
func (s *Stack) tune() error {
	var (
		sack     = tcpip.TCPSACKEnabled(true)
		moderate = tcpip.TCPModerateReceiveBufferOption(true)
		// Cubic rounds its window down to whole segments at every acknowledgement
		// in gVisor, so that it hardly grows after a loss.
		congestion = tcpip.CongestionControlOption("reno")
		// RACK takes packets for lost while they wait for room in the link or for an
		// acknowledgement of a busy peer, and sends them again.
		recovery = tcpip.TCPRecovery(0)
		wait     = tcpip.TCPTimeWaitTimeoutOption(timeWait)
		reuse    = tcpip.TCPTimeWaitReuseGlobal
		linger   = tcpip.TCPLingerTimeoutOption(lingerTime)
		receive  = tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax}
		send     = tcpip.TCPSendBufferSizeRangeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax}
	)
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &congestion, &recovery, &wait, &reuse, &linger, &receive, &send,
	} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("set TCP option %T: %w", option, asError(err))
		}
	}
	// Those of UDP and ICMP do not grow.
	for _, option := range []any{
		tcpip.ReceiveBufferSizeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax},
		tcpip.SendBufferSizeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax},
	} {
		if err := s.stack.SetOption(option); err != nil {
			return fmt.Errorf("set option %T: %w", option, asError(err))
		}
	}
	return nil
}
