package udp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/internal/linux"
)

// MaxGroup bounds the Sockets of one ListenGroup.
const MaxGroup = 64

// ListenGroup opens count Sockets on one port in the network namespace of the
// calling thread, one for each worker. The kernel gives all datagrams of one
// source port to the same one, those without a checksum to the first, where
// they are received as Unsummed.
//
// A second group cannot be opened on the port: the first socket of a group is
// bound while it is not yet willing to share.
func ListenGroup(config Config, count int) (group []*Socket, err error) {
	config, err = config.withDefaults()
	switch {
	case err != nil:
		return nil, err
	case count < 1 || count > MaxGroup:
		return nil, fmt.Errorf("listen on %v: %d sockets, want 1 to %d", config.Addr, count, MaxGroup)
	}
	group, err = openGroup(config, count)
	if err != nil {
		err = fmt.Errorf("listen on %v: %w", config.Addr, err)
		for _, s := range group {
			err = errors.Join(err, s.free())
		}
		return nil, err
	}
	group[0].logShortfall(config)
	return group, nil
}

// openGroup returns what it has opened even with an error.
func openGroup(config Config, count int) (group []*Socket, err error) {
	order := firstOfAll
	for range count {
		s := &Socket{fd: -1, unsummed: -1, polled: config.Polled}
		group = append(group, s)
		if err := s.open(config, order); err != nil {
			return group, err
		}
		config.Addr, order = s.local, another // the port is known now
	}
	first := group[0]
	if err := first.openUnsummed(config); err != nil {
		return group, err
	}
	// The index that a program returns counts sockets in the order they were bound.
	if err := attachSteering(first.fd, first.local.Addr(), count); err != nil {
		return group, err
	}
	return group, nil
}

func (s *Socket) openUnsummed(config Config) (err error) {
	if s.unsummed, err = openSocket(config, s.local, another); err != nil {
		return err
	}
	probe(config, linux.KernelVersion(), socketOptions(s.unsummed)) // the same as for the first, joining included
	if s.local.Addr().Is4() {
		return nil
	}
	// RFC 6935 lets tunnels go without over IPv6.
	if err := unix.SetsockoptInt(s.unsummed, unix.SOL_UDP, unix.UDP_NO_CHECK6_RX, 1); err != nil {
		return fmt.Errorf("accept datagrams without checksum: %w", err)
	}
	return nil
}

// attachSteering has the kernel choose among the sockets of a port: the last,
// number count, for datagrams without a checksum, else by source port.
func attachSteering(fd int, local netip.Addr, count int) error {
	program, err := bpf.Assemble(steering(local, uint32(count)))
	if err != nil {
		return fmt.Errorf("assemble port steering: %w", err)
	}
	filters := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filters[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog); err != nil {
		return fmt.Errorf("attach port steering: %w", err)
	}
	return nil
}

// steering is the program. When it runs the kernel has taken the UDP header
// off, so that it has to be found from the network header on: behind the options
// of IPv4, and right behind an IPv6 header. Where that bears extension headers
// the datagram counts as summed; the kernel drops it if it is not.
func steering(local netip.Addr, count uint32) []bpf.Instruction {
	const (
		network    = 0xfff00000 // SKF_NET_OFF
		nextHeader = 6
		header6    = 40
		udp        = 17
		checksum   = 6 // in the UDP header
	)
	byPort := []bpf.Instruction{
		bpf.LoadIndirect{Off: network, Size: 2}, // the source port
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: count},
		bpf.RetA{},
	}
	unsummed := []bpf.Instruction{
		bpf.LoadIndirect{Off: network + checksum, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: count},
	}
	var program []bpf.Instruction
	if local.Is4() {
		program = []bpf.Instruction{bpf.LoadMemShift{Off: network}}
	} else {
		program = []bpf.Instruction{
			bpf.LoadConstant{Dst: bpf.RegX, Val: header6},
			bpf.LoadAbsolute{Off: network + nextHeader, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: udp, SkipTrue: uint8(len(unsummed))},
		}
	}
	return append(append(program, unsummed...), byPort...)
}
