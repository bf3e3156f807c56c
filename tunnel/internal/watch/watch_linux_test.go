package watch

import (
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/labtest"
)

func TestMain(m *testing.M) {
	lab.MustEnter()
	goleak.VerifyTestMain(m)
}

// open opens a Watcher of links and neighbours on a host of its own.
func open(t *testing.T, relevant func(syscall.NetlinkMessage) bool) (w *Watcher, run func(input string, command ...string)) {
	t.Helper()
	host := labtest.Host(t, labtest.New(t), lab.HostConfig{Name: "a"})
	err := host.Do(func() (err error) {
		w, err = Open(Config{
			Protocol: unix.NETLINK_ROUTE, Groups: []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH},
			Relevant: relevant, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return w, func(input string, words ...string) {
		t.Helper()
		err := host.Do(func() error {
			command := exec.CommandContext(t.Context(), words[0], words[1:]...)
			command.Stdin = strings.NewReader(input)
			if out, err := command.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w\n%s", words, err, out)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func awaitToken(t *testing.T, w *Watcher) {
	t.Helper()
	select {
	case <-w.Tokens():
	case <-time.After(10 * time.Second):
		t.Fatal("no token")
	}
}

func TestTokens(t *testing.T) {
	w, run := open(t, func(m syscall.NetlinkMessage) bool {
		name, ok := Attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME)
		return ok && unix.ByteSliceToString(name) == "wanted"
	})
	run("", "ip", "link", "add", "other", "type", "bridge")
	run("", "ip", "link", "add", "wanted", "type", "bridge")
	awaitToken(t, w)
	run("", "ip", "link", "set", "wanted", "mtu", "1400")
	run("", "ip", "link", "set", "wanted", "mtu", "1300")
	awaitToken(t, w)
}

// TestOverflow holds that lost notifications cost nothing but one token, even
// if none of those that arrived was relevant.
func TestOverflow(t *testing.T) {
	var seen atomic.Int64
	stuck, release := make(chan struct{}), make(chan struct{})
	w, run := open(t, func(syscall.NetlinkMessage) bool {
		if seen.Add(1) == 1 {
			close(stuck)
			<-release
		}
		return false
	})
	run("", "ip", "link", "add", "br9", "type", "bridge")
	<-stuck // it will not read on
	const entries = 20000
	var batch strings.Builder
	for i := range entries {
		fmt.Fprintf(&batch, "neigh add 10.%d.%d.%d lladdr 02:00:00:00:00:01 dev br9 nud permanent\n", i>>16, i>>8&255, i&255)
	}
	run(batch.String(), "ip", "-batch", "-")
	close(release)
	awaitToken(t, w)
	if n := seen.Load(); n > entries {
		t.Errorf("nothing was lost: %d notifications", n)
	}
}

func TestAttribute(t *testing.T) {
	attributes := []byte{
		5, 0, 1, 0, 'a', 0, 0, 0, // padded
		8, 0, 2, 0, 1, 2, 3, 4,
		4, 0, 3, 0, // empty
		5, 0, 4, 0, 'z', // at the end, not padded
	}
	for kind, want := range map[uint16]string{1: "a", 2: "\x01\x02\x03\x04", 3: "", 4: "z"} {
		if got, ok := Attribute(attributes, kind); !ok || string(got) != want {
			t.Errorf("attribute %d: got %q, %t, want %q", kind, got, ok, want)
		}
	}
	if _, ok := Attribute(attributes, 9); ok {
		t.Error("found attribute 9")
	}
}

func FuzzAttribute(f *testing.F) {
	f.Add([]byte{5, 0, 1, 0, 'a', 0, 0, 0}, uint16(1))
	f.Add([]byte{0, 0, 0, 0}, uint16(0))
	f.Add([]byte{255, 255, 1, 0, 1}, uint16(1))
	f.Add([]byte{4, 0, 7}, uint16(7))
	f.Fuzz(func(t *testing.T, attributes []byte, kind uint16) {
		if value, ok := Attribute(attributes, kind); ok && len(value) > len(attributes) {
			t.Errorf("value longer than its message: %d of %d", len(value), len(attributes))
		}
	})
}
