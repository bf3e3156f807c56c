// Package lab makes throw-away hosts on one Linux machine, with no root: each
// host is a network, mount and UTS namespace, and veth pairs join the hosts to
// switches. Tests, the demo and the benchmarks stand on it. It must never touch
// the machine's own network, and never leave anything behind: all of it lives
// in a private pid namespace that dies with the process, by any signal.
//
// # Getting in
//
// The program first moves itself into private namespaces, before it does
// anything else, because the same call also serves as the entry of the helper
// processes that start programs inside hosts:
//
//	func TestMain(m *testing.M) { lab.Main(m) }              // a test
//	func TestMain(m *testing.M) { lab.MustEnter(); goleak.VerifyTestMain(m) }
//	func main() { if err := lab.Enter(); err != nil { ... } } // a program
//
// From there on the process is root in its own world, with a private /run.
// Whatever it starts ends with it.
//
// # Hosts
//
//	world, err := lab.New(lab.Config{})
//	defer world.Close()
//	a, err := world.Host(lab.HostConfig{Name: "a"}) // 192.168.64.1/24, fd64::1/64 on eth0
//	b, err := world.Host(lab.HostConfig{Name: "b"}) // 192.168.64.2/24, fd64::2/64
//	cmd := a.Command(ctx, "weft", "agent")          // a program on the host
//	err = b.Do(func() error { ... })                // Go code on the host
//	pod, err := a.Pod(lab.PodConfig{Name: "p", Addresses: ...})
//	rtt, err := pod.Ping(ctx, lab.Probe{To: b.Addr(4)})
//	err = b.Link(lab.LinkProps{MTU: 1400, LossPercent: 5})
//
// A host has its own /run, /etc and /var/lib: what the machine has there can be
// read, what is written stays on the host. Hence every default path of a
// program (its sockets, leases, keys, CNI files) is per host. /tmp is shared,
// and so is /sys, which tells nothing of a host.
//
// Switches stand in the Outside namespace, which routes between them and has
// the address ending in .254 (::fe) on each: servers for all hosts, such as an
// etcd, run there. Namespace.Dial and Namespace.Listen let the calling process
// talk to what runs in there.
package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/weft-net/weft/tunnel"
)

// Enter moves the running program into a private user (unless it is root),
// mount, network and pid namespace by running itself again with the same
// arguments, and returns nil in there, also when it was there already. The
// process that called first does not return: it passes signals on and ends
// with the other's exit code. It must be the first thing main or TestMain does.
//
// The error says what is missing and how to allow it; on other systems than
// Linux it wraps errors.ErrUnsupported.
func Enter() error { return enter() }

// MustEnter is Enter for tests: it ends the process with the error, so that a
// machine that cannot run them fails instead of skipping.
func MustEnter() {
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Main is a whole TestMain: it enters, runs the tests and exits.
func Main(m interface{ Run() int }) {
	MustEnter()
	os.Exit(m.Run())
}

// Config describes a Lab.
type Config struct {
	Logger *slog.Logger // nil: silent
}

// Lab is a set of hosts and the switches that join them. Its methods may be
// called from several goroutines.
type Lab struct {
	log     *slog.Logger
	outside *Namespace

	mu       sync.Mutex
	switches []*Switch
	hosts    []*Host
	ports    int // switch ports made so far, for their names and MACs
	closed   bool
}

// New makes an empty Lab. Enter must have been called.
func New(config Config) (*Lab, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	outside, err := newNamespace("outside")
	if err != nil {
		return nil, fmt.Errorf("make lab: %w", err)
	}
	if err := outside.Do(prepareOutside); err != nil {
		outside.Close()
		return nil, fmt.Errorf("make lab: %w", err)
	}
	return &Lab{log: config.Logger, outside: outside}, nil
}

// Outside is where the switches and their router are.
func (l *Lab) Outside() *Namespace { return l.outside }

// SwitchConfig describes a Switch.
type SwitchConfig struct {
	Name     string         // at most 15 characters
	Prefixes []netip.Prefix // nil: 192.168.64.0/24 and fd64::/64; host bits are ignored
	MTU      int            // of the router's port; 0: 1500
}

// Switch joins hosts on layer 2. The router's address in each prefix is the
// 254th; between switches packets are routed.
type Switch struct {
	lab      *Lab
	name     string
	prefixes []netip.Prefix
	next     int // number of the last host that was given default addresses
}

// Name is the switch's name and that of its bridge in Outside.
func (s *Switch) Name() string { return s.name }

// Router is the router's address in the switch's prefix of a family (4 or 6);
// the zero Addr if the switch has none.
func (s *Switch) Router(family int) netip.Addr {
	for _, prefix := range s.prefixes {
		if familyOf(prefix.Addr()) == family {
			return nth(prefix, routerNumber)
		}
	}
	return netip.Addr{}
}

const (
	routerNumber  = 254
	defaultMTU    = 1500
	defaultSwitch = "lan"
)

var defaultPrefixes = []netip.Prefix{
	netip.MustParsePrefix("192.168.64.0/24"),
	netip.MustParsePrefix("fd64::/64"),
}

// Switch makes a switch.
func (l *Lab) Switch(config SwitchConfig) (*Switch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addSwitch(config)
}

func (l *Lab) addSwitch(config SwitchConfig) (*Switch, error) {
	if err := l.checkName("switch", config.Name); err != nil {
		return nil, err
	}
	if config.MTU == 0 {
		config.MTU = defaultMTU
	}
	if config.Prefixes == nil {
		config.Prefixes = defaultPrefixes
	}
	s := &Switch{lab: l, name: config.Name}
	var router []netip.Prefix
	for _, prefix := range config.Prefixes {
		prefix = prefix.Masked()
		if prefix.Addr().BitLen()-prefix.Bits() < 8 {
			return nil, fmt.Errorf("make switch %s: prefix %s: too small, a switch needs 8 host bits", config.Name, prefix)
		}
		s.prefixes = append(s.prefixes, prefix)
		router = append(router, netip.PrefixFrom(nth(prefix, routerNumber), prefix.Bits()))
	}
	if err := l.outside.Do(func() error { return addBridge(s.name, config.MTU, router) }); err != nil {
		return nil, fmt.Errorf("make switch %s: %w", config.Name, err)
	}
	l.switches = append(l.switches, s)
	l.log.Debug("made switch", "switch", s.name, "prefixes", s.prefixes)
	return s, nil
}

// take sets aside the next number in each prefix.
func (s *Switch) take() (addresses []netip.Prefix, err error) {
	if s.next == routerNumber-1 {
		return nil, fmt.Errorf("switch %s: no address left", s.name)
	}
	s.next++
	for _, prefix := range s.prefixes {
		addresses = append(addresses, netip.PrefixFrom(nth(prefix, s.next), prefix.Bits()))
	}
	return addresses, nil
}

// newCable describes a cable between a new port and a device. MACs are those of
// the port's number, so that they are the same in every run.
func (s *Switch) newCable(to *Namespace, device string) *cable {
	s.lab.ports++
	n := s.lab.ports
	return &cable{
		host: to, outside: s.lab.outside, bridge: s.name,
		device: device, port: fmt.Sprintf("port%d", n),
		mac: tunnel.MAC{0x02, 0x57, 0, 0, byte(n >> 8), byte(n)},
	}
}

// Switches returns all switches in the order they were made.
func (l *Lab) Switches() []*Switch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.switches)
}

// Hosts returns all hosts in the order they were made.
func (l *Lab) Hosts() []*Host {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.hosts)
}

func (l *Lab) checkName(what, name string) error {
	if l.closed {
		return fmt.Errorf("make %s %q: the lab is closed", what, name)
	}
	if name == "" || len(name) > 15 {
		return fmt.Errorf("make %s %q: a name has 1 to 15 characters", what, name)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("make %s %q: a name is made of a-z, 0-9 and -", what, name)
		}
	}
	taken := slices.ContainsFunc(l.hosts, func(h *Host) bool { return h.name == name }) ||
		slices.ContainsFunc(l.switches, func(s *Switch) bool { return s.name == name })
	if taken {
		return fmt.Errorf("make %s %q: the name is taken", what, name)
	}
	return nil
}

// Close kills every process that still runs in a host or outside, and lets go
// of all namespaces.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var errs []error
	for _, host := range l.hosts {
		errs = append(errs, host.Close())
	}
	errs = append(errs, l.outside.Close())
	return errors.Join(errs...)
}

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return 4
	}
	return 6
}

// nth returns the address number n of a prefix; n is below 256.
func nth(prefix netip.Prefix, n int) netip.Addr {
	bytes := prefix.Masked().Addr().AsSlice()
	bytes[len(bytes)-1] += byte(n)
	addr, _ := netip.AddrFromSlice(bytes)
	return addr
}
