package datapath

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/metrics"
	"runtime/pprof"

	"golang.org/x/sync/errgroup"
)

// carrier carries packets between a TUN device and the link.
type carrier interface {
	// Run returns nil when ctx is done.
	Run(ctx context.Context) error
	// Counters are sums since the start. Those that count system calls have
	// names that end in _calls; a segment is a datagram on the link, counted in
	// tx_datagrams and rx_datagrams.
	Counters() map[string]uint64
}

// carriers are the kinds of userspace ends.
var carriers = map[string]func(endConfig, *slog.Logger) (carrier, error){
	"weft":         openWeft,
	"wireguard-go": openWireGuard,
	"naive":        openNaive,
	"netstack":     openNetstack,
}

// RunEnd is a userspace end of a tunnel, in a process of its own on its host.
// The first JSON value of in configures it, every further one asks for its
// counters, and each is answered by one JSON value on out. It ends with in.
func RunEnd(ctx context.Context, kind string, in io.Reader, out io.Writer) error {
	open, ok := carriers[kind]
	if !ok {
		return fmt.Errorf("run end: unknown kind %q", kind)
	}
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	var config endConfig
	if err := requests.Decode(&config); err != nil {
		return fmt.Errorf("run %s: read configuration: %w", kind, err)
	}
	stop, err := profile(config.Profile)
	if err != nil {
		return fmt.Errorf("run %s: %w", kind, err)
	}
	defer stop()
	running, err := open(config, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return fmt.Errorf("run %s: %w", kind, errors.Join(err, answers.Encode(reading{Error: err.Error()})))
	}
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() error { return running.Run(ctx) })
	group.Go(func() error {
		defer cancel()
		return answer(running, requests, answers)
	})
	if err := group.Wait(); err != nil {
		return fmt.Errorf("run %s: %w", kind, err)
	}
	return nil
}

// answer says at once that the end is ready, and its sums for every request.
func answer(running carrier, requests *json.Decoder, answers *json.Encoder) error {
	allocations := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	for {
		metrics.Read(allocations)
		r := reading{Counters: running.Counters(), Allocations: allocations[0].Value.Uint64()}
		if err := answers.Encode(r); err != nil {
			return err
		}
		var request json.RawMessage
		if err := requests.Decode(&request); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
	}
}

// profile records where the process spends its time, if a file is given.
func profile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make profile: %w", err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, fmt.Errorf("make profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		file.Close()
	}, nil
}
