//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/bench/lab/script"
)

// milestones are what an agent logs on its way, in the order in which they are
// told. The first packet comes last.
var milestones = []struct{ name, text string }{
	{"program runs", `msg="weft agent starts"`},
	{"lease acquired", `msg="lease acquired"`},
	{"session up", `msg="wireguard session up"`},
}

// recoverAgain kills the agent on the host of a pod that only listens, while
// another pod sends it a thousand datagrams a second, and starts it at once:
//
//	recover TIMES FROM TO HOST [FLAG...]
//
// It prints the time from the start to each milestone and to the first packet.
func recoverAgain(run *script.Run, args []string) error {
	if len(args) < 4 {
		return errors.New("usage: recover TIMES FROM TO HOST [FLAG...]")
	}
	times, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	arrived, stop, err := pour(run, args[1], args[2])
	if err != nil {
		return err
	}
	defer stop()
	log := filepath.Join(run.Getenv("WORK"), args[3]+".log")
	took := map[string][]time.Duration{}
	for range times {
		if err := await(arrived); err != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond) // each time out of the same rest
		if err := run.Do("kill-agent", args[3]); err != nil {
			return err
		}
		drain(arrived)
		before, err := os.Stat(log)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := run.Do("agent", args[3:]...); err != nil {
			return err
		}
		if err := await(arrived); err != nil {
			return err
		}
		took["first packet"] = append(took["first packet"], time.Since(began))
		for _, m := range milestones {
			at, err := loggedAt(log, before.Size(), m.text)
			if err != nil {
				return err
			}
			took[m.name] = append(took[m.name], at.Sub(began))
		}
	}
	for _, name := range []string{milestones[0].name, milestones[1].name, milestones[2].name, "first packet"} {
		sorted := slices.Sorted(slices.Values(took[name]))
		fmt.Fprintf(run.Stdout, "%-15s median %v, p99 %v of %d\n", name, sorted[len(sorted)/2].Round(time.Millisecond),
			sorted[(len(sorted)*99-1)/100].Round(time.Millisecond), len(sorted))
	}
	return nil
}

// pour sends a datagram every millisecond, and has a token in arrived for those
// that get there.
func pour(run *script.Run, from, to string) (arrived chan struct{}, stop func(), err error) {
	source, target, addr, err := run.Ends(from, to)
	if err != nil {
		return nil, nil, err
	}
	ctx := context.Background()
	sink, err := target.ListenPacket(ctx, "udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return nil, nil, err
	}
	conn, err := source.Dial(ctx, "udp", sink.LocalAddr().String())
	if err != nil {
		return nil, nil, errors.Join(err, sink.Close())
	}
	arrived = make(chan struct{}, 1)
	var ended atomic.Bool
	var done sync.WaitGroup
	done.Go(func() { take(sink, arrived) })
	done.Go(func() {
		for !ended.Load() {
			_, _ = conn.Write(make([]byte, 100)) // what is lost is what this is about
			time.Sleep(time.Millisecond)
		}
	})
	return arrived, func() {
		ended.Store(true)
		conn.Close()
		sink.Close()
		done.Wait()
	}, nil
}

func take(sink net.PacketConn, arrived chan<- struct{}) {
	buffer := make([]byte, 1<<16)
	for {
		if _, _, err := sink.ReadFrom(buffer); err != nil {
			return
		}
		select {
		case arrived <- struct{}{}:
		default:
		}
	}
}

func await(arrived <-chan struct{}) error {
	select {
	case <-arrived:
		return nil
	case <-time.After(time.Minute):
		return errors.New("nothing arrives within a minute")
	}
}

// drain waits until nothing arrives any more.
func drain(arrived <-chan struct{}) {
	for {
		select {
		case <-arrived:
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

var logTime = regexp.MustCompile(`^time=(\S+)`)

// loggedAt is when a line that holds text was logged first, after so many bytes
// of the log. On a busy machine it comes later than the packet it is about.
func loggedAt(log string, offset int64, text string) (time.Time, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all, err := os.ReadFile(log)
		if err != nil {
			return time.Time{}, err
		}
		lines := string(all[offset:])
		for line := range strings.Lines(lines) {
			if found := logTime.FindStringSubmatch(line); found != nil && strings.Contains(line, text) {
				return time.Parse(time.RFC3339Nano, found[1])
			}
		}
		if time.Now().After(deadline) {
			return time.Time{}, fmt.Errorf("no %s in the log:\n%s", text, lines)
		}
	}
}
