package script

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/weft-net/weft/bench/lab"
)

var networkCommands = map[string]Command{
	"switch": addSwitch,
	"host":   addHost,
	"link":   setLink,
}

func addSwitch(run *Run, args []string) error {
	if len(args) < 2 {
		return usage("switch NAME PREFIX...")
	}
	prefixes, err := parsePrefixes(args[1:])
	if err != nil {
		return err
	}
	_, err = run.Lab.Switch(lab.SwitchConfig{Name: args[0], Prefixes: prefixes})
	return err
}

func addHost(run *Run, args []string) (err error) {
	args, values := options(args, "switch", "mtu", "noroute")
	if len(args) < 1 {
		return usage("host NAME [switch=S] [mtu=N] [noroute] [ADDRESS/LEN...]")
	}
	config := lab.HostConfig{Name: args[0]}
	if name, ok := values["switch"]; ok {
		if config.Switch, err = run.findSwitch(name); err != nil {
			return err
		}
	}
	if mtu, ok := values["mtu"]; ok {
		if config.MTU, err = strconv.Atoi(mtu); err != nil {
			return fmt.Errorf("mtu=%s: want a number of bytes", mtu)
		}
	}
	_, config.NoDefaultRoute = values["noroute"]
	if config.Addresses, err = parsePrefixes(args[1:]); err != nil {
		return err
	}
	_, err = run.Lab.Host(config)
	return err
}

func (r *Run) findSwitch(name string) (*lab.Switch, error) {
	for _, s := range r.Lab.Switches() {
		if s.Name() == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no switch %q", name)
}

func parsePrefixes(words []string) (prefixes []netip.Prefix, err error) {
	for _, word := range words {
		prefix, err := netip.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("%q: want an address with its prefix length, as in 192.168.64.1/24", word)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// Host finds a host by its name.
func (r *Run) Host(name string) (*lab.Host, error) {
	for _, host := range r.Lab.Hosts() {
		if host.Name() == name {
			return host, nil
		}
	}
	return nil, fmt.Errorf("no host %q", name)
}

// Place finds a host, a pod as host/pod, or "outside".
func (r *Run) Place(name string) (*lab.Namespace, error) {
	if name == "outside" {
		return r.Lab.Outside(), nil
	}
	if strings.Contains(name, "/") {
		if pod, ok := r.pods[name]; ok {
			return pod, nil
		}
		return nil, fmt.Errorf("no pod %q", name)
	}
	host, err := r.Host(name)
	if err != nil {
		return nil, err
	}
	return host.Namespace, nil
}

// Addresses finds the addresses of a host or pod, or parses one.
func (r *Run) Addresses(name string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{addr}, nil
	}
	if addrs, ok := r.podAddrs[name]; ok {
		return addrs, nil
	}
	host, err := r.Host(name)
	if err != nil {
		return nil, fmt.Errorf("no host, pod or address %q", name)
	}
	var addrs []netip.Addr
	for _, prefix := range host.Addresses() {
		addrs = append(addrs, prefix.Addr())
	}
	return addrs, nil
}

// Ends are two places and the first address of the second.
func (r *Run) Ends(from, to string) (source, target *lab.Namespace, addr netip.Addr, err error) {
	if source, err = r.Place(from); err != nil {
		return nil, nil, addr, err
	}
	if target, err = r.Place(to); err != nil {
		return nil, nil, addr, err
	}
	addrs, err := r.Addresses(to)
	if err != nil {
		return nil, nil, addr, err
	}
	return source, target, addrs[0], nil
}

func setLink(run *Run, args []string) error {
	if len(args) < 2 {
		return usage("link HOST [mtu=N] [loss=PERCENT] [rate=10mbit] [offload=full|checksum|none] [cut] [heal]")
	}
	host, err := run.Host(args[0])
	if err != nil {
		return err
	}
	props := host.LinkProps()
	for _, word := range args[1:] {
		if err := setProperty(&props, word); err != nil {
			return fmt.Errorf("%s: %w", word, err)
		}
	}
	return host.Link(props)
}

func setProperty(props *lab.LinkProps, word string) (err error) {
	name, value, _ := strings.Cut(word, "=")
	switch name {
	case "mtu":
		props.MTU, err = strconv.Atoi(value)
	case "loss":
		props.LossPercent, err = strconv.ParseFloat(value, 64)
	case "rate":
		props.RateBits, err = parseRate(value)
	case "offload":
		props.Offload = lab.Offload(value)
	case "cut":
		props.Down = true
	case "heal":
		props.Down, props.LossPercent = false, 0
	default:
		err = fmt.Errorf("no such property")
	}
	return err
}

// parseRate reads a number with kbit, mbit or gbit behind it; 0 is no limit.
func parseRate(text string) (uint64, error) {
	if text == "0" {
		return 0, nil
	}
	for unit, factor := range map[string]float64{"kbit": 1e3, "mbit": 1e6, "gbit": 1e9} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			value, err := strconv.ParseFloat(number, 64)
			if err == nil && value > 0 {
				return uint64(value * factor), nil
			}
		}
	}
	return 0, fmt.Errorf("want a rate, as in 10mbit, or 0")
}
