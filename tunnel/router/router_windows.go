package router

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/windows"
)

// What golang.org/x/sys/windows lacks of netioapi.h.
var (
	iphlpapi             = windows.NewLazySystemDLL("iphlpapi.dll")
	procInitializeAddr   = iphlpapi.NewProc("InitializeUnicastIpAddressEntry")
	procCreateAddr       = iphlpapi.NewProc("CreateUnicastIpAddressEntry")
	procDeleteAddr       = iphlpapi.NewProc("DeleteUnicastIpAddressEntry")
	procInitializeRoute  = iphlpapi.NewProc("InitializeIpForwardEntry")
	procCreateRoute      = iphlpapi.NewProc("CreateIpForwardEntry2")
	procDeleteRoute      = iphlpapi.NewProc("DeleteIpForwardEntry2")
	procGetInterfaceAddr = iphlpapi.NewProc("GetIpInterfaceEntry")
	procSetInterfaceAddr = iphlpapi.NewProc("SetIpInterfaceEntry")
)

// dadPreferred is IpDadStatePreferred: the address is used at once.
const dadPreferred = 4

// api is the IP helper API of Windows.
type api struct{}

func newSystem() (System, error) { return api{}, nil }

// Look implements System.
func (api) Look(_ context.Context, link string) (State, error) {
	device, found, err := find(link)
	if err != nil || !found {
		return State{}, err
	}
	state := State{Exists: true, MTU: device.MTU}
	var addresses *windows.MibUnicastIpAddressTable
	if err := windows.GetUnicastIpAddressTable(windows.AF_UNSPEC, &addresses); err != nil {
		return State{}, fmt.Errorf("list addresses: %w", err)
	}
	defer windows.FreeMibTable(unsafe.Pointer(addresses))
	rows := unsafe.Slice(&addresses.Table[0], addresses.NumEntries)
	for i := range rows {
		row := &rows[i]
		addr := readAddr((*[28]byte)(unsafe.Pointer(&row.Address)))
		if int(row.InterfaceIndex) == device.Index && addr.IsValid() {
			state.Addresses = append(state.Addresses, netip.PrefixFrom(addr, int(row.OnLinkPrefixLength)))
		}
	}
	var routes *windows.MibIpForwardTable2
	if err := windows.GetIpForwardTable2(windows.AF_UNSPEC, &routes); err != nil {
		return State{}, fmt.Errorf("list routes: %w", err)
	}
	defer windows.FreeMibTable(unsafe.Pointer(routes))
	for i := range routes.Rows() {
		row := &routes.Rows()[i]
		prefix := netip.PrefixFrom(readAddr((*[28]byte)(unsafe.Pointer(&row.DestinationPrefix.Prefix))), int(row.DestinationPrefix.PrefixLength))
		via := readAddr((*[28]byte)(unsafe.Pointer(&row.NextHop)))
		if int(row.InterfaceIndex) == device.Index && prefix.IsValid() && (!via.IsValid() || via.IsUnspecified()) {
			state.Routes = append(state.Routes, prefix.Masked())
		}
	}
	return state, nil
}

// Do implements System.
func (api) Do(_ context.Context, link string, step Step) error {
	device, found, err := find(link)
	if err != nil {
		return err
	}
	if !found {
		return errNoLink
	}
	index := uint32(device.Index)
	switch step.Action {
	case SetMTU:
		return setMTU(index, step.MTU)
	case AddAddress:
		return changeAddress(procCreateAddr, index, step.Prefix)
	case RemoveAddress:
		return changeAddress(procDeleteAddr, index, step.Prefix)
	case AddRoute:
		return changeRoute(procCreateRoute, index, step.Prefix)
	case RemoveRoute:
		return changeRoute(procDeleteRoute, index, step.Prefix)
	}
	return fmt.Errorf("%v: %w", step.Action, errors.ErrUnsupported)
}

// setMTU sets it for both families; a link may lack one of them.
func setMTU(index uint32, mtu int) error {
	done := false
	for _, family := range []uint16{windows.AF_INET, windows.AF_INET6} {
		row := windows.MibIpInterfaceRow{Family: family, InterfaceIndex: index}
		err := call(procGetInterfaceAddr, unsafe.Pointer(&row))
		if errors.Is(err, windows.ERROR_NOT_FOUND) {
			continue
		}
		if err != nil {
			return err
		}
		row.NlMtu = uint32(mtu)
		row.SitePrefixLength = 0 // or the call is refused for IPv4
		if err := call(procSetInterfaceAddr, unsafe.Pointer(&row)); err != nil {
			return err
		}
		done = true
	}
	if !done {
		return errNoLink
	}
	return nil
}

func changeAddress(proc *windows.LazyProc, index uint32, prefix netip.Prefix) error {
	var row windows.MibUnicastIpAddressRow
	if err := initialize(procInitializeAddr, unsafe.Pointer(&row)); err != nil {
		return err
	}
	row.InterfaceIndex = index
	writeAddr((*[28]byte)(unsafe.Pointer(&row.Address)), prefix.Addr())
	row.OnLinkPrefixLength = uint8(prefix.Bits())
	row.DadState = dadPreferred
	return done(call(proc, unsafe.Pointer(&row)))
}

func changeRoute(proc *windows.LazyProc, index uint32, prefix netip.Prefix) error {
	var row windows.MibIpForwardRow2
	if err := initialize(procInitializeRoute, unsafe.Pointer(&row)); err != nil {
		return err
	}
	row.InterfaceIndex = index
	writeAddr((*[28]byte)(unsafe.Pointer(&row.DestinationPrefix.Prefix)), prefix.Addr())
	row.DestinationPrefix.PrefixLength = uint8(prefix.Bits())
	onLink := netip.IPv6Unspecified()
	if prefix.Addr().Is4() {
		onLink = netip.IPv4Unspecified()
	}
	writeAddr((*[28]byte)(unsafe.Pointer(&row.NextHop)), onLink)
	row.Metric = 0
	return done(call(proc, unsafe.Pointer(&row)))
}

// done passes over what was so already.
func done(err error) error {
	if errors.Is(err, windows.ERROR_OBJECT_ALREADY_EXISTS) || errors.Is(err, windows.ERROR_NOT_FOUND) {
		return nil
	}
	return err
}

// initialize calls what fills a row with defaults and returns nothing.
func initialize(proc *windows.LazyProc, row unsafe.Pointer) error {
	if err := proc.Find(); err != nil {
		return err
	}
	_, _, _ = proc.Call(uintptr(row)) // returns nothing
	return nil
}

// call calls what takes one row and returns a NETIO_STATUS.
func call(proc *windows.LazyProc, row unsafe.Pointer) error {
	if err := proc.Find(); err != nil {
		return err
	}
	if status, _, _ := proc.Call(uintptr(row)); status != 0 {
		return windows.Errno(status)
	}
	return nil
}

// readAddr reads a SOCKADDR_INET; the zero Addr means neither IPv4 nor IPv6.
func readAddr(raw *[28]byte) netip.Addr {
	switch binary.NativeEndian.Uint16(raw[:]) {
	case windows.AF_INET:
		return netip.AddrFrom4([4]byte(raw[4:]))
	case windows.AF_INET6:
		return netip.AddrFrom16([16]byte(raw[8:]))
	}
	return netip.Addr{}
}

// writeAddr writes what readAddr reads.
func writeAddr(raw *[28]byte, addr netip.Addr) {
	if addr.Is4() {
		binary.NativeEndian.PutUint16(raw[:], windows.AF_INET)
		copy(raw[4:], addr.AsSlice())
		return
	}
	binary.NativeEndian.PutUint16(raw[:], windows.AF_INET6)
	copy(raw[8:], addr.AsSlice())
}
