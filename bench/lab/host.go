package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weft-net/weft/tunnel"
)

// HostConfig describes a Host.
type HostConfig struct {
	Name string // at most 15 characters; also the host name in there
	// Switch is what eth0 is plugged into; nil is a default switch named "lan".
	Switch *Switch
	// Addresses are those of eth0 with their prefix lengths; nil gives the next
	// number in each of the switch's prefixes: 192.168.64.1/24 and fd64::1/64.
	Addresses []netip.Prefix
	MTU       int // of eth0; 0: 1500
	// NoDefaultRoute leaves out the default routes over the switch's router.
	NoDefaultRoute bool
}

// Host is one throw-away machine: network, mount and UTS namespace, with
// forwarding on, and eth0 plugged into a switch.
type Host struct {
	*Namespace
	lab *Lab

	mu         sync.Mutex
	cables     []*cable
	namespaces []*Namespace
	pods       int
}

// Host makes a host.
func (l *Lab) Host(config HostConfig) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.checkName("host", config.Name); err != nil {
		return nil, err
	}
	if config.Switch == nil {
		s, err := l.defaultSwitch()
		if err != nil {
			return nil, err
		}
		config.Switch = s
	}
	ns, err := newNamespace(config.Name)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", config.Name, err)
	}
	host := &Host{Namespace: ns, lab: l}
	if err := host.setUp(config); err != nil {
		return nil, errors.Join(fmt.Errorf("make host %s: %w", config.Name, err), ns.Close())
	}
	l.hosts = append(l.hosts, host)
	l.log.Debug("made host", "host", host.name, "addresses", host.Addresses())
	return host, nil
}

func (l *Lab) defaultSwitch() (*Switch, error) {
	for _, s := range l.switches {
		if s.name == defaultSwitch {
			return s, nil
		}
	}
	return l.addSwitch(SwitchConfig{Name: defaultSwitch})
}

func (h *Host) setUp(config HostConfig) error {
	if err := h.Do(prepareHost); err != nil {
		return err
	}
	if err := h.plug(config.Switch, config.Addresses, config.MTU); err != nil {
		return err
	}
	if config.NoDefaultRoute {
		return nil
	}
	var routers []netip.Addr
	for _, prefix := range config.Switch.prefixes {
		within := func(p netip.Prefix) bool { return prefix.Contains(p.Addr()) }
		if slices.ContainsFunc(h.cables[0].addresses, within) {
			routers = append(routers, nth(prefix, routerNumber))
		}
	}
	return h.Do(func() error { return addDefaultRoutes("eth0", routers) })
}

// Attach plugs one more interface (eth1, eth2, ...) of the host into a switch.
// Addresses nil gives the next number in each of the switch's prefixes.
func (h *Host) Attach(s *Switch, addresses []netip.Prefix) error {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	return h.plug(s, addresses, 0)
}

// plug is called with the Lab's lock held.
func (h *Host) plug(s *Switch, addresses []netip.Prefix, mtu int) error {
	if mtu == 0 {
		mtu = defaultMTU
	}
	if addresses == nil {
		var err error
		if addresses, err = s.take(); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := s.newCable(h.Namespace, fmt.Sprintf("eth%d", len(h.cables)))
	c.addresses = slices.Clone(addresses)
	if err := c.plug(mtu); err != nil {
		return fmt.Errorf("plug %s into switch %s: %w", c.device, s.name, err)
	}
	h.cables = append(h.cables, c)
	return nil
}

// Addresses are the underlay addresses of eth0 with their prefix lengths.
func (h *Host) Addresses() []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.cables[0].addresses)
}

// Addr is the first underlay address of a family (4 or 6); the zero Addr if
// there is none.
func (h *Host) Addr(family int) netip.Addr {
	for _, prefix := range h.Addresses() {
		if familyOf(prefix.Addr()) == family {
			return prefix.Addr()
		}
	}
	return netip.Addr{}
}

// Offload says what the two ends of a link leave undone on the way, as real
// network cards and virtual ones do.
type Offload string

// The underlays that benchmarks compare. In all of them eth0 of the receiving
// host may coalesce (GRO) where segments arrive cut.
const (
	// OffloadFull is veth as it comes: super-frames pass uncut, checksums are
	// never computed. It flatters everybody, kernel tunnels most.
	OffloadFull Offload = "full"
	// OffloadChecksum cuts everything to the MTU before it enters the wire.
	OffloadChecksum Offload = "checksum"
	// OffloadNone also computes all checksums in software: like a wire.
	OffloadNone Offload = "none"
)

// LinkProps are properties of a host's link. The zero value is a perfect link.
type LinkProps struct {
	MTU         int     // largest packet in bytes; 0: 1500
	RateBits    uint64  // bits per second in each direction; 0: no limit
	LossPercent float64 // share of frames lost at random in each direction
	Down        bool    // the cable is pulled: no carrier at either end
	Offload     Offload // empty: OffloadFull
}

// check names the field that cannot be.
func (p LinkProps) check() error {
	switch {
	case p.MTU != 0 && (p.MTU < 68 || p.MTU > 65535):
		return fmt.Errorf("MTU %d: want 68 to 65535 bytes", p.MTU)
	case !(p.LossPercent >= 0 && p.LossPercent <= 100):
		return fmt.Errorf("LossPercent %v: want 0 to 100", p.LossPercent)
	case p.RateBits != 0 && (p.RateBits < 8000 || p.RateBits > maxRateBits):
		return fmt.Errorf("RateBits %d: want 8000 to %d bits per second", p.RateBits, maxRateBits)
	case !slices.Contains([]Offload{"", OffloadFull, OffloadChecksum, OffloadNone}, p.Offload):
		return fmt.Errorf("Offload %q: want full, checksum or none", p.Offload)
	}
	return nil
}

// maxRateBits keeps the rate in the 32 bits of bytes per second that the
// kernel's oldest rate field has.
const maxRateBits = 32_000_000_000

// Link sets the properties of eth0's link: all of them, also those that are zero.
func (h *Host) Link(props LinkProps) error {
	if err := props.check(); err != nil {
		return fmt.Errorf("set link of host %s: %w", h.name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.cables[0].set(props); err != nil {
		return fmt.Errorf("set link of host %s: %w", h.name, err)
	}
	return nil
}

// LinkProps returns what Link set last.
func (h *Host) LinkProps() LinkProps {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cables[0].props
}

// cable is a veth pair between a host's device and a port of a switch.
type cable struct {
	host, outside *Namespace
	device        string // in host
	port, bridge  string // in outside
	mac           tunnel.MAC
	addresses     []netip.Prefix
	props         LinkProps
}

// NewNamespace makes an empty network namespace on the host, with loopback up,
// whose Path serves as CNI_NETNS for programs on the host. Programs in it see
// the host's files.
func (h *Host) NewNamespace(name string) (*Namespace, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addNamespace(name)
}

// Adopt makes a Namespace on the host of a network namespace that a program has
// made, such as /proc/PID/ns/net. Programs in it see the host's files. As in all
// namespaces of a lab, nothing paces connections in it.
func (h *Host) Adopt(name, path string) (*Namespace, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handles, err := h.adopt(path)
	if err != nil {
		return nil, fmt.Errorf("adopt namespace %s on host %s: %w", name, h.name, err)
	}
	ns := &Namespace{name: name, path: path, handles: handles}
	if err := ns.Do(setCongestionControl); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt namespace %s on host %s: %w", name, h.name, err), ns.release())
	}
	h.namespaces = append(h.namespaces, ns)
	return ns, nil
}

func (h *Host) addNamespace(name string) (*Namespace, error) {
	if name == "" || strings.ContainsAny(name, "/ ") {
		return nil, fmt.Errorf("make namespace %q on host %s: not a file name", name, h.name)
	}
	ns, err := h.newInner(name)
	if err != nil {
		return nil, fmt.Errorf("make namespace %s on host %s: %w", name, h.name, err)
	}
	h.namespaces = append(h.namespaces, ns)
	return ns, nil
}

// PodConfig describes a pod that no CNI plugin made.
type PodConfig struct {
	Name string
	// Addresses are the pod's, with the prefix lengths of the host's subnets. The
	// first address of each subnet goes to the host's bridge, "pods".
	Addresses []netip.Prefix
	MTU       int // of eth0 in the pod; 0: 1500
}

// podBridge is the host's bridge for pods made by Pod.
const podBridge = "pods"

// Pod makes a pod: a namespace on the host whose eth0 is on the host's bridge,
// with default routes over the host.
func (h *Host) Pod(config PodConfig) (*Namespace, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(config.Addresses) == 0 {
		return nil, fmt.Errorf("make pod %s on host %s: no addresses", config.Name, h.name)
	}
	if config.MTU == 0 {
		config.MTU = defaultMTU
	}
	var gateways []netip.Prefix
	var routers []netip.Addr
	for _, prefix := range config.Addresses {
		gateway := nth(prefix, 1)
		if gateway == prefix.Addr() {
			return nil, fmt.Errorf("make pod %s on host %s: address %s belongs to the bridge", config.Name, h.name, gateway)
		}
		gateways = append(gateways, netip.PrefixFrom(gateway, prefix.Bits()))
		routers = append(routers, gateway)
	}
	pod, err := h.addNamespace(config.Name)
	if err != nil {
		return nil, err
	}
	h.pods++
	c := &cable{
		host: pod, outside: h.Namespace, bridge: podBridge,
		device: "eth0", port: fmt.Sprintf("pod%d", h.pods), addresses: slices.Clone(config.Addresses),
	}
	err = h.Do(func() error { return addBridge(podBridge, config.MTU, gateways) })
	if err == nil {
		err = c.plug(config.MTU)
	}
	if err == nil {
		err = pod.Do(func() error { return addDefaultRoutes("eth0", routers) })
	}
	if err != nil {
		return nil, fmt.Errorf("make pod %s on host %s: %w", config.Name, h.name, err)
	}
	return pod, nil
}

// Close kills every process on the host, in its pods too, and takes the host
// off its switches.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, ns := range h.namespaces {
		errs = append(errs, ns.Close())
	}
	h.namespaces = nil
	errs = append(errs, h.Namespace.Close())
	return errors.Join(errs...)
}
