package lab

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"sync"
)

// Namespace is a place in a Lab where programs and Go code run: a host, a pod
// or the outside.
type Namespace struct {
	name string
	path string // file of the network namespace, as seen in here; empty if none
	handles

	closeOnce sync.Once
	closeErr  error
}

// newNamespace makes a network, mount and UTS namespace.
func newNamespace(name string) (*Namespace, error) {
	h, err := newHandles(name)
	if err != nil {
		return nil, err
	}
	return &Namespace{name: name, handles: h}, nil
}

// newInner makes a network namespace that shares the rest with n.
func (n *Namespace) newInner(name string) (*Namespace, error) {
	path := "/run/netns/" + name
	h, err := n.inner(path)
	if err != nil {
		return nil, err
	}
	return &Namespace{name: name, path: path, handles: h}, nil
}

// Name is the name of the host or pod.
func (n *Namespace) Name() string { return n.name }

// Path is the file of a pod's network namespace, as programs on its host see
// it; empty for hosts.
func (n *Namespace) Path() string { return n.path }

// Do runs f in the namespace: system calls that f makes itself, in its own
// goroutine, and processes it starts, see the namespace's network and files.
// Goroutines that f starts do not.
func (n *Namespace) Do(f func() error) error { return n.do(f) }

// Command prepares a program to run in the namespace, looked up by the PATH
// there. It is killed when ctx ends, or by Close; its children too, by Close.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.command(ctx, name, args...)
}

// Dial connects from the namespace, as net.Dialer.DialContext does. The
// address must be a literal, as a resolver would run elsewhere.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", n.name, err)
	}
	return conn, nil
}

// Listen listens in the namespace, as net.Listen does, on a literal address.
func (n *Namespace) Listen(ctx context.Context, network, address string) (listener net.Listener, err error) {
	err = n.Do(func() error {
		var config net.ListenConfig
		listener, err = config.Listen(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", n.name, err)
	}
	return listener, nil
}

// ListenPacket is Listen for datagrams and raw sockets ("ip4:icmp").
func (n *Namespace) ListenPacket(ctx context.Context, network, address string) (conn net.PacketConn, err error) {
	err = n.Do(func() error {
		var config net.ListenConfig
		conn, err = config.ListenPacket(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", n.name, err)
	}
	return conn, nil
}

// Close kills every process in the namespace and lets go of it.
func (n *Namespace) Close() error {
	n.closeOnce.Do(func() {
		if err := n.release(); err != nil {
			n.closeErr = fmt.Errorf("close %s: %w", n.name, err)
		}
	})
	return n.closeErr
}
