package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/udp"
)

// loopbackHost is a host in this process as the agent sees it. Its outer
// addresses are names that an exchange knows: all hosts of a network send to the
// same port, for which loopback has only one address on most systems.
type loopbackHost struct {
	outer  [2]netip.Addr // IPv4 and IPv6
	wires  *exchange
	logger *slog.Logger

	mu    sync.Mutex
	stack *netstack.Stack // the last one
}

func newLoopbackHost(number byte, wires *exchange, logger *slog.Logger) *loopbackHost {
	four, six := [4]byte{192, 168, 64, number}, [16]byte{0: 0xfd, 1: 0x64, 15: number}
	return &loopbackHost{outer: [2]netip.Addr{netip.AddrFrom4(four), netip.AddrFrom16(six)}, wires: wires, logger: logger}
}

// wireMTU is a common one; loopback would carry more on some systems.
const wireMTU = 1500

// Underlay implements agent.Host.
func (h *loopbackHost) Underlay(_ context.Context, _ control.Recall, networks []netip.Prefix, _ []netip.Addr) (agent.Outer, error) {
	outer := agent.Outer{Underlay: control.Underlay{Link: "loopback", MTU: wireMTU}, Reason: "the demo runs in one process"}
	for _, network := range networks {
		for _, addr := range h.outer {
			if addr.Is4() == network.Addr().Is4() {
				outer.Addrs = append(outer.Addrs, addr)
			}
		}
	}
	outer.Public = outer.Addrs
	return outer, nil
}

// UnderlayChanges implements agent.Host: there are none.
func (h *loopbackHost) UnderlayChanges(context.Context) <-chan struct{} { return nil }

// errSolo is about what an agent without a device never asks for.
var errSolo = fmt.Errorf("a host in this process has no kernel of its own: %w", errors.ErrUnsupported)

// KernelVXLAN implements agent.Host.
func (h *loopbackHost) KernelVXLAN(context.Context) error { return errSolo }

// KernelWireGuard implements agent.Host.
func (h *loopbackHost) KernelWireGuard(context.Context) error { return errSolo }

// Pinger implements agent.Host.
func (h *loopbackHost) Pinger([]netip.Addr, func(uint64)) (agent.Pinger, error) { return nil, errSolo }

// UsableTUN implements agent.Host.
func (h *loopbackHost) UsableTUN() error { return errSolo }

// ExistingMAC implements agent.Host.
func (h *loopbackHost) ExistingMAC(tunnel.Link) (tunnel.MAC, bool, error) {
	return tunnel.MAC{}, false, nil
}

// Objects implements agent.Host.
func (h *loopbackHost) Objects() (agent.Driver, error) { return nil, errSolo }

// Firewall implements agent.Host.
func (h *loopbackHost) Firewall() (agent.Driver, error) { return nil, errSolo }

// OpenDatapath implements agent.Host.
func (h *loopbackHost) OpenDatapath(want agent.Datapath) ([]engine.Worker, error) {
	stack, err := netstack.New(netstack.Config{Name: "netstack", MTU: want.MTU, Addresses: want.Addresses, Logger: h.logger})
	if err != nil {
		return nil, err
	}
	worker := engine.Worker{Device: stack}
	for i, at := range want.Listen {
		socket, err := h.wires.listen(netip.AddrPortFrom(h.outerOf(want.Addresses[i]), at.Port()), h.logger)
		if err != nil {
			errs := []error{err, stack.Close()}
			for _, socket := range worker.Sockets {
				errs = append(errs, socket.Close())
			}
			return nil, errors.Join(errs...)
		}
		worker.Sockets = append(worker.Sockets, socket)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stack = stack
	return []engine.Worker{worker}, nil
}

func (h *loopbackHost) outerOf(inner netip.Addr) netip.Addr {
	if inner.Is4() {
		return h.outer[0]
	}
	return h.outer[1]
}

// current is the stack of the moment, or nil.
func (h *loopbackHost) current() *netstack.Stack {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.stack
}

// close closes the stack; the engine has done so if it ran.
func (h *loopbackHost) close() error {
	if stack := h.current(); stack != nil {
		return stack.Close()
	}
	return nil
}

// exchange knows which socket on loopback stands for which outer address.
type exchange struct {
	mu    sync.RWMutex
	real  map[netip.AddrPort]netip.AddrPort
	outer map[netip.AddrPort]netip.AddrPort
}

func newExchange() *exchange {
	return &exchange{real: map[netip.AddrPort]netip.AddrPort{}, outer: map[netip.AddrPort]netip.AddrPort{}}
}

// listen opens a socket that stands for an outer address, in place of the last.
func (e *exchange) listen(outer netip.AddrPort, logger *slog.Logger) (tunnel.Socket, error) {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if outer.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	socket, err := udp.Listen(udp.Config{Addr: netip.AddrPortFrom(loopback, 0), Logger: logger})
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.outer, e.real[outer])
	e.real[outer], e.outer[socket.Local()] = socket.Local(), outer
	return &renamed{Socket: socket, local: outer, exchange: e}, nil
}

// renamed is a socket whose peers are called by their outer addresses.
type renamed struct {
	tunnel.Socket
	local    netip.AddrPort
	exchange *exchange
	sending  sync.Mutex
	batch    []tunnel.Datagrams // Send's own
}

// Local implements tunnel.Socket.
func (r *renamed) Local() netip.AddrPort { return r.local }

// Receive implements tunnel.Socket. Who is unknown keeps the real address.
func (r *renamed) Receive(batch []tunnel.Datagrams, arena []byte) (n int, err error) {
	n, err = r.Socket.Receive(batch, arena)
	r.exchange.mu.RLock()
	defer r.exchange.mu.RUnlock()
	for i := range batch[:n] {
		if outer, ok := r.exchange.outer[batch[i].Addr]; ok {
			batch[i].Addr = outer
		}
	}
	return n, err
}

// Send implements tunnel.Socket.
func (r *renamed) Send(batch []tunnel.Datagrams) (n int, err error) {
	r.sending.Lock()
	defer r.sending.Unlock()
	if unknown := r.rename(batch); unknown != nil {
		n, err = r.Socket.Send(r.batch)
		if err == nil {
			err = unknown
		}
		return n, err
	}
	return r.Socket.Send(r.batch)
}

// rename copies a batch up to the first destination that nobody listens at.
func (r *renamed) rename(batch []tunnel.Datagrams) error {
	r.exchange.mu.RLock()
	defer r.exchange.mu.RUnlock()
	r.batch = r.batch[:0]
	for _, run := range batch {
		real, ok := r.exchange.real[run.Addr]
		if !ok {
			return fmt.Errorf("send to %s: no such host in this process", run.Addr)
		}
		run.Addr = real
		r.batch = append(r.batch, run)
	}
	return nil
}
