package datapath

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
)

// Path is a way to join two hosts. Bulk traffic goes from the first to the
// second host, so that the name says who sends.
type Path struct {
	Name  string
	About string
	// Baseline is the path that this one is compared with.
	Baseline string
	// proxied paths are entered through a SOCKS5 proxy, which carries TCP alone.
	proxied bool
	open    func(context.Context, *pair) (*way, error)
}

// String is the path's name.
func (p Path) String() string { return p.Name }

// Names of paths that others are compared with.
const (
	pathKernel        = "kernel-vxlan"
	pathKernelPods    = "kernel-vxlan-pods"
	pathWeft          = "weft-vxlan"
	pathWireGuard     = "wireguard-go"
	pathWeftWireGuard = "weft-wireguard"
	pathRootless      = "weft-rootless"
	pathSlirp         = "slirp4netns"
	pathNetstack      = "netstack"
)

// Paths are those that there are. MTUs: what the encapsulation leaves of the
// underlay's 1500 bytes, over IPv4 50 for VXLAN and 60 for WireGuard.
var Paths = []Path{
	{"veth", "no tunnel", pathKernel, false, openBare},
	{pathKernel, "kernel VXLAN at both ends, as flannel sets it up", pathKernel, false, betweenHosts(kernelVXLAN, kernelVXLAN)},
	{pathWeft, "weft's engine at both ends", pathKernel, false, betweenHosts(weftToWeft, weftToWeft)},
	{"weft-to-kernel", "weft's engine sends, kernel VXLAN receives", pathKernel, false, betweenHosts(weftToKernel, kernelVXLAN)},
	{"kernel-to-weft", "kernel VXLAN sends, weft's engine receives", pathKernel, false, betweenHosts(kernelVXLAN, weftToKernel)},
	{pathWireGuard, "wireguard-go at both ends: it encrypts, and has an MTU of 1440, the others 1450", pathKernel, false, betweenHosts(wireGuardGo, wireGuardGo)},
	{pathWeftWireGuard, "weft's engine at both ends, by WireGuard", pathWireGuard, false, betweenHosts(weftWireGuard, weftWireGuard)},
	{"weft-to-wireguard-go", "weft's engine sends by WireGuard, wireguard-go receives", pathWireGuard, false, betweenHosts(weftWireGuard, wireGuardGo)},
	{"wireguard-go-to-weft", "the same the other way", pathWireGuard, false, betweenHosts(wireGuardGo, weftWireGuard)},
	{"naive", "a system call per packet, no offloads, at both ends", pathKernel, false, betweenHosts(naiveTunnel, naiveTunnel)},
	{pathKernelPods, "kernel VXLAN, from pod to pod", pathKernelPods, false, betweenPods(kernelVXLAN, kernelVXLAN)},
	{"weft-vxlan-pods", "weft's engine, from pod to pod", pathKernelPods, false, betweenPods(weftToWeft, weftToWeft)},
	{pathRootless, "weft's engine of ordinary users at both ends", pathWeft, false, betweenHosts(weftRootless, weftRootless)},
	{pathNetstack, "weft without a device sends what enters its SOCKS5 proxy, kernel VXLAN receives; TCP alone, sent by weft-lab", pathWeft, true, betweenHosts(weftNetstack, kernelVXLAN)},
	{pathSlirp, "a network namespace's way out as most rootless containers have it; nothing reaches in", pathRootless, false, openTranslated(pathSlirp, slirpArgs)},
	{"pasta", "the same by its successor", pathRootless, false, openTranslated("pasta", pastaArgs)},
}

// way is a Path that is up: programs in from reach programs in to at addr.
type way struct {
	path     Path
	from, to *lab.Namespace
	addr     netip.Addr
	ends     []*process // what carries packets in userspace, if anything does
	helpers  []helper
	hosts    []*lab.Host
}

// close ends the userspace ends and takes the hosts away.
func (w *way) close() error {
	var errs []error
	for _, end := range w.ends {
		errs = append(errs, end.close())
	}
	for _, h := range w.helpers {
		errs = append(errs, h.close())
	}
	for _, host := range w.hosts {
		errs = append(errs, host.Close())
	}
	return errors.Join(errs...)
}

// check waits until the way carries packets.
func (w *way) check(ctx context.Context) (err error) {
	if w.path.proxied {
		return w.checkProxy(ctx)
	}
	for range 20 {
		if _, err = w.from.Ping(ctx, lab.Probe{To: w.addr, Timeout: 250 * time.Millisecond}); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// openWay makes two hosts on an underlay and joins them.
func (b *bench) openWay(ctx context.Context, underlay Underlay, path Path) (w *way, err error) {
	p := &pair{bench: b}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open path %s: %w", path.Name, err)
		}
	}()
	for i := range p.sites {
		host, err := b.newHost()
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.sites[i] = newSite(i+1, host)
	}
	err = p.sites[0].host.Cross(p.sites[1].host, lab.CrossConfig{
		Device: underlayDevice, MTU: underlayMTU, Offload: underlay.offload,
		Addresses: [2]netip.Prefix{
			netip.PrefixFrom(p.sites[0].outer, underlayBits), netip.PrefixFrom(p.sites[1].outer, underlayBits),
		},
	})
	if err == nil {
		w, err = path.open(ctx, p)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	w.path, w.ends, w.helpers, w.hosts = path, p.ends, p.helpers, p.hosts()
	if err := w.check(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (b *bench) newHost() (*lab.Host, error) {
	b.hosts++
	return b.world.Host(lab.HostConfig{Name: fmt.Sprintf("host%d", b.hosts)})
}

const (
	underlayDevice = "cross0"
	underlayBits   = 24
)

// pair is two hosts with a bare link between them, to be joined.
type pair struct {
	bench   *bench
	sites   [2]*site
	ends    []*process
	helpers []helper
	keys    [2]*ecdh.PrivateKey // of either site; made by the first end that needs one
}

// site is one host and the numbers it has in every tunnel.
type site struct {
	host   *lab.Host
	place  *lab.Namespace // of the tunnel's device, and of programs
	outer  netip.Addr     // on the link
	subnet netip.Prefix   // of the pods; the tunnel device has its first address
	mac    tunnel.MAC
}

func newSite(number int, host *lab.Host) *site {
	return &site{
		host:   host,
		place:  host.Namespace,
		outer:  netip.AddrFrom4([4]byte{172, 31, 0, byte(number)}),
		subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24),
		mac:    tunnel.MAC{0x02, 0, 0, 0, 1, byte(number)},
	}
}

// inner is the host's own address in the overlay.
func (s *site) inner() netip.Addr { return s.subnet.Addr() }

// pod is the address of the pod on the host: the bridge has the one before.
func (s *site) pod() netip.Addr { return s.subnet.Addr().Next().Next() }

func (p *pair) hosts() (hosts []*lab.Host) {
	for _, s := range p.sites {
		if s != nil {
			hosts = append(hosts, s.host)
		}
	}
	return hosts
}

func (p *pair) close() error {
	return (&way{ends: p.ends, helpers: p.helpers, hosts: p.hosts()}).close()
}

func openBare(_ context.Context, p *pair) (*way, error) {
	return &way{from: p.sites[0].host.Namespace, to: p.sites[1].host.Namespace, addr: p.sites[1].outer}, nil
}

// end makes one host of a pair a member of an overlay with the other. number
// is 0 or 1.
type end func(ctx context.Context, p *pair, number int) error

// betweenHosts joins the hosts by a tunnel; traffic starts and ends on them.
func betweenHosts(sender, receiver end) func(context.Context, *pair) (*way, error) {
	return func(ctx context.Context, p *pair) (*way, error) {
		for number, join := range []end{sender, receiver} {
			if err := join(ctx, p, number); err != nil {
				return nil, err
			}
		}
		return &way{from: p.sites[0].place, to: p.sites[1].place, addr: p.sites[1].inner()}, nil
	}
}

// betweenPods is betweenHosts with a pod behind a bridge on either host.
func betweenPods(sender, receiver end) func(context.Context, *pair) (*way, error) {
	return func(ctx context.Context, p *pair) (*way, error) {
		w, err := betweenHosts(sender, receiver)(ctx, p)
		if err != nil {
			return nil, err
		}
		var pods [2]*lab.Namespace
		for i, s := range p.sites {
			pods[i], err = s.host.Pod(lab.PodConfig{
				Name: "pod", MTU: vxlanMTU,
				Addresses: []netip.Prefix{netip.PrefixFrom(s.pod(), s.subnet.Bits())},
			})
			if err != nil {
				return nil, err
			}
		}
		w.from, w.to, w.addr = pods[0], pods[1], p.sites[1].pod()
		return w, nil
	}
}
