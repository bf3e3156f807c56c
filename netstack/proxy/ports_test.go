package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func newTestPorts(t *testing.T, n *twin, d *Dialer) *Ports {
	t.Helper()
	ps, err := NewPorts(PortsConfig{Network: n, Dialer: d, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ps.Close() })
	return ps
}

func TestForwardTCP(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	n.pod(t, "[fd00:244:1::7]:80", echo)
	for _, test := range []struct{ local, remote string }{
		{"127.0.0.1:0", "10.244.1.7:80"},
		{"127.0.0.1:0", "[fd00:244:1::7]:80"},
		{"[::1]:0", "10.244.1.7:80"},
		{"0", "[fd00:244:1::7]:80"},
	} {
		t.Run(test.local+"="+test.remote, func(t *testing.T) {
			t.Parallel()
			ps := newTestPorts(t, n, newTestDialer(t, n, nil))
			f, err := ParseForward(test.local + "=" + test.remote)
			if err != nil {
				t.Fatal(err)
			}
			state, err := ps.AddForward(testContext(t), f)
			if err != nil {
				t.Fatal(err)
			}
			for _, at := range state.Listen {
				conn, err := net.Dial(TCP, at)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if got := roundTrip(t, conn, "hello"); got != "hello" {
					t.Errorf("%s answered %q", at, got)
				}
			}
			times := uint64(len(state.Listen))
			eventually(t, "the connections are counted as closed", func() bool { return ps.List()[0].Connections == 0 })
			if got := ps.List()[0]; got.Total != times || got.BytesIn != 5*times || got.BytesOut != 5*times || got.State != StateListening {
				t.Errorf("state is %+v", got)
			}
		})
	}
}

func TestForwardUDP(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.7:53", same)
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	state, err := ps.AddForward(testContext(t), Forward{Protocol: UDP, Remote: "10.244.1.7:53"})
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range state.Listen {
		conn, err := net.Dial(UDP, at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := exchangeUDP(t, conn, "hello"); got != "hello" {
			t.Errorf("%s answered %q", at, got)
		}
	}
	if got := ps.List()[0]; got.Connections != int64(len(state.Listen)) || got.BytesOut == 0 {
		t.Errorf("state is %+v", got)
	}
}

func TestExpose(t *testing.T) {
	n := newTwin()
	listener, err := net.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveStreams(t, listener, echo)
	packets, err := net.ListenPacket(UDP, "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	serveUDP(t, packets, same)
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	ctx := testContext(t)
	if _, err := ps.AddExpose(ctx, Expose{Protocol: TCP, Port: 8080, Target: listener.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	if _, err := ps.AddExpose(ctx, Expose{Protocol: UDP, Port: 8080, Target: packets.LocalAddr().String()}); err != nil {
		t.Fatal(err)
	}
	for _, own := range ownAddresses {
		to := netip.AddrPortFrom(own, 8080)
		conn, err := n.DialContext(ctx, TCP, to)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := roundTrip(t, conn, "in"); got != "in" {
			t.Errorf("tcp %s answered %q", to, got)
		}
		datagrams, err := n.DialContext(ctx, UDP, to)
		if err != nil {
			t.Fatal(err)
		}
		defer datagrams.Close()
		if got := exchangeUDP(t, datagrams, "in"); got != "in" {
			t.Errorf("udp %s answered %q", to, got)
		}
	}
	if _, err := n.DialContext(ctx, TCP, netip.AddrPortFrom(ownAddresses[0], 8081)); err == nil {
		t.Error("a port that was not exposed is reached")
	}
}

func TestPortsAddRemove(t *testing.T) {
	n := newTwin()
	n.pod(t, "10.244.1.7:80", echo)
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	ctx := testContext(t)
	state, err := ps.AddForward(ctx, Forward{Protocol: TCP, Local: netip.MustParseAddrPort("127.0.0.1:0"), Remote: "10.244.1.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddrPort(state.Listen[0])
	if want := "forward/tcp/" + local.String(); state.ID != want {
		t.Errorf("ID is %s, want %s", state.ID, want)
	}
	again := Forward{Protocol: TCP, Local: local, Remote: "10.244.1.8:81"}
	_, err = ps.AddForward(ctx, again)
	wantError(t, err, again.String(), "in use", state.ID, "leads to 10.244.1.7:80")

	// One port in use by somebody else.
	other, err := net.Listen(TCP, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, err = ps.AddForward(ctx, Forward{Protocol: TCP, Local: netip.MustParseAddrPort(other.Addr().String()), Remote: "10.244.1.8:81"})
	wantError(t, err, "in use", other.Addr().String())
	if strings.Contains(err.Error(), "has it") {
		t.Errorf("%v: blames one of our own", err)
	}

	conn, err := net.Dial(TCP, local.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ps.Remove(state.ID); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("after Remove a connection reads: %v", err)
	}
	if err := ps.Remove(state.ID); !errors.Is(err, ErrNoPort) {
		t.Errorf("second Remove: %v", err)
	}
	if _, err := ps.AddForward(ctx, again); err != nil {
		t.Errorf("add after Remove: %v", err)
	}
	ps.Close()
	if _, err := ps.AddForward(ctx, again); !errors.Is(err, net.ErrClosed) {
		t.Errorf("add after Close: %v", err)
	}
	if left := ps.List(); len(left) != 0 {
		t.Errorf("left after Close: %v", left)
	}
}

func TestExposeTwice(t *testing.T) {
	n := newTwin()
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	ctx := testContext(t)
	expose := Expose{Protocol: TCP, Port: 22}
	if _, err := ps.AddExpose(ctx, expose); err != nil {
		t.Fatal(err)
	}
	_, err := ps.AddExpose(ctx, expose)
	wantError(t, err, "22=127.0.0.1:22", "in use", "expose/tcp/22")
	if _, err := ps.AddExpose(ctx, Expose{Protocol: UDP, Port: 22}); err != nil {
		t.Errorf("the same port of the other protocol: %v", err)
	}
}

func TestPortsTargetFails(t *testing.T) {
	n := newTwin()
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	state, err := ps.AddForward(testContext(t), Forward{Protocol: TCP, Remote: "10.244.1.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	try := func() error {
		conn, err := net.Dial(TCP, state.Listen[0])
		if err != nil {
			return err // the reset may be that fast
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.WriteString(conn, "x")
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		return err
	}
	if err := try(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("refused target: client sees %v, want a reset", err)
	}
	eventually(t, "the connection is closed", func() bool { return ps.List()[0].Connections == 0 })
	got := ps.List()[0]
	if !strings.Contains(got.TargetError, "refused") || got.Dropped != 1 || got.State != StateListening {
		t.Errorf("state is %+v", got)
	}
	n.pod(t, "10.244.1.7:80", echo)
	if err := try(); err != nil {
		t.Errorf("after the target came: %v", err)
	}
	if got := ps.List()[0].TargetError; got != "" {
		t.Errorf("after the target came the state has the error %q", got)
	}
}

func TestStateJSON(t *testing.T) {
	n := newTwin()
	ps := newTestPorts(t, n, newTestDialer(t, n, nil))
	if _, err := ps.AddExpose(testContext(t), Expose{Protocol: TCP, Port: 80, Target: "localhost:8080"}); err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(ps.List())
	want := `[{"id":"expose/tcp/80","kind":"expose","protocol":"tcp","listen":[":80"],"target":"localhost:8080","state":"listening",` +
		`"connections":0,"connections_total":0,"bytes_in":0,"bytes_out":0,"dropped":0}]`
	if err != nil || string(got) != want {
		t.Errorf("got %s, %v\nwant %s", got, err, want)
	}
}

// TestForwardOversized holds that a datagram larger than the target's side
// carries is dropped, counted and told of once, and that its flow goes on.
func TestForwardOversized(t *testing.T) {
	n := newTwin()
	n.podUDP(t, "10.244.1.7:53", same)
	var told bytes.Buffer
	ps, err := NewPorts(PortsConfig{Network: n, Dialer: newTestDialer(t, n, nil), Logger: slog.New(slog.NewTextHandler(&told, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer ps.Close()
	state, err := ps.AddForward(testContext(t), Forward{Protocol: UDP, Local: netip.MustParseAddrPort("[::1]:0"), Remote: "10.244.1.7:53"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial(UDP, state.Listen[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range uint64(3) {
		// IPv6 carries 65527 bytes, IPv4 65507.
		if _, err := conn.Write(make([]byte, 65520)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is counted", func() bool { return ps.List()[0].Dropped == i+1 })
		if got := exchangeUDP(t, conn, "small"); got != "small" {
			t.Errorf("got %q", got)
		}
	}
	if got := ps.List()[0]; got.Total != 1 {
		t.Errorf("%d flows, want the one", got.Total)
	}
	ps.Close()
	if lines := strings.Count(told.String(), "datagram dropped"); lines != 1 {
		t.Errorf("told of it %d times, want once:\n%s", lines, &told)
	}
}

func BenchmarkForward(b *testing.B) {
	n := newTwin()
	sink, err := n.ListenTCP(netip.MustParseAddrPort("10.244.1.7:80"))
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	d, err := NewDialer(DialerConfig{Network: n, Overlay: podNetworks, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	ps, err := NewPorts(PortsConfig{Network: n, Dialer: d, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	defer ps.Close()
	state, err := ps.AddForward(b.Context(), Forward{Protocol: TCP, Remote: "10.244.1.7:80"})
	if err != nil {
		b.Fatal(err)
	}
	conn, err := net.Dial(TCP, state.Listen[0])
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	far, err := sink.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer far.Close()
	sent := make([]byte, 1<<20)
	received := make([]byte, 1<<20)
	b.SetBytes(int64(len(sent)))
	b.ReportAllocs()
	for b.Loop() {
		go conn.Write(sent)
		if _, err := io.ReadFull(far, received); err != nil {
			b.Fatal(err)
		}
	}
}
