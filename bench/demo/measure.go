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
	"github.com/weft-net/weft/tunnel"
)

// streamTime is how long each TCP stream runs.
const streamTime = 2 * time.Second

// Measure looks at every lease, pings from every pod to every other in every
// family, and measures TCP between the pairs of kinds. Pods that cannot be
// reached are part of the Report, not an error.
func (d *Demo) Measure(ctx context.Context) (Report, error) {
	var report Report
	var pods []Pod
	for _, m := range d.members {
		s := m.status
		report.Hosts = append(report.Hosts, Host{
			Name: m.Name(), Engine: s.Engine, Device: s.Device, Encap: s.Encap,
			Subnets: s.Subnets, Addresses: s.PublicIPs, MTU: s.MTU,
		})
		pods = append(pods, m.pods...)
	}
	slices.SortFunc(report.Hosts, func(a, b Host) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	d.cfg.Progress("pinging every pod from every other")
	report.Reach = reach(ctx, pods)
	for _, pair := range d.pairs() {
		if ctx.Err() != nil {
			break
		}
		from, to := pair[0].pods[0], pair[1].pods[0]
		d.cfg.Progress(fmt.Sprintf("TCP from %s to %s for %s", from.Name, to.Name, streamTime))
		stream := Stream{From: from.Name, To: to.Name, Engines: pair[0].engine + "-" + pair[1].engine}
		stream.Gbps, stream.Err = lab.Throughput(ctx, from.ns, to.ns, to.Addresses[0], streamTime)
		report.Throughput = append(report.Throughput, stream)
	}
	return report, ctx.Err()
}

// pairs picks hosts for each pair of kinds.
func (d *Demo) pairs() [][2]*member {
	kinds := map[tunnel.Engine][]*member{}
	for _, m := range d.members {
		kinds[m.engine] = append(kinds[m.engine], m)
	}
	kernel, user := kinds[tunnel.EngineKernel], kinds[tunnel.EngineUserspace]
	return [][2]*member{{kernel[0], kernel[1]}, {kernel[0], user[0]}, {user[0], user[1]}}
}

// reach pings all pairs. First everyone looks for everyone at once, then the
// times of those that answer are taken one by one, undisturbed.
func reach(ctx context.Context, pods []Pod) []Reach {
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
	byName := map[string]Pod{}
	for _, pod := range pods {
		byName[pod.Name] = pod
	}
	for i := range all {
		for family := range all[i].Answers {
			if answer := &all[i].Answers[family]; answer.Err == nil {
				*answer = roundTrip(ctx, byName[all[i].From].ns, answer.Addr)
			}
		}
	}
	return all
}

// search pings until an answer comes or patience ends, but at least once.
func search(patience context.Context, from, to Pod) Reach {
	found := Reach{From: from.Name, To: to.Name}
	for _, addr := range to.Addresses {
		answer := Answer{Addr: addr}
		for {
			_, answer.Err = from.ns.Ping(context.WithoutCancel(patience), lab.Probe{To: addr, Timeout: 300 * time.Millisecond})
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
func roundTrip(ctx context.Context, from *lab.Namespace, to netip.Addr) Answer {
	const tries = 3
	best := Answer{Addr: to}
	for range tries {
		rtt, err := from.Ping(ctx, lab.Probe{To: to})
		if err != nil {
			return Answer{Addr: to, Err: err}
		}
		if best.RTT == 0 || rtt < best.RTT {
			best.RTT = rtt
		}
	}
	return best
}
