package kernel

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/watch"
)

// index returns a device's index: another one means that it was recreated.
func (h *testHost) index(device string) string {
	h.t.Helper()
	number, _, _ := strings.Cut(h.run("ip -o link show "+device), ":")
	return number
}

// applyError applies what must fail.
func (h *testHost) applyError(want tunnel.Object) string {
	h.t.Helper()
	err := h.driver.Apply(h.t.Context(), want)
	if err == nil {
		h.t.Fatalf("apply %+v: no error", want)
	}
	return err.Error()
}

func wantText(t *testing.T, got string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("error %q: want %q in it", got, text)
		}
	}
}

// TestMACIsSetAtCreation holds that the device is announced with its MAC, and
// that the kernel knows it as set on purpose: systemd's MACAddressPolicy and
// NetworkManager change others.
func TestMACIsSetAtCreation(t *testing.T) {
	h := newHost(t)
	var announced []tunnel.MAC
	var watcher *watch.Watcher
	if err := h.Do(func() (err error) {
		watcher, err = watch.Open(watch.Config{
			Protocol: unix.NETLINK_ROUTE, Groups: []uint32{unix.RTNLGRP_LINK}, Logger: discard,
			Relevant: func(m syscall.NetlinkMessage) bool {
				attributes := m.Data[unix.SizeofIfInfomsg:]
				name, _ := watch.Attribute(attributes, unix.IFLA_IFNAME)
				if unix.ByteSliceToString(name) != "flannel.1" {
					return false
				}
				mac, _ := watch.Attribute(attributes, unix.IFLA_ADDRESS)
				announced = append(announced, macOf(mac))
				return true
			},
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	h.apply(device4())
	<-watcher.Tokens()
	if err := watcher.Close(); err != nil {
		t.Error(err)
	}
	if announced[0] != ownMAC {
		t.Errorf("announced with MAC %s, want %s", announced[0], ownMAC)
	}
	dir := t.TempDir()
	var kind string
	err := h.Do(func() error {
		if err := unix.Mount("sysfs", dir, "sysfs", unix.MS_RDONLY, ""); err != nil {
			return err
		}
		value, err := os.ReadFile(dir + "/class/net/flannel.1/addr_assign_type")
		kind = strings.TrimSpace(string(value))
		return errors.Join(err, unix.Unmount(dir, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	if kind != "3" { // NET_ADDR_SET
		t.Errorf("addr_assign_type is %s, want 3", kind)
	}
}

// TestChangeInPlace holds that what the kernel can change does not cost the
// device and all that is on it.
func TestChangeInPlace(t *testing.T) {
	h := newHost(t)
	h.run("ip link add other type veth peer name otherpeer", "ip addr add 192.168.9.1/24 dev other", "ip addr add fd99::1/64 dev other")
	h.apply(golden()...)
	index := h.index("flannel.1")
	for _, change := range []func(*tunnel.Link){
		func(l *tunnel.Link) { l.MTU = 1400 },
		func(l *tunnel.Link) { l.Learning = true },
		func(l *tunnel.Link) { l.Local = netip.MustParseAddr("192.168.9.1") },
		func(l *tunnel.Link) { l.Parent = "other" },
	} {
		want := golden()
		link := device4()
		change(&link)
		want[0] = link
		h.apply(link)
		h.check(want...)
	}
	if got := h.index("flannel.1"); got != index {
		t.Errorf("device was recreated: index %s, was %s", got, index)
	}
	link := device6()
	link.Local, link.Parent = netip.MustParseAddr("fd99::1"), "other"
	h.apply(device4(), link)
	want := golden()
	want[1] = link
	h.check(want...)
	// With a new MAC the kernel forgets the neighbours: seen, and mended.
	link.MAC = peerMAC
	h.drain()
	h.apply(link)
	h.awaitToken("new MAC")
	want[1] = link
	h.reconcile(want...)
	h.check(want...)
}

// TestRecreate holds that a device whose settings cannot be changed is made
// anew, also if it is another program's idea of ours.
func TestRecreate(t *testing.T) {
	const add = "ip link add flannel.1 mtu 1450 type vxlan local 192.168.7.1 dev eth0 "
	for _, line := range []string{
		add + "id 1 dstport 4789 nolearning", add + "id 7 dstport 8472 nolearning", add + "id 1 dstport 8472 nolearning gbp",
		add + "id 1 dstport 8472 nolearning noudpcsum", add + "id 1 dstport 8472 nolearning l2miss",
		add + "id 1 dstport 8472 nolearning ttl 3", add + "id 1 dstport 8472 nolearning group 239.1.1.1",
		"ip link add flannel.1 mtu 1450 type vxlan external dstport 8472",
		"ip link add flannel.1 type vxlan id 1 local fd77::1 dev eth0 dstport 8472 nolearning",
	} {
		h := newHost(t)
		h.run(line, "ip link set flannel.1 up address 26:84:0f:b6:ca:63")
		if h.observe()[device4().Key()] == tunnel.Object(device4()) {
			t.Errorf("taken for what is wanted: %s", line)
		}
		if _, ok, err := h.driver.ExistingMAC(device4()); ok || err != nil {
			t.Errorf("MAC to be kept: %t, %v: %s", ok, err, line)
		}
		index := h.index("flannel.1")
		h.apply(device4())
		h.check(device4())
		if h.index("flannel.1") == index {
			t.Errorf("not recreated: %s", line)
		}
	}
}

func TestExistingMAC(t *testing.T) {
	h := newHost(t)
	if _, ok, err := h.driver.ExistingMAC(device4()); ok || err != nil {
		t.Errorf("no device: got %t, %v", ok, err)
	}
	h.run("ip link add flannel.1 address 02:00:00:00:00:05 type vxlan id 1 local 192.168.7.1 dev eth0 dstport 8472 learning")
	mac, ok, err := h.driver.ExistingMAC(device4())
	if want := (tunnel.MAC{2, 0, 0, 0, 0, 5}); mac != want || !ok || err != nil {
		t.Errorf("got %s, %t, %v, want %s", mac, ok, err, want)
	}
	other := device4()
	other.Local = netip.MustParseAddr("192.168.7.2")
	if _, ok, err := h.driver.ExistingMAC(other); ok || err != nil {
		t.Errorf("other local address: got %t, %v", ok, err)
	}
	h.run("ip link delete flannel.1", "ip link add flannel.1 type bridge")
	if _, ok, err := h.driver.ExistingMAC(device4()); ok || err == nil {
		t.Errorf("squatter: got %t, %v", ok, err)
	}
}

// TestSquatter holds that a device with our name and another type is left
// alone, whatever is asked for.
func TestSquatter(t *testing.T) {
	h := newHost(t)
	h.run("ip link add flannel.1 type bridge", "ip link add weft0 type bridge", "ip link set flannel.1 up", "ip addr add 10.1.1.1/24 dev flannel.1")
	before := h.dump()
	h.check()
	objects := golden()
	for _, object := range append(objects[:1:1], append(objects[2:3], objects[4:7]...)...) {
		text := h.applyError(object)
		wantText(t, text, "flannel.1", `type "bridge"`, "ip link delete flannel.1")
		if err := h.driver.Delete(t.Context(), object); err == nil {
			t.Errorf("delete %s: no error", object.Key())
		}
	}
	wantText(t, h.applyError(tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1400}), "weft0", `type "bridge"`)
	h.checkForeign(before)
}

func TestRivals(t *testing.T) {
	h := newHost(t)
	h.run("ip link add rival type vxlan id 1 local 192.168.7.1 dev eth0 dstport 8472 nolearning")
	wantText(t, h.applyError(device4()), "another VXLAN device (rival) already uses VNI 1 and port 8472", "ip link delete rival")
	h.run("ip link delete rival")

	var conn io.Closer
	conn, err := h.ListenPacket(t.Context(), "udp", ":8472")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, h.applyError(device4()), "UDP port 8472", "address already in use")
	if have := h.observe()[device4().Key()]; have == tunnel.Object(device4()) {
		t.Error("a device that is down is taken for one that works")
	}
	conn.Close()
	h.apply(device4())
	h.check(device4())
}

func TestMTUAboveUnderlay(t *testing.T) {
	h := newHost(t)
	link := device6()
	link.MTU = 1450 // 20 bytes too many for IPv6, which the kernel cuts silently
	wantText(t, h.applyError(link), "MTU 1450", "1430")
}

// TestTUN covers the device that the engine opens.
func TestTUN(t *testing.T) {
	h := newHost(t)
	want := tunnel.Link{Name: "weft0", Type: tunnel.LinkTUN, MTU: 1400}
	wantText(t, h.applyError(want), "weft0", "the userspace engine has not opened it")
	h.remove(want) // absent
	h.run("ip tuntap add weft0 mode tun")
	if have := h.observe()[want.Key()]; have == nil || have == tunnel.Object(want) {
		t.Errorf("device that is down: have %+v", have)
	}
	h.drain()
	h.apply(want)
	h.awaitToken("TUN up")
	objects := []tunnel.Object{
		want,
		tunnel.Address{Link: "weft0", Prefix: netip.MustParsePrefix("10.244.17.0/32")},
		tunnel.Address{Link: "weft0", Prefix: netip.MustParsePrefix("fd00:10:244:3c::/128")},
		tunnel.Route{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Link: "weft0"},
		tunnel.Route{Prefix: netip.MustParsePrefix("fd00:10:244:1c::/64"), Link: "weft0", MTU: 1300},
	}
	h.apply(objects[1:]...)
	h.check(objects...)
	other := h.open(Config{Logger: discard})
	if have, err := other.Observe(t.Context()); len(have) != 0 || err != nil {
		t.Errorf("a driver without TUN sees %v, %v", have, err)
	}
	h.reconcile()
	h.check()
}

func TestBadLinks(t *testing.T) {
	h := newHost(t)
	for want, change := range map[string]func(*tunnel.Link){
		`name "eth0"`:                   func(l *tunnel.Link) { l.Name = "eth0" },
		`name "flannel.1x"`:             func(l *tunnel.Link) { l.Name = "flannel.1x" },
		"longer than 15 bytes":          func(l *tunnel.Link) { l.Name, l.VNI = "flannel-v6.16777215", 16777215 },
		"VNI 16777216":                  func(l *tunnel.Link) { l.VNI = 1 << 24 },
		"port: not set":                 func(l *tunnel.Link) { l.Port = 0 },
		"MAC: not set":                  func(l *tunnel.Link) { l.MAC = tunnel.MAC{} },
		"MTU: not set":                  func(l *tunnel.Link) { l.MTU = 0 },
		"local: not set":                func(l *tunnel.Link) { l.Local = netip.Addr{} },
		"parent: not set":               func(l *tunnel.Link) { l.Parent = "" },
		"parent: device nosuch":         func(l *tunnel.Link) { l.Parent = "nosuch" },
		`type "bridge"`:                 func(l *tunnel.Link) { l.Type = "bridge" },
		`the TUN device of this driver`: func(l *tunnel.Link) { l.Type, l.Name = tunnel.LinkTUN, "tun9" },
	} {
		link := device4()
		change(&link)
		wantText(t, h.applyError(link), "apply link "+link.Name, want)
	}
	wantText(t, h.applyError(tunnel.Firewall{}), "kernel driver makes no tunnel.Firewall")
	h.check()
}

// TestOverlay lets two hosts reach each other's inner addresses, over either
// outer family, through what two Drivers made.
func TestOverlay(t *testing.T) {
	world := labtest.New(t)
	subnets := []string{"10.244.1.0/24", "10.244.2.0/24"}
	subnets6 := []string{"fd00:10:244:1::/64", "fd00:10:244:2::/64"}
	macs := []tunnel.MAC{ownMAC, peerMAC}
	hosts := []*testHost{addHost(t, world, lab.HostConfig{Name: "a"}), addHost(t, world, lab.HostConfig{Name: "b"})}
	for i, h := range hosts {
		other := 1 - i
		link, link6 := device4(), device6()
		link.MAC, link6.MAC, link.Local, link6.Local = macs[i], macs[i], h.Addr(4), h.Addr(6)
		own, own6 := netip.MustParsePrefix(subnets[i]).Addr(), netip.MustParsePrefix(subnets6[i]).Addr()
		h.apply(link, link6,
			tunnel.Address{Link: link.Name, Prefix: netip.PrefixFrom(own, 32)},
			tunnel.Address{Link: link6.Name, Prefix: netip.PrefixFrom(own6, 128)})
		h.apply(peer(link.Name, subnets[other], macs[other], hosts[other].Addr(4).String())...)
		h.apply(peer(link6.Name, subnets6[other], macs[other], hosts[other].Addr(6).String())...)
	}
	for i, h := range hosts {
		for _, subnet := range []string{subnets[1-i], subnets6[1-i]} {
			to := netip.MustParsePrefix(subnet).Addr()
			var err error
			for range 10 { // IPv6 addresses are tentative for a while
				if _, err = h.Ping(t.Context(), lab.Probe{To: to, PayloadBytes: 1350, DontFragment: true}); err == nil {
					break
				}
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
}
