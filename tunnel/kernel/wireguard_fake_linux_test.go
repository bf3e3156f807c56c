package kernel

import (
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
)

// fakeKind is the type of the links that stand in for WireGuard's: one that
// every kernel has and weft makes no use of.
const fakeKind = "ifb"

// fakeControl keeps WireGuard's state as the kernel does, on links of another
// type.
type fakeControl struct {
	driver *Driver // which knows the devices of the host

	mu      sync.Mutex
	devices map[int]*wgtypes.Device // by index: it goes with the link
	configs []wgtypes.Config        // every one that was given
	// failDevice and failConfigure are what the next calls return.
	failDevice, failConfigure error
}

func (f *fakeControl) Close() error { return nil }

// find returns the state of a link, as it is.
func (f *fakeControl) find(name string) (*wgtypes.Device, error) {
	index, err := f.driver.devices.index(name)
	if err != nil {
		return nil, os.ErrNotExist
	}
	if f.devices[index] == nil {
		f.devices[index] = &wgtypes.Device{Name: name, Type: wgtypes.LinuxKernel}
	}
	return f.devices[index], nil
}

func (f *fakeControl) Device(name string) (*wgtypes.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failDevice != nil {
		return nil, f.failDevice
	}
	device, err := f.find(name)
	if err != nil {
		return nil, err
	}
	read := *device
	read.Peers = slices.Clone(device.Peers)
	for i := range read.Peers {
		read.Peers[i].AllowedIPs = slices.Clone(read.Peers[i].AllowedIPs)
	}
	return &read, nil
}

func (f *fakeControl) ConfigureDevice(name string, config wgtypes.Config) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failConfigure != nil {
		return f.failConfigure
	}
	device, err := f.find(name)
	if err != nil {
		return err
	}
	f.configs = append(f.configs, config)
	if config.FirewallMark != nil {
		device.FirewallMark = *config.FirewallMark
	}
	if config.ListenPort != nil {
		device.ListenPort = *config.ListenPort
	}
	if config.PrivateKey != nil {
		device.PrivateKey = *config.PrivateKey
		device.PublicKey = wgtypes.Key(tunnel.SecretKey(*config.PrivateKey).Public())
		device.Peers = slices.DeleteFunc(device.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == device.PublicKey })
	}
	if config.ReplacePeers {
		device.Peers = nil
	}
	for _, peer := range config.Peers {
		configurePeer(device, peer)
	}
	return nil
}

func configurePeer(device *wgtypes.Device, config wgtypes.PeerConfig) {
	i := slices.IndexFunc(device.Peers, func(p wgtypes.Peer) bool { return p.PublicKey == config.PublicKey })
	switch {
	case config.Remove && i >= 0:
		device.Peers = slices.Delete(device.Peers, i, i+1)
		return
	case config.Remove, i < 0 && config.UpdateOnly, config.PublicKey == device.PublicKey:
		return
	case i < 0:
		i = len(device.Peers)
		device.Peers = append(device.Peers, wgtypes.Peer{PublicKey: config.PublicKey, ProtocolVersion: 1})
	}
	peer := &device.Peers[i]
	if config.PresharedKey != nil {
		peer.PresharedKey = *config.PresharedKey
	}
	if config.Endpoint != nil {
		peer.Endpoint = config.Endpoint
	}
	if config.PersistentKeepaliveInterval != nil {
		peer.PersistentKeepaliveInterval = *config.PersistentKeepaliveInterval
	}
	if config.ReplaceAllowedIPs {
		peer.AllowedIPs = nil
	}
	for _, ip := range config.AllowedIPs {
		for j := range device.Peers {
			device.Peers[j].AllowedIPs = slices.DeleteFunc(device.Peers[j].AllowedIPs, func(have net.IPNet) bool {
				return have.String() == ip.String()
			})
		}
		peer.AllowedIPs = append(peer.AllowedIPs, ip)
	}
}

// alterPeer changes the state of a peer behind the Driver's back.
func (f *fakeControl) alterPeer(name string, key tunnel.PublicKey, alter func(*wgtypes.Peer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	device, err := f.find(name)
	if err != nil {
		return
	}
	for i := range device.Peers {
		if device.Peers[i].PublicKey == wgtypes.Key(key) {
			alter(&device.Peers[i])
		}
	}
}

// wireguardHost is a host whose WireGuard is the kernel's, or a fake.
type wireguardHost struct {
	*testHost
	fake *fakeControl // nil: the kernel's
}

// start opens a Driver that remembers nothing.
func (h *wireguardHost) start(keys WireGuard) {
	h.t.Helper()
	h.driver = h.open(Config{Logger: discard, WireGuard: keys})
	if h.fake != nil {
		h.fake.driver = h.driver
		h.driver.wireguard.kind = fakeKind
		h.driver.wireguard.connect = func() (control, error) { return h.fake, nil }
	}
}

// device reads what WireGuard says of a device.
func (h *wireguardHost) device(name string) *wgtypes.Device {
	h.t.Helper()
	device, err := h.driver.wireguard.device(name)
	if err != nil {
		h.t.Fatal(err)
	}
	return device
}

// configure changes a device by hand.
func (h *wireguardHost) configure(name string, config wgtypes.Config) {
	h.t.Helper()
	if err := h.driver.wireguard.configure(name, config); err != nil {
		h.t.Fatal(err)
	}
}

func fakeHost(t *testing.T) *wireguardHost {
	t.Helper()
	h := &wireguardHost{testHost: newHost(t), fake: &fakeControl{devices: make(map[int]*wgtypes.Device)}}
	h.start(ownKeys)
	return h
}

// eachWireGuard runs a test on the fake, and on the kernel's own WireGuard
// where that is asked for.
func eachWireGuard(t *testing.T, test func(*testing.T, *wireguardHost)) {
	hosts := map[string]func(*testing.T) *wireguardHost{"fake": fakeHost}
	maps.Copy(hosts, kernelHosts)
	for name, newHost := range hosts {
		t.Run(name, func(t *testing.T) { test(t, newHost(t)) })
	}
}

// addWireGuardHost puts a host with the kernel's WireGuard into a lab.
func addWireGuardHost(t *testing.T, world *lab.Lab, config lab.HostConfig, keys WireGuard) *wireguardHost {
	t.Helper()
	h := &wireguardHost{testHost: addHost(t, world, config)}
	h.start(keys)
	return h
}
