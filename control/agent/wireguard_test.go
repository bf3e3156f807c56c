package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/keys"
	"github.com/weft-net/weft/tunnel"
)

// speaking makes a rig's host one that speaks WireGuard by the userspace engine,
// with its files in a directory.
func speaking(dir string, change func(*rig, *Config)) func(*rig, *Config) {
	return func(r *rig, cfg *Config) {
		r.host.wireGuard = errors.New("operation not supported")
		cfg.WireGuard = &WireGuard{
			KeyFile: filepath.Join(dir, "key"), ContactsFile: filepath.Join(dir, "peers"), Engine: "auto", Step: time.Minute,
		}
		if change != nil {
			change(r, cfg)
		}
	}
}

// TestKeyRotation follows a key that takes the place of another: each step is in
// the file before peers hear of it, and status tells how far it is.
func TestKeyRotation(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *rig){
		"asked for": func(t *testing.T, r *rig) {
			if err := r.agent.askRotation(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := r.agent.askRotation(t.Context()); err == nil || !strings.Contains(err.Error(), "a new key is announced") {
				t.Errorf("asked for twice: %v", err)
			}
		},
		"by age": func(*testing.T, *rig) { time.Sleep(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				r := start(t, speaking(dir, func(_ *rig, cfg *Config) {
					if name == "by age" {
						cfg.WireGuard.MaxAge = time.Hour
					}
				}))
				r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
				r.settle()
				old := r.source.claimed.Offers.WireGuard
				if old.Keys[0] == (tunnel.PublicKey{}) || old.Keys[1] != (tunnel.PublicKey{}) || old.Ports != [2]uint16{51820, 0} {
					t.Fatalf("offers %+v", old)
				}
				begin(t, r)
				var next tunnel.PublicKey
				for step, phase := range []keys.Phase{keys.Announced, keys.Switched, keys.Settled} {
					status := r.settle().WireGuard
					published := r.source.moved()[len(r.source.moved())-1].Offers.WireGuard.Keys
					if step == 0 {
						next = published[1]
					}
					want := []tunnel.WireGuardKeys{{old.Keys[0], next}, {next, old.Keys[0]}, {next}}[step]
					kept, err := keys.Load(filepath.Join(dir, "key"))
					if err != nil || kept.Public() != want || kept.Phase != phase || published != want {
						t.Fatalf("step %d: published %v, kept %v in phase %q, %v; want %v in %q", step, published, kept.Public(), kept.Phase, err, want, phase)
					}
					if status.Key != want[0].String() || status.Phase != string(phase) {
						t.Errorf("step %d: status %+v", step, status)
					}
					time.Sleep(time.Minute)
				}
				if len(r.source.moved()) != 3 {
					t.Errorf("%d times published, want 3", len(r.source.moved()))
				}
				r.end(t)
			})
		})
	}
}

// TestKeyFileChanged holds that a key which somebody else has put in place is
// not overwritten, and that the host goes on with the one it has.
func TestKeyFileChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r := start(t, speaking(dir, nil))
		r.source.snapshots <- control.Snapshot{Complete: true}
		before := r.settle().WireGuard.Key
		if err := os.Remove(filepath.Join(dir, "key")); err != nil {
			t.Fatal(err)
		}
		foreign, _, err := keys.LoadOrCreate(filepath.Join(dir, "key"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.agent.askRotation(t.Context()); err == nil || !strings.Contains(err.Error(), "not what it was") {
			t.Errorf("rotation over another key: %v", err)
		}
		kept, err := keys.Load(filepath.Join(dir, "key"))
		if err != nil || kept.Current != foreign.Current || r.settle().WireGuard.Key != before || len(r.source.moved()) != 0 {
			t.Errorf("the file was changed, or the key: %v", err)
		}
		r.end(t)
	})
}

// TestWhoCarriesWireGuard holds who does, that a host which cannot says why, and
// that it ends only where the network is of no use without.
func TestWhoCarriesWireGuard(t *testing.T) {
	fails := errors.New("operation not supported")
	const always = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Encrypt":"always"}}`
	tests := map[string]struct {
		engine            string
		netConf           string
		kernel, tun       error
		device, keyFile   string
		want, reason, err string
	}{
		"kernel":                {want: "kernel", reason: "the kernel can do it"},
		"userspace":             {kernel: fails, want: "userspace", reason: "operation not supported"},
		"userspace asked for":   {engine: "userspace", want: "userspace", reason: "asked for"},
		"kernel asked for":      {engine: "kernel", kernel: fails, err: "--wireguard=kernel: operation not supported"},
		"no TUN":                {kernel: fails, tun: errors.New("no /dev/net/tun"), reason: "operation not supported; no /dev/net/tun"},
		"no TUN, but a must":    {netConf: always, kernel: fails, tun: errors.New("no /dev/net/tun"), err: "carry WireGuard: operation not supported; no /dev/net/tun"},
		"no device":             {device: "none", kernel: fails, want: "userspace", reason: "no device"},
		"off":                   {engine: "off", reason: "switched off by --wireguard=off"},
		"not in the network":    {netConf: `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Prefer":["vxlan"],"Encrypt":"never"}}`, reason: "net-conf has nobody use it"},
		"no place for a key":    {keyFile: "/dev/null/key", reason: "no key can be kept"},
		"no place, but a must":  {netConf: always, keyFile: "/dev/null/key", err: "open WireGuard keys"},
		"a network of its kind": {netConf: `{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}`, want: "kernel", reason: "the kernel can do it"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, speaking(t.TempDir(), func(r *rig, cfg *Config) {
					r.host.wireGuard, r.host.tun = test.kernel, test.tun
					if test.netConf != "" {
						r.source.netConf = test.netConf
					}
					if test.keyFile != "" {
						cfg.WireGuard.KeyFile = test.keyFile
					}
					switch test.engine {
					case "":
					case "off":
						cfg.WireGuard = nil
					default:
						cfg.WireGuard.Engine = test.engine
					}
					if test.device == "none" {
						cfg.Device, cfg.DeviceReason = "", "asked for"
					}
				}))
				if test.err != "" {
					if err := <-r.ended; err == nil || !strings.Contains(err.Error(), test.err) {
						t.Errorf("ended with %v, want %q", err, test.err)
					}
					return
				}
				r.source.snapshots <- control.Snapshot{Complete: true}
				status := r.settle().WireGuard
				offers := r.source.claimed.Offers.WireGuard
				if status == nil || status.Engine != test.want || !strings.Contains(status.Reason, test.reason) {
					t.Errorf("status %+v, want %q with %q", status, test.want, test.reason)
				}
				if offered := offers.Keys[0] != (tunnel.PublicKey{}); offered != (test.want != "") {
					t.Errorf("offers %+v", offers)
				}
				r.end(t)
			})
		})
	}
}

// TestOtherKeyPublished holds that a host which has lost its key says so.
func TestOtherKeyPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		r := start(t, speaking(t.TempDir(), func(r *rig, cfg *Config) {
			r.source.recall.Keys = tunnel.WireGuardKeys{{1}}
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		}))
		r.source.snapshots <- control.Snapshot{Complete: true}
		r.settle()
		if !strings.Contains(log.String(), "peers know this host by another WireGuard key") {
			t.Errorf("log:\n%s", log.String())
		}
		r.end(t)
	})
}
