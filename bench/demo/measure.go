package demo

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/control/agent"
)

// streamTime is how long each TCP stream runs.
const streamTime = 2 * time.Second

// point is a pod, or a host that is in the overlay by itself.
type point struct {
	Name      string
	Addresses []netip.Addr // IPv4 first
	ping      func(context.Context, lab.Probe) (time.Duration, error)
}

// Measure looks at every lease, pings from every pod to every other in every
// family, the laptop among them, uses the laptop's ports and proxy, and measures
// TCP between the pairs of kinds. Pods that cannot be
// reached are part of the Report, not an error.
func (d *Demo) Measure(ctx context.Context) (Report, error) {
	var report Report
	var points []point
	for _, m := range d.members {
		report.Hosts = append(report.Hosts, hostOf(m.Name(), m.status))
		more, err := m.points()
		if err != nil {
			return report, err
		}
		points = append(points, more...)
	}
	slices.SortFunc(report.Hosts, func(a, b Host) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.Name, b.Name) })
	d.cfg.Progress("pinging every pod from every other")
	report.Reach = reach(ctx, points)
	d.cfg.Progress("using the laptop's ports and proxy")
	if err := d.usePorts(ctx, &report); err != nil {
		return report, err
	}
	for _, pair := range d.pairs() {
		if ctx.Err() != nil {
			break
		}
		report.Throughput = append(report.Throughput, d.stream(ctx, pair[0], pair[1]))
	}
	return report, ctx.Err()
}

func hostOf(name string, s agent.Status) Host {
	return Host{
		Name: name, Engine: s.Engine, Device: s.Device, Encap: s.Encap,
		Subnets: s.Subnets, Addresses: s.PublicIPs, MTU: s.MTU,
	}
}

// stream measures from a host's pod to another's, or to the other itself.
func (d *Demo) stream(ctx context.Context, fromHost, toHost *member) Stream {
	from := fromHost.pods[0]
	stream := Stream{From: from.Name, To: toHost.Name(), Engines: string(fromHost.kind + "-" + toHost.kind)}
	if toHost.kind != deviceless {
		stream.To = toHost.pods[0].Name
	}
	d.cfg.Progress(fmt.Sprintf("TCP from %s to %s for %s", stream.From, stream.To, streamTime))
	if toHost.kind == deviceless {
		var to []netip.Addr
		if to, stream.Err = toHost.addresses(); stream.Err == nil {
			stream.Gbps, stream.Err = lab.ThroughputVia(ctx, from.ns, toHost.Namespace, netip.AddrPortFrom(to[0], sinkPort), sinkAt, streamTime)
		}
		return stream
	}
	to := toHost.pods[0]
	stream.Gbps, stream.Err = lab.Throughput(ctx, from.ns, to.ns, to.Addresses[0], streamTime)
	return stream
}

// points are what of a host others ping.
func (m *member) points() ([]point, error) {
	if m.kind == deviceless {
		addresses, err := m.addresses()
		return []point{{Name: m.Name(), Addresses: addresses, ping: m.pingThrough}}, err
	}
	var points []point
	for _, pod := range m.pods {
		points = append(points, point{Name: pod.Name, Addresses: pod.Addresses, ping: pod.ns.Ping})
	}
	return points, nil
}

// pairs picks hosts for each pair of kinds.
func (d *Demo) pairs() [][2]*member {
	kinds := map[kind][]*member{}
	for _, m := range d.members {
		kinds[m.kind] = append(kinds[m.kind], m)
	}
	kernels, users := kinds[kernel], kinds[userspace]
	return [][2]*member{
		{kernels[0], kernels[1]}, {kernels[0], users[0]}, {users[0], users[1]},
		{kernels[0], kinds[rootless][0]}, {kernels[0], kinds[deviceless][0]},
	}
}

// reach pings all pairs. First everyone looks for everyone at once, then the
// times of those that answer are taken one by one, undisturbed.
func reach(ctx context.Context, pods []point) []Reach {
	patience, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	found := make([][]Reach, len(pods))
	var searching sync.WaitGroup
	for i, from := range pods {
		searching.Go(func() {
			for _, to := range pods {
				if to.Name != from.Name {
					found[i] = append(found[i], search(patience, from, to))
				}
			}
		})
	}
	searching.Wait()
	all := slices.Concat(found...)
	byName := map[string]point{}
	for _, pod := range pods {
		byName[pod.Name] = pod
	}
	for i := range all {
		for family := range all[i].Answers {
			if answer := &all[i].Answers[family]; answer.Err == nil {
				*answer = roundTrip(ctx, byName[all[i].From], answer.Addr)
			}
		}
	}
	return all
}

// search pings until an answer comes or patience ends, but at least once.
func search(patience context.Context, from, to point) Reach {
	found := Reach{From: from.Name, To: to.Name}
	for _, addr := range to.Addresses {
		answer := Answer{Addr: addr}
		for {
			_, answer.Err = from.ping(context.WithoutCancel(patience), lab.Probe{To: addr, Timeout: 300 * time.Millisecond})
			if answer.Err == nil || patience.Err() != nil {
				break
			}
			time.Sleep(20 * time.Millisecond) // "no route" fails at once
		}
		found.Answers = append(found.Answers, answer)
	}
	return found
}

// roundTrip is the shortest of a few pings: what the way takes, not what the
// machine was doing meanwhile.
func roundTrip(ctx context.Context, from point, to netip.Addr) Answer {
	const tries = 3
	best := Answer{Addr: to}
	for range tries {
		rtt, err := from.ping(ctx, lab.Probe{To: to})
		if err != nil {
			return Answer{Addr: to, Err: err}
		}
		if best.RTT == 0 || rtt < best.RTT {
			best.RTT = rtt
		}
	}
	return best
}
