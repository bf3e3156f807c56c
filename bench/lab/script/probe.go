package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/bench/lab"
)

var probeCommands = map[string]Command{
	"ping":       ping,
	"reach":      reach,
	"throughput": throughput,
	"dump":       dump,
}

// question is what ping and reach ask.
type question struct {
	from    *lab.Namespace
	target  string
	addrs   []netip.Addr
	probe   lab.Probe
	count   int
	timeout time.Duration
}

func (r *Run) parseQuestion(args []string) (q question, err error) {
	args, values := options(args, "count", "size", "df", "each", "timeout")
	if len(args) != 2 {
		return q, usage("ping|reach PLACE TARGET [count=N] [size=BYTES] [df] [each=1s] [timeout=10s]")
	}
	if q.from, err = r.Place(args[0]); err != nil {
		return q, err
	}
	q.target = args[1]
	if q.addrs, err = r.shared(args[0], q.target); err != nil {
		return q, err
	}
	if q.timeout, err = duration(values, "timeout", 10*time.Second); err != nil {
		return q, err
	}
	_, q.probe.DontFragment = values["df"]
	q.count = 3
	for name, number := range map[string]*int{"count": &q.count, "size": &q.probe.PayloadBytes} {
		if text, ok := values[name]; ok {
			if *number, err = strconv.Atoi(text); err != nil || *number < 0 {
				return q, fmt.Errorf("%s=%s: want a number", name, text)
			}
		}
	}
	q.probe.Timeout, err = duration(values, "each", time.Second)
	return q, err
}

// shared returns the addresses of a target in the families that the place has.
func (r *Run) shared(place, target string) ([]netip.Addr, error) {
	addrs, err := r.Addresses(target)
	if err != nil || place == "outside" || len(addrs) == 1 {
		return addrs, err
	}
	own, err := r.Addresses(place)
	if err != nil {
		return nil, err
	}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool {
		return !slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Is4() == addr.Is4() })
	})
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s and %s have no address family in common", place, target)
	}
	return addrs, nil
}

func ping(run *Run, args []string) error {
	q, err := run.parseQuestion(args)
	if err != nil {
		return err
	}
	for _, addr := range q.addrs {
		q.probe.To = addr
		begun := time.Now()
		err := run.within(q.timeout, func(ctx context.Context) error {
			rtt, err := q.from.Ping(ctx, q.probe)
			if err == nil {
				fmt.Fprintf(run.Stdout, "%s %v, %v after the first request\n", addr, rtt, time.Since(begun).Round(time.Millisecond))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pingSilent wants no answer to any of some requests.
func pingSilent(run *Run, args []string) error {
	q, err := run.parseQuestion(args)
	if err != nil {
		return err
	}
	for _, addr := range q.addrs {
		q.probe.To = addr
		for range q.count {
			if _, err := q.from.Ping(run.ctx, q.probe); err == nil {
				return fmt.Errorf("%s answers", addr)
			}
		}
	}
	return nil
}

// reachSizes are bytes sent over TCP and UDP: TCP fills many segments, UDP
// stays below any MTU in use.
var reachSizes = map[string]int{"tcp": 256 << 10, "udp": 1000}

func reach(run *Run, args []string) error {
	if err := ping(run, args); err != nil {
		return err
	}
	return run.exchangeAll(args, func(q question, network string, addr netip.AddrPort) error {
		return run.within(q.timeout, func(ctx context.Context) error { return exchange(ctx, q.from, network, addr) })
	})
}

// reachSilent wants no answer in any protocol.
func reachSilent(run *Run, args []string) error {
	if err := pingSilent(run, args); err != nil {
		return err
	}
	return run.exchangeAll(args, func(q question, network string, addr netip.AddrPort) error {
		ctx, cancel := context.WithTimeout(run.ctx, q.probe.Timeout)
		defer cancel()
		if err := exchange(ctx, q.from, network, addr); err == nil {
			return fmt.Errorf("%s answers over %s", addr.Addr(), network)
		}
		return nil
	})
}

// exchangeAll has the target answer at all its addresses while ask asks there.
func (r *Run) exchangeAll(args []string, ask func(q question, network string, addr netip.AddrPort) error) error {
	q, err := r.parseQuestion(args)
	if err != nil {
		return err
	}
	to, err := r.Place(q.target)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	for _, addr := range q.addrs {
		bound, err := to.Echo(ctx, netip.AddrPortFrom(addr, 0))
		if err != nil {
			return err
		}
		for network := range reachSizes {
			if err := ask(q, network, bound); err != nil {
				return fmt.Errorf("%s: %w", network, err)
			}
		}
	}
	return nil
}

// exchange sends bytes to an echo service and compares what comes back.
func exchange(ctx context.Context, from *lab.Namespace, network string, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := from.Dial(ctx, network, addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make([]byte, reachSizes[network])
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, len(sent))
	_, err = io.ReadFull(conn, got)
	if err != nil {
		conn.Close() // the write may hang as well
	}
	if err := errors.Join(err, <-failed); err != nil {
		return errors.Join(err, ctx.Err())
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back changed", len(sent))
	}
	return nil
}

func throughput(run *Run, args []string) error {
	args, values := options(args, "time")
	if len(args) != 2 {
		return usage("throughput PLACE TARGET [time=1s]")
	}
	from, to, addr, err := run.Ends(args[0], args[1])
	if err != nil {
		return err
	}
	length, err := duration(values, "time", time.Second)
	if err != nil {
		return err
	}
	gbps, err := lab.Throughput(run.ctx, from, to, addr, length)
	fmt.Fprintf(run.Stdout, "%.3f Gbit/s\n", gbps)
	return err
}

func dump(run *Run, args []string) error {
	raw := len(args) > 0 && args[0] == "-raw"
	if raw {
		args = args[1:]
	}
	if len(args) < 2 || len(args) > 3 {
		return usage("dump [-raw] PLACE links|addrs|routes|neigh|fdb|nft [DEVICE]")
	}
	place, err := run.Place(args[0])
	if err != nil {
		return err
	}
	text, err := place.Dump(args[1], append(args, "")[2])
	if err != nil {
		return err
	}
	if !raw {
		symbols, err := run.Lab.Symbols()
		if err != nil {
			return err
		}
		var pairs []string
		for mac, symbol := range symbols {
			pairs = append(pairs, mac, symbol)
		}
		text = strings.NewReplacer(pairs...).Replace(text)
	}
	run.Stdout.WriteString(text)
	return nil
}
