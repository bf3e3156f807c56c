package router

import (
	"net/netip"
	"strconv"
)

// Command is the program and its arguments by which the BSDs, macOS among them,
// take a step (ifconfig(8), route(8)). No word comes from outside: they are the
// link's name, numbers and addresses.
func Command(link string, step Step) []string {
	addr := step.Prefix.Addr()
	family := "inet6"
	if addr.Is4() {
		family = "inet"
	}
	switch step.Action {
	case SetMTU:
		return []string{"ifconfig", link, "mtu", strconv.Itoa(step.MTU)}
	case AddAddress:
		words := []string{"ifconfig", link, family, step.Prefix.String()}
		if addr.Is4() { // a TUN is point-to-point and wants the far address, too
			words = append(words, addr.String())
		}
		return append(words, "alias")
	case RemoveAddress:
		return []string{"ifconfig", link, family, addr.String(), "-alias"}
	case AddRoute:
		return routeCommand("add", family, step.Prefix, link)
	case RemoveRoute:
		return routeCommand("delete", family, step.Prefix, link)
	}
	return nil
}

func routeCommand(verb, family string, prefix netip.Prefix, link string) []string {
	return []string{"route", "-q", "-n", verb, "-" + family, prefix.String(), "-interface", link}
}
