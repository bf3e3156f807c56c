package datapath

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestWorkers(t *testing.T) {
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 6: 3, 8: 4, 128: 4} {
		if got := workers(cpus); got != want {
			t.Errorf("%d CPUs have %d workers, want %d", cpus, got, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	addr := netip.MustParseAddrPort("192.0.2.1:8472")
	logger := slog.New(slog.DiscardHandler)
	for want, config := range map[string]Config{
		"Logger":               {Listen: []netip.AddrPort{addr}},
		"Listen is empty":      {Logger: logger},
		"Workers is 65":        {Listen: []netip.AddrPort{addr}, Workers: 65, Logger: logger},
		"BusyPoll is 1h0m0s":   {Listen: []netip.AddrPort{addr}, BusyPoll: time.Hour, Logger: logger},
		"want one per family":  {Listen: []netip.AddrPort{addr, addr}, Logger: logger},
		"open TUN weft0: MTU ": {Device: "weft0", Listen: []netip.AddrPort{addr}, Logger: logger},
	} {
		if _, err := Open(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
