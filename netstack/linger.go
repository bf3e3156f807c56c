package netstack

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// SetLinger is as net.TCPConn has it: after 0, Close resets the connection and
// drops what is not sent; after a negative number, which is how connections
// begin, Close sends the rest first.
func (c stream) SetLinger(seconds int) error {
	c.SocketOptions().SetLinger(tcpip.LingerOption{
		Enabled: seconds >= 0,
		Timeout: time.Duration(max(seconds, 0)) * time.Second,
	})
	return nil
}
