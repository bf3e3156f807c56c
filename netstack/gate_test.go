package netstack

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// gated is a Stack whose only way leads to a Gate.
func gated(t *testing.T, config GateConfig) *Stack {
	t.Helper()
	program, err := New(Config{Name: "program", MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("2001:2::2")}})
	if err != nil {
		t.Fatal(err)
	}
	config.Name, config.MTU = "gate", 1500
	config.Addresses = []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:2::1")}
	gate, err := NewGate(config)
	if err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { Carry(gate, program) })
	pumps.Go(func() { Carry(program, gate) })
	t.Cleanup(func() {
		if err := errors.Join(program.Close(), gate.Close()); err != nil {
			t.Error(err)
		}
		pumps.Wait()
	})
	return program
}

func TestGate(t *testing.T) {
	refused := netip.MustParseAddrPort("10.0.0.1:80")
	asked := make(chan netip.AddrPort, 8)
	program := gated(t, GateConfig{
		TCP: func(to netip.AddrPort, accept func() (net.Conn, error)) {
			asked <- to
			if to == refused {
				return
			}
			conn, err := accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.Copy(conn, conn)
		},
		UDP: func(to netip.AddrPort, conn net.Conn) {
			defer conn.Close()
			asked <- to
			buffer := make([]byte, 1500)
			for {
				n, err := conn.Read(buffer)
				if err != nil {
					return
				}
				conn.Write(buffer[:n])
			}
		},
	})
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"10.244.1.7:8000", "[fd00:10:244::7]:53", "192.168.64.1:1"} {
			to := netip.MustParseAddrPort(addr)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			conn, err := program.DialContext(ctx, network, to)
			cancel()
			if err != nil {
				t.Fatalf("%s %v: %v", network, to, err)
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			sent, got := []byte("through the gate"), make([]byte, 16)
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != string(sent) {
				t.Errorf("%s %v: %q, %v", network, to, got, err)
			}
			if at := <-asked; at != to {
				t.Errorf("%s %v is taken for %v", network, to, at)
			}
			conn.Close()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := program.DialContext(ctx, "tcp", refused); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("what nobody accepts: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := program.Ping(ctx, netip.MustParseAddr("10.244.1.7"), 8); err == nil {
		t.Error("the gate answers in the name of others")
	}
}
