package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/bench/lab"
)

// describeMachine says what is measured on.
func (b *bench) describeMachine(ctx context.Context) (m Machine, err error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Machine{}, err
	}
	processors, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return Machine{}, err
	}
	version, err := b.world.Outside().Command(ctx, iperfProgram, "--version").Output()
	if err != nil {
		return Machine{}, fmt.Errorf("ask %s for its version: %w", iperfProgram, err)
	}
	m = Machine{
		CPU: processorName(processors), CPUs: runtime.NumCPU(), Kernel: string(bytes.TrimSpace(release)),
		Go: runtime.Version(), Rounds: b.Rounds, Seconds: int(b.Duration / time.Second),
	}
	if fields := strings.Fields(string(version)); len(fields) > 1 {
		m.Iperf = fields[1]
	}
	if slices.ContainsFunc(b.Paths, func(p Path) bool { return p.Name == pathWireGuard }) {
		if _, err := b.Idle.wait(ctx); err != nil {
			return Machine{}, err
		}
		floor, err := cryptoFloor()
		if err != nil {
			return Machine{}, err
		}
		m.CipherMillisPerGbit = number(floor)
	}
	m.CongestionControl, err = b.chooseCongestionControl()
	return m, err
}

// processorName is what /proc/cpuinfo calls the first processor, if anything.
func processorName(cpuinfo []byte) string {
	for line := range strings.Lines(string(cpuinfo)) {
		name, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func (b *bench) chooseCongestionControl() (name string, err error) {
	for _, name := range lab.CongestionControls() {
		refused := b.world.Outside().Do(func() error { return tryCongestionControl(name) })
		if refused == nil {
			return name, nil
		}
		err = errors.Join(err, fmt.Errorf("%s: %w", name, refused))
	}
	return "", fmt.Errorf("fix TCP's congestion control: %w", err)
}
