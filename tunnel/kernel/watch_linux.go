package kernel

import (
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel/internal/watch"
)

// watch subscribes to what can tell of a change to our objects.
func (d *Driver) watch() (*watch.Watcher, error) {
	return watch.Open(watch.Config{
		Protocol: unix.NETLINK_ROUTE,
		Groups: []uint32{
			unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		},
		Relevant: d.relevant,
		Logger:   d.log,
	})
}

// relevant keeps the churn of pods (neighbours on the bridge, addresses of
// veths) from causing listings.
func (d *Driver) relevant(message syscall.NetlinkMessage) bool {
	data := message.Data
	switch message.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return len(data) < unix.SizeofIfInfomsg || d.relevantLink(message)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		// struct ndmsg and struct ifaddrmsg both have the index at byte 4.
		return len(data) < 8 || d.isName(d.devices.name(int(binary.NativeEndian.Uint32(data[4:]))))
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(data) < unix.SizeofRtMsg || d.relevantRoute(message)
	}
	return false
}

// relevantLink lets through our devices, and any device that goes up or down:
// the kernel drops routes over a device that goes down without a word.
func (d *Driver) relevantLink(message syscall.NetlinkMessage) bool {
	const changeMask = 12 // struct ifinfomsg: the flags that changed
	if binary.NativeEndian.Uint32(message.Data[changeMask:])&unix.IFF_UP != 0 {
		return true
	}
	name, found := watch.Attribute(message.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME)
	return !found || d.isName(unix.ByteSliceToString(name))
}

// relevantRoute lets through routes that are ours, and those that may have
// taken the place of one of ours: for them nothing else is announced.
func (d *Driver) relevantRoute(message syscall.NetlinkMessage) bool {
	const protocol = 5 // struct rtmsg
	if message.Header.Flags&unix.NLM_F_REPLACE != 0 || message.Data[protocol] == RouteProtocol {
		return true
	}
	index, found := watch.Attribute(message.Data[unix.SizeofRtMsg:], unix.RTA_OIF)
	if !found || len(index) < 4 {
		return message.Data[protocol] != unix.RTPROT_KERNEL // several next hops
	}
	return d.isName(d.devices.name(int(binary.NativeEndian.Uint32(index))))
}
