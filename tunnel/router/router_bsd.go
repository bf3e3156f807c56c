//go:build darwin || freebsd

package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"

	"golang.org/x/net/route"
	"golang.org/x/sys/unix"
)

// bsd reads the kernel's tables itself and changes them by ifconfig and route,
// whose requests differ between systems and releases.
type bsd struct{}

func newSystem() (System, error) { return bsd{}, nil }

// Look implements System.
func (bsd) Look(_ context.Context, link string) (State, error) {
	device, found, err := find(link)
	if err != nil || !found {
		return State{}, err
	}
	state := State{Exists: true, MTU: device.MTU}
	addrs, err := device.Addrs()
	if err != nil {
		return State{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			state.Addresses = append(state.Addresses, prefix)
		}
	}
	table, err := route.FetchRIB(unix.AF_UNSPEC, route.RIBTypeRoute, 0)
	if err != nil {
		return State{}, fmt.Errorf("list routes: %w", err)
	}
	messages, err := route.ParseRIB(route.RIBTypeRoute, table)
	if err != nil {
		return State{}, fmt.Errorf("read list of routes: %w", err)
	}
	for _, m := range messages {
		r, ok := m.(*route.RouteMessage)
		if !ok || r.Index != device.Index || r.Flags&unix.RTF_GATEWAY != 0 {
			continue
		}
		if prefix, ok := destination(r); ok {
			state.Routes = append(state.Routes, prefix)
		}
	}
	return state, nil
}

// destination is where a route leads.
func destination(r *route.RouteMessage) (netip.Prefix, bool) {
	if len(r.Addrs) <= unix.RTAX_DST {
		return netip.Prefix{}, false
	}
	addr, ok := address(r.Addrs[unix.RTAX_DST])
	if !ok {
		return netip.Prefix{}, false
	}
	bits := addr.BitLen()
	if r.Flags&unix.RTF_HOST == 0 && len(r.Addrs) > unix.RTAX_NETMASK {
		if mask, ok := address(r.Addrs[unix.RTAX_NETMASK]); ok {
			ones, size := net.IPMask(mask.AsSlice()).Size()
			if size == 0 {
				return netip.Prefix{}, false // has holes
			}
			bits = ones
		}
	}
	prefix, err := addr.Prefix(bits)
	return prefix, err == nil
}

func address(a route.Addr) (netip.Addr, bool) {
	switch a := a.(type) {
	case *route.Inet4Addr:
		return netip.AddrFrom4(a.IP), true
	case *route.Inet6Addr:
		return netip.AddrFrom16(a.IP), true
	}
	return netip.Addr{}, false
}

// Do implements System.
func (bsd) Do(ctx context.Context, link string, step Step) error {
	words := Command(link, step)
	if len(words) == 0 {
		return fmt.Errorf("%v: %w", step.Action, errors.ErrUnsupported)
	}
	out, err := exec.CommandContext(ctx, "/sbin/"+words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", words, err, bytes.TrimSpace(out))
	}
	return nil
}
