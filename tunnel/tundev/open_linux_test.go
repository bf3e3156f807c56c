package tundev

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Name: "a-name-of-16-chrs", MTU: 1450}, "at most 15"},
		{Config{Name: "we/ft", MTU: 1450}, `Name "we/ft"`},
		{Config{Name: "weft%d", MTU: 1450}, `Name "weft%d"`},
		{Config{Name: "..", MTU: 1450}, `Name ".."`},
		{Config{}, "MTU is 0, want 68 to 65485"},
		{Config{MTU: MaxMTU + 1}, "MTU is 65486"},
		{Config{MTU: 1450, TxQueueLen: -1}, "TxQueueLen is -1"},
	} {
		if d, err := Open(tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Open(%+v) = %v, %v, want %q in the error", tt.config, d, err, tt.want)
		}
	}
}

func TestLinkIsSetUp(t *testing.T) {
	host := hosts(t, "a")[0]
	// What pods' veth devices have: with less, forwarded super-packets are cut.
	const gso = 65536
	for _, config := range []Config{
		{Name: "weft0", MTU: 1450}, {Name: "weft1", MTU: 1430, TxQueueLen: 700}, {Name: "weft2", MTU: 8950}, {Name: "weft3", MTU: MaxMTU},
	} {
		d := open(t, host, config)
		if mtu, err := d.MTU(); mtu != config.MTU || err != nil {
			t.Errorf("%s: MTU() = %d, %v, want %d", d.Name(), mtu, err, config.MTU)
		}
		var links []struct {
			Flags  []string
			MTU    int
			TxQLen int    `json:"txqlen"`
			GSO    int    `json:"gso_max_size"`
			IPv6   string `json:"inet6_addr_gen_mode"`
		}
		if err := json.Unmarshal([]byte(ip(t, host, "-json", "-details", "link", "show", d.Name())), &links); err != nil {
			t.Fatal(err)
		}
		queue := config.TxQueueLen
		if queue == 0 {
			queue = DefaultTxQueueLen
		}
		have := links[0]
		if !slices.Contains(have.Flags, "UP") || have.MTU != config.MTU || have.TxQLen != queue || have.GSO != gso || have.IPv6 != "none" {
			t.Errorf("%s: %+v, want up, MTU %d, queue %d, super-packets of %d", d.Name(), have, config.MTU, queue, gso)
		}
	}
	d := open(t, host, Config{Name: "weft4"})
	ip(t, host, "link", "set", "weft4", "mtu", "1300")
	if mtu, err := d.MTU(); mtu != 1300 || err != nil {
		t.Errorf("MTU() after a change = %d, %v, want 1300", mtu, err)
	}
}

func TestNameTaken(t *testing.T) {
	host := hosts(t, "a")[0]
	open(t, host, Config{})
	ip(t, host, "link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "4789")
	for name, want := range map[string]struct {
		err  error
		cure string
	}{
		"weft0": {unix.EBUSY, "another process has this TUN open"},
		"vx":    {unix.EINVAL, "exists and is not a TUN"},
	} {
		err := host.Do(func() error {
			d, err := Open(Config{Name: name, MTU: 1450})
			if err == nil {
				d.Close()
			}
			return err
		})
		if !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.cure) {
			t.Errorf("%s: %v, want %v and %q", name, err, want.err, want.cure)
		}
	}
}

func TestOpenErrorsNameTheCure(t *testing.T) {
	attach := func(err error) error { return attachError(err, "weft0") }
	for _, tt := range []struct {
		wrap func(error) error
		err  error
		want string
	}{
		{openError, unix.ENOENT, "modprobe tun, or mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200"},
		{openError, unix.ENODEV, "modprobe tun"},
		{openError, unix.ENXIO, "modprobe tun"},
		{openError, unix.EACCES, "chmod 0666 /dev/net/tun, or run as root"},
		{openError, unix.EPERM, "allow character device 10:200"},
		{openError, unix.EMFILE, "too many open files"},
		{attach, unix.EPERM, "CAP_NET_ADMIN"},
		{attach, unix.EBUSY, "grep -l 'iff:.*weft0'"},
		{attach, unix.EINVAL, "ip link show weft0"},
		{attach, unix.ENFILE, "too many open files in system"},
	} {
		if err := tt.wrap(tt.err); !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q in it", tt.err, err, tt.want)
		}
	}
}

// TestNegotiate refuses more and more flags, as older kernels do.
func TestNegotiate(t *testing.T) {
	const tsoFlags = unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	const usoFlags = unix.TUN_F_USO4 | unix.TUN_F_USO6
	now := linux.Version{Major: 6, Minor: 18}
	for _, tt := range []struct {
		name    string
		config  Config
		kernel  linux.Version
		refused int // flags
		want    tunnel.Offloads
		set     int
		why     []string
	}{
		{"all", Config{}, now, 0, tunnel.Offloads{Checksum: true, TCP: true, UDP: true}, unix.TUN_F_CSUM | tsoFlags | usoFlags, nil},
		{"no USO", Config{}, now, usoFlags, tunnel.Offloads{Checksum: true, TCP: true}, unix.TUN_F_CSUM | tsoFlags, []string{"no UDP super-packets: TUNSETOFFLOAD: invalid argument"}},
		{"no TSO", Config{}, now, usoFlags | tsoFlags, tunnel.Offloads{Checksum: true}, unix.TUN_F_CSUM, []string{"no UDP super-packets", "no TCP super-packets"}},
		{"nothing", Config{}, now, -1, tunnel.Offloads{}, 0, []string{"no UDP super-packets", "no TCP super-packets", "no unfinished checksums"}},
		{"USO off", Config{USO: tunnel.Off}, now, 0, tunnel.Offloads{Checksum: true, TCP: true}, unix.TUN_F_CSUM | tsoFlags, []string{"no UDP super-packets: switched off"}},
		{"TSO off", Config{TSO: tunnel.Off}, now, 0, tunnel.Offloads{Checksum: true}, unix.TUN_F_CSUM, []string{"no UDP super-packets: switched off", "no TCP super-packets: switched off"}},
		{"USO written badly", Config{}, linux.Version{Major: 6, Minor: 8, Patch: 4}, 0, tunnel.Offloads{Checksum: true, TCP: true}, unix.TUN_F_CSUM | tsoFlags | usoFlags, []string{"6.8.4 forwards them badly"}},
		{"USO insisted on", Config{USO: tunnel.On}, linux.Version{Major: 6, Minor: 8, Patch: 4}, 0, tunnel.Offloads{Checksum: true, TCP: true, UDP: true}, unix.TUN_F_CSUM | tsoFlags | usoFlags, nil},
		{"USO written well", Config{}, linux.Version{Major: 6, Minor: 8, Patch: 5}, 0, tunnel.Offloads{Checksum: true, TCP: true, UDP: true}, unix.TUN_F_CSUM | tsoFlags | usoFlags, nil},
	} {
		set := -1
		got, err := negotiate(tt.config, tt.kernel, func(flags int) error {
			if flags&tt.refused != 0 {
				return unix.EINVAL
			}
			set = flags
			return nil
		})
		if err != nil || got.Checksum != tt.want.Checksum || got.TCP != tt.want.TCP || got.UDP != tt.want.UDP || set != tt.set || len(got.Why) != len(tt.why) {
			t.Errorf("%s: %+v, %v with flags %#x, want %+v with %#x", tt.name, got, err, set, tt.want, tt.set)
			continue
		}
		for i, why := range tt.why {
			if !strings.Contains(got.Why[i], why) {
				t.Errorf("%s: reason %q, want %q in it", tt.name, got.Why[i], why)
			}
		}
	}
	if _, err := negotiate(Config{}, now, func(int) error { return unix.EBADFD }); !errors.Is(err, unix.EBADFD) {
		t.Errorf("everything refused: %v, want %v", err, unix.EBADFD)
	}
}

// TestUsable holds that whoever may run these tests may make a TUN.
func TestUsable(t *testing.T) {
	if err := Usable(); err != nil {
		t.Error(err)
	}
}
