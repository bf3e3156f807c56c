package netstack

import (
	"fmt"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	bufferMin = 4 << 10
	// TCP's buffers start at these sizes, in bytes, and grow up to the largest as
	// a connection is seen to need it: as Linux has it, so that the windows of
	// many connections do not overrun the socket beneath before losses tell them.
	receiveDefault, receiveMax = 128 << 10, 8 << 20
	sendDefault, sendMax       = 256 << 10, 4 << 20
	// datagramBuffer is that of UDP and ICMP, which does not grow.
	datagramBuffer = 1 << 20

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
		// in gVisor, and after losses is left with a small part of Reno's speed.
		congestion = tcpip.CongestionControlOption("reno")
		// RACK takes packets for lost while they wait for room in the link or for an
		// acknowledgement of a busy peer, and sends them again: 128 streams lose a
		// third of their speed by it. It is a trade: where the underlay loses one
		// packet in 2,000, one stream is half as fast without it.
		recovery = tcpip.TCPRecovery(0)
		wait     = tcpip.TCPTimeWaitTimeoutOption(timeWait)
		reuse    = tcpip.TCPTimeWaitReuseGlobal
		linger   = tcpip.TCPLingerTimeoutOption(lingerTime)
		receive  = tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMin, Default: receiveDefault, Max: receiveMax}
		send     = tcpip.TCPSendBufferSizeRangeOption{Min: bufferMin, Default: sendDefault, Max: sendMax}
	)
	for _, option := range []tcpip.SettableTransportProtocolOption{
		&sack, &moderate, &congestion, &recovery, &wait, &reuse, &linger, &receive, &send,
	} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return fmt.Errorf("set TCP option %T: %w", option, asError(err))
		}
	}
	for _, option := range []any{
		tcpip.ReceiveBufferSizeOption{Min: bufferMin, Default: datagramBuffer, Max: receiveMax},
		tcpip.SendBufferSizeOption{Min: bufferMin, Default: datagramBuffer, Max: receiveMax},
	} {
		if err := s.stack.SetOption(option); err != nil {
			return fmt.Errorf("set option %T: %w", option, asError(err))
		}
	}
	return nil
}
