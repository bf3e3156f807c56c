package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/proxy"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/control/agent"
	"github.com/weft-net/weft/netstack/local"
)

// Ports of the laptop that pods reach, and where on the laptop they lead.
const (
	echoPort = 7
	sinkPort = 9
)

var (
	echoAt  = netip.MustParseAddrPort("127.0.0.1:7777")
	sinkAt  = netip.MustParseAddrPort("127.0.0.1:9999")
	proxyAt = netip.MustParseAddrPort("127.0.0.1:1080") // where its programs reach pods
)

// addresses are those of a host in the overlay by itself: the first of each of
// its subnets.
func (m *member) addresses() (addresses []netip.Addr, err error) {
	if addresses, err = firstAddresses(m.status.Subnets); err != nil {
		return nil, fmt.Errorf("read subnets of %s: %w", m.Name(), err)
	}
	if len(addresses) != len(networks) {
		return nil, fmt.Errorf("read subnets of %s: %v, want one per family", m.Name(), m.status.Subnets)
	}
	return addresses, nil
}

func firstAddresses(subnets []string) (addresses []netip.Addr, err error) {
	for _, text := range subnets {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, subnet.Addr())
	}
	return addresses, nil
}

// pingThrough lets the agent ping.
func (m *member) pingThrough(ctx context.Context, probe lab.Probe) (time.Duration, error) {
	if probe.Timeout == 0 {
		probe.Timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, probe.Timeout)
	defer cancel()
	client := local.Client{Dial: func(ctx context.Context) (net.Conn, error) { return agent.DialLocal(ctx, m.socket()) }}
	pong, err := client.Ping(ctx, probe.To.String(), probe.PayloadBytes)
	return pong.RTT, err
}

// usePorts sends something from every pod to the laptop's exposed port over TCP
// and UDP, and from the laptop to every pod through the laptop's proxy.
func (d *Demo) usePorts(ctx context.Context, report *Report) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, laptop := range d.members {
		if laptop.kind != deviceless {
			continue
		}
		addresses, err := laptop.addresses()
		if err != nil {
			return err
		}
		if _, err := laptop.Echo(ctx, echoAt); err != nil {
			return err
		}
		out, err := proxy.SOCKS5("tcp", proxyAt.String(), nil, inside{laptop.Namespace})
		if err != nil {
			return fmt.Errorf("use the laptop's proxy: %w", err)
		}
		for _, m := range d.members {
			for _, pod := range m.pods {
				for _, network := range []string{"tcp", "udp"} {
					in := Port{From: pod.Name, To: laptop.Name(), Over: network}
					for _, addr := range addresses {
						in.Answers = append(in.Answers, echo(ctx, pod.ns.Dial, network, netip.AddrPortFrom(addr, echoPort)))
					}
					report.Ports = append(report.Ports, in)
				}
				through := Port{From: laptop.Name(), To: pod.Name, Over: "socks5"}
				for _, addr := range pod.Addresses {
					at, err := pod.ns.Echo(ctx, netip.AddrPortFrom(addr, 0))
					if err != nil {
						return err
					}
					through.Answers = append(through.Answers, echo(ctx, out.(proxy.ContextDialer).DialContext, "tcp", at))
				}
				report.Ports = append(report.Ports, through)
			}
		}
	}
	return ctx.Err()
}

// inside dials from a namespace, as the proxy's client wants it.
type inside struct{ *lab.Namespace }

func (i inside) Dial(network, address string) (net.Conn, error) {
	return i.Namespace.Dial(context.Background(), network, address)
}

func (i inside) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return i.Namespace.Dial(ctx, network, address)
}

// echoPatience is how long one answer may take.
const echoPatience = 2 * time.Second

// echo connects, sends a few bytes and takes the time until they are back.
func echo(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), network string, to netip.AddrPort) Answer {
	ctx, cancel := context.WithTimeout(ctx, echoPatience)
	defer cancel()
	answer := Answer{Addr: to.Addr()}
	answer.RTT, answer.Err = func() (time.Duration, error) {
		conn, err := dial(ctx, network, to.String())
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		const said = "anybody there?"
		start := time.Now()
		if _, err := io.WriteString(conn, said); err != nil {
			return 0, err
		}
		heard := make([]byte, len(said))
		if _, err := io.ReadFull(conn, heard); err != nil {
			return 0, fmt.Errorf("wait for an answer from %s %s: %w", network, to, err)
		}
		if string(heard) != said {
			return 0, fmt.Errorf("%s %s answered %q, want %q", network, to, heard, said)
		}
		return time.Since(start), nil
	}()
	return answer
}
