package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/ipc/namedpipe"
)

// pipeSpace is where Windows keeps named pipes, spelled as the object manager
// has it: where case matters, as under Wine, no other spelling is found.
const pipeSpace = `\\.\PIPE\`

// pipeName is the named pipe that stands for a socket's path: a pipe's name is
// no path, and has no backslash. The name of a pipe stays.
func pipeName(path string) string {
	if len(path) >= len(pipeSpace) && strings.EqualFold(path[:len(pipeSpace)], pipeSpace) {
		return pipeSpace + path[len(pipeSpace):]
	}
	return pipeSpace + strings.Trim(strings.Map(func(r rune) rune {
		if strings.ContainsRune(`\/:`, r) {
			return '-'
		}
		return r
	}, path), "-")
}

// listenLocal makes the named pipe, which is also the lock that keeps two
// agents of one host apart. Only the user who runs the agent, administrators and
// the system may connect.
func listenLocal(ctx context.Context, path string) (net.Listener, error) {
	if err := refuseSecond(ctx, path); err != nil {
		return nil, err
	}
	name := pipeName(path)
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("listen on %s: find out who runs this: %w", name, err)
	}
	access, err := windows.SecurityDescriptorFromString("D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + user.User.Sid.String() + ")")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: restrict it: %w", name, err)
	}
	// In message mode a side can say that it has ended and still read.
	config := namedpipe.ListenConfig{SecurityDescriptor: access, MessageMode: true, InputBufferSize: pipeBuffer, OutputBufferSize: pipeBuffer}
	listener, err := config.Listen(name)
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, fmt.Errorf("listen on %s: %w: another user's agent is running there; stop it, or choose another --run-dir", name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return listener, nil
}

// pipeBuffer is in bytes, per direction. A write waits for the reader beyond it.
const pipeBuffer = 64 << 10

// DialLocal connects to the local API of the agent whose Config.Socket is path.
func DialLocal(ctx context.Context, path string) (net.Conn, error) {
	name := pipeName(path)
	conn, err := namedpipe.DialContext(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return conn, nil
}
