package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/netstack"
	"github.com/weft-net/weft/netstack/local"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/kernel"
	"github.com/weft-net/weft/tunnel/tundev"
	"github.com/weft-net/weft/tunnel/userns"
)

// The TUN of the sandbox. Nothing of its MTU is seen outside, as connections
// end in this process.
const (
	tunName = "weft0"
	tunMTU  = 9000
)

// Run runs argv, which has to call Inside, as root of new namespaces of this
// user's own, and returns with it: ExitError where it failed by itself, and
// ErrUnavailable where there are no such namespaces.
func Run(ctx context.Context, config Config, argv []string) error {
	if err := tundev.Usable(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err := await(command)
	for _, refusal := range []error{unix.EPERM, unix.ENOSPC, unix.EINVAL, unix.EACCES} {
		if errors.Is(err, refusal) {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return err
}

// Inside runs config.Argv in the namespaces that this process is in alone.
func Inside(ctx context.Context, config Config) error {
	way, err := config.Client.Way(ctx)
	if err != nil {
		return err
	}
	if err := replaceResolvConf(resolvConf(way)); err != nil {
		return fmt.Errorf("tell the program of cluster DNS: %w", err)
	}
	if err := userns.UpLoopback(); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	path, err := exec.LookPath(config.Argv[0])
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	stop, err := open(ctx, config)
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, path, config.Argv[1:]...)
	command.Args[0] = config.Argv[0]
	return errors.Join(await(command), stop())
}

// replaceResolvConf puts text in front of this mount namespace's resolv.conf.
func replaceResolvConf(text string) error {
	if text == "" {
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a system that resolves in another way
	}
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "weft-resolv-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // what is mounted stays
	_, err = file.WriteString(text)
	if err := errors.Join(err, file.Chmod(0o644), file.Close()); err != nil {
		return err
	}
	if err := unix.Mount(file.Name(), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", target, err)
	}
	return nil
}

// open makes the TUN and leads all that is sent to it to the agent.
func open(ctx context.Context, config Config) (stop func() error, err error) {
	// gVisor takes datagrams one by one.
	device, err := tundev.Open(tundev.Config{Name: tunName, MTU: tunMTU, USO: tunnel.Off, Logger: config.Logger})
	if err != nil {
		return nil, err
	}
	gate, err := netstack.NewGate(netstack.GateConfig{
		Name: tunName, MTU: tunMTU, Addresses: gateAddresses(), Logger: config.Logger,
		TCP: func(to netip.AddrPort, accept func() (net.Conn, error)) { stream(ctx, config, to, accept) },
		UDP: func(to netip.AddrPort, conn net.Conn) { flow(ctx, config, to, conn) },
	})
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { netstack.Carry(gate, device) })
	pumps.Go(func() { netstack.Carry(device, gate) })
	stop = func() error {
		err := errors.Join(gate.Close(), device.Close())
		pumps.Wait()
		return err
	}
	if err := address(ctx, config); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// address gives the TUN addresses, and everything a route through it.
func address(ctx context.Context, config Config) error {
	driver, err := kernel.Open(kernel.Config{Logger: config.Logger, TUN: tunName})
	if err != nil {
		return err
	}
	defer driver.Close()
	objects := []tunnel.Object{tunnel.Link{Name: tunName, Type: tunnel.LinkTUN, MTU: tunMTU}}
	for _, gate := range gateAddresses() {
		own := gate.Next()
		objects = append(objects,
			tunnel.Address{Link: tunName, Prefix: netip.PrefixFrom(own, own.BitLen())},
			tunnel.Route{Link: tunName, Prefix: netip.PrefixFrom(own, 0).Masked()})
	}
	for _, object := range objects {
		if err := driver.Apply(ctx, object); err != nil {
			return fmt.Errorf("set up %v: %w", object.Key(), err)
		}
	}
	return nil
}

// stream has the agent dial what the program dials, before it is accepted: it
// is refused where the agent is.
func stream(ctx context.Context, config Config, to netip.AddrPort, accept func() (net.Conn, error)) {
	outer, err := config.Client.DialContext(ctx, "tcp", to.String())
	if err != nil {
		config.Logger.Warn("a connection is refused", "to", to, "err", err)
		return
	}
	defer outer.Close()
	inner, err := accept()
	if err != nil {
		return
	}
	defer inner.Close()
	local.Join(inner, outer, false)
}

func flow(ctx context.Context, config Config, to netip.AddrPort, conn net.Conn) {
	inner := newIdling(conn)
	defer inner.Close()
	outer, err := config.Client.DialContext(ctx, "udp", to.String())
	if err != nil {
		config.Logger.Warn("a datagram is refused", "to", to, "err", err)
		return
	}
	defer outer.Close()
	local.Join(inner, outer, true)
}
