package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// move changes the underlay, as often as there are changes, within a moment.
func (r *rig) move(changes ...func(*Outer)) {
	for _, change := range changes {
		r.host.mu.Lock()
		change(&r.host.outer)
		r.host.mu.Unlock()
		signal(r.host.changes)
		time.Sleep(50 * time.Millisecond)
	}
}

// at gives a host another address, which it publishes.
func at(address string) func(*Outer) {
	return func(o *Outer) { o.Addrs, o.Public, o.Reason = addrs(address), addrs(address), "default route" }
}

// device is the link of the plan as it is in place.
func (r *rig) device(name string) tunnel.Link {
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	link, _ := r.host.objects[tunnel.Key{Kind: tunnel.KindLink, Name: name}].(tunnel.Link)
	return link
}

func TestUnderlayMTUIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.source.snapshots <- control.Snapshot{Complete: true}
		r.settle()
		r.host.mu.Lock()
		r.host.outer.MTU = 1400
		r.host.mu.Unlock()
		r.host.changes <- struct{}{}
		if status := r.settle(); status.MTU != 1350 {
			t.Errorf("inner MTU %d after the underlay's became 1400, want 1350", status.MTU)
		}
		if env, _ := os.ReadFile(r.env); !strings.Contains(string(env), "FLANNEL_MTU=1350\n") {
			t.Errorf("subnet.env: %q", env)
		}
		r.end(t)
	})
}

// TestMoveOfKernelHost: the device gets the new local address and keeps its
// MAC, peers are told, and status says so.
func TestMoveOfKernelHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		if status := r.settle(); status.Moved != nil || len(r.source.moved()) != 0 {
			t.Fatalf("before any move: %+v, told %v", status.Moved, r.source.moved())
		}
		before := r.device("flannel.1")
		r.move(at("198.51.100.7"), func(o *Outer) { o.Link, o.OnLink = "eth1", []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")} })
		status := r.settle()
		want := before
		want.Local, want.Parent = netip.MustParseAddr("198.51.100.7"), "eth1"
		if got := r.device("flannel.1"); got != want {
			t.Errorf("device %+v, want %+v", got, want)
		}
		if len(r.source.moved()) != 1 || r.source.moved()[0].Legs[0].PublicIP != want.Local || r.source.moved()[0].Legs[0].MAC != want.MAC {
			t.Errorf("the source is told %+v", r.source.moved())
		}
		if m := status.Moved; m == nil || !slices.Equal(m.From, addrs("192.0.2.1")) || !slices.Equal(m.To, addrs("198.51.100.7")) || m.Reason != "default route" {
			t.Errorf("moved %+v", m)
		}
		if !slices.Equal(status.PublicIPs, []string{"198.51.100.7"}) || !status.Ready {
			t.Errorf("status %+v", status)
		}
		r.end(t)
	})
}

// TestMoveOfUserspaceHost: the engine is opened anew for another address, and
// only for that; also while it fails, without waiting for its next try.
func TestMoveOfUserspaceHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, func(_ *rig, cfg *Config) { cfg.Engine = "userspace" })
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		r.settle()
		r.move(func(o *Outer) { o.MTU = 1400 })
		if r.settle(); len(r.host.opened) != 1 {
			t.Errorf("opened %d times after another MTU, want once: %+v", len(r.host.opened), r.host.opened)
		}
		r.move(at("198.51.100.7"))
		status := r.settle()
		if last := r.host.opened[len(r.host.opened)-1]; len(r.host.opened) != 2 || last.MTU != 1350 ||
			!slices.Equal(last.Listen, []netip.AddrPort{netip.MustParseAddrPort("198.51.100.7:8472")}) {
			t.Errorf("opened %+v", r.host.opened)
		}
		if !status.Ready || status.Counters == nil {
			t.Errorf("after the move: %+v", status)
		}
		r.host.mu.Lock()
		r.host.engine = errors.New("cannot assign requested address")
		r.host.mu.Unlock()
		r.move(at("198.51.100.8"))
		if status := r.settle(); status.Ready || !strings.Contains(status.Reason, "cannot assign") {
			t.Errorf("while the engine fails: %+v", status)
		}
		time.Sleep(time.Minute) // tries are far between now
		r.host.mu.Lock()
		r.host.engine = nil
		r.host.mu.Unlock()
		moved := time.Now()
		r.move(at("198.51.100.9"))
		for synctest.Wait(); !r.agent.Status.Current(context.Background()).Ready; synctest.Wait() {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(moved); took > 2*calmTime {
			t.Errorf("opened %v after the move", took)
		}
		r.end(t)
	})
}

// TestPublishedIsNotBound: behind a NAT the sockets and the device have the
// local address, and the lease the other one, which stays when the first moves.
func TestPublishedIsNotBound(t *testing.T) {
	for name, engine := range map[string]string{"kernel": "kernel", "userspace": "userspace"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, func(r *rig, cfg *Config) {
					cfg.Engine = engine
					r.host.outer.Public = addrs("203.0.113.9")
				})
				r.source.snapshots <- control.Snapshot{Complete: true}
				for _, local := range []string{"192.0.2.1", "198.51.100.7"} {
					r.move(func(o *Outer) { o.Addrs = addrs(local) })
					status := r.settle()
					if engine == "kernel" {
						if got := r.device("flannel.1").Local; got != addrs(local)[0] {
							t.Errorf("the device sends from %v, want %v", got, local)
						}
					} else if last := r.host.opened[len(r.host.opened)-1]; last.Listen[0].Addr() != addrs(local)[0] {
						t.Errorf("listens on %v, want %v", last.Listen, local)
					}
					if !slices.Equal(status.PublicIPs, []string{"203.0.113.9"}) || status.Moved != nil {
						t.Errorf("publishes %v, moved %+v", status.PublicIPs, status.Moved)
					}
				}
				// The source reaches out anew, with the same claim.
				if len(r.source.moved()) != 1 || !reflect.DeepEqual(r.source.moved()[0], r.source.claimed) {
					t.Errorf("the source is told %+v, want once %+v", r.source.moved(), r.source.claimed)
				}
				r.end(t)
			})
		})
	}
}

// TestVanishedAddressIsKept: a renewal that takes the address away for a while
// unpublishes nothing, and says so until it is back.
func TestVanishedAddressIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.source.snapshots <- control.Snapshot{Complete: true, Leases: []control.Lease{peerLease("b", 2)}}
		r.settle()
		before := len(r.host.objects)
		r.host.mu.Lock()
		r.host.outerOK = false
		r.host.mu.Unlock()
		r.move(func(*Outer) {})
		status := r.settle()
		if !status.Ready || len(r.host.objects) != before || !strings.Contains(status.Reason, "going on with eth0 at [192.0.2.1]: no default route") {
			t.Errorf("without an address: %+v, %d objects of %d", status, len(r.host.objects), before)
		}
		r.host.mu.Lock()
		r.host.outerOK = true
		r.host.mu.Unlock()
		r.move(func(*Outer) {})
		if status := r.settle(); status.Reason != "" || len(r.source.moved()) != 0 {
			t.Errorf("with the address again: reason %q, told %v", status.Reason, r.source.moved())
		}
		// What the source refuses is not done either, and is tried again.
		r.source.refuse = errors.New("family mismatch")
		r.move(at("198.51.100.7"))
		if status := r.settle(); !strings.Contains(status.Reason, "publish [198.51.100.7]: family mismatch") || r.device("flannel.1").Local != addrs("192.0.2.1")[0] {
			t.Errorf("refused: %+v", status)
		}
		r.source.refuse = nil
		r.move(func(*Outer) {})
		if status := r.settle(); status.Reason != "" || len(r.source.moved()) != 1 || r.device("flannel.1").Local != addrs("198.51.100.7")[0] {
			t.Errorf("no longer refused: %+v", status)
		}
		r.end(t)
	})
}

// TestBurstIsOneMove: an interface that is set up anew changes many times, and
// one that never rests is followed all the same.
func TestBurstIsOneMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.source.snapshots <- control.Snapshot{Complete: true}
		r.settle()
		looks := r.host.looks
		r.move(at("198.51.100.1"), at("198.51.100.2"), at("198.51.100.3"), at("198.51.100.4"))
		if r.settle(); len(r.source.moved()) != 1 || r.host.looks != looks+1 || r.source.moved()[0].Legs[0].PublicIP != addrs("198.51.100.4")[0] {
			t.Errorf("looked %d times, told %+v", r.host.looks-looks, r.source.moved())
		}
		restless := slices.Repeat([]func(*Outer){func(*Outer) {}}, 100) // 5 s
		r.move(append([]func(*Outer){at("198.51.100.5")}, restless...)...)
		if told := len(r.source.moved()); told != 2 {
			t.Errorf("told %d times while it does not rest, want 2", told)
		}
		r.settle()
		r.end(t)
	})
}

// TestOverwriteIsLive: what the user sets at the lease source is followed, and
// so is its end.
func TestOverwriteIsLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, nil)
		r.source.snapshots <- control.Snapshot{Complete: true}
		r.settle()
		for _, step := range []struct {
			recall    control.Recall
			published string
			reason    string
			claimed   string // as last told to the source; empty: nothing yet
		}{
			{control.Recall{Overwrite: addrs("203.0.113.9")}, "203.0.113.9", "public-ip-overwrite", ""},
			{control.Recall{Overwrite: addrs("203.0.113.8"), PublicIP: addrs("198.51.100.7")}, "203.0.113.8", "public-ip-overwrite", "198.51.100.7"},
			{control.Recall{PublicIP: addrs("198.51.100.7")}, "198.51.100.7", "", "198.51.100.7"},
			{control.Recall{}, "192.0.2.1", "", "192.0.2.1"},
		} {
			r.source.recalls <- step.recall
			status := r.settle()
			if !slices.Equal(status.PublicIPs, []string{step.published}) || status.Moved == nil || status.Moved.Reason != step.reason {
				t.Errorf("%+v: publishes %v, moved %+v", step.recall, status.PublicIPs, status.Moved)
			}
			claimed := ""
			if n := len(r.source.moved()); n > 0 {
				claimed = r.source.moved()[n-1].Legs[0].PublicIP.String()
			}
			if claimed != step.claimed || r.device("flannel.1").Local != addrs("192.0.2.1")[0] {
				t.Errorf("%+v: claims %q, sends from %v", step.recall, claimed, r.device("flannel.1").Local)
			}
		}
		r.end(t)
	})
}

// TestCalmEnds holds that nothing is left once its context is done.
func TestCalmEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		tokens := make(chan struct{})
		calmed := calm(ctx, tokens)
		began := time.Now()
		tokens <- struct{}{}
		<-calmed
		if took := time.Since(began); took != calmTime {
			t.Errorf("token after %v, want %v", took, calmTime)
		}
		cancel()
	})
}
