package packetwise

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/packet"
	"github.com/weft-net/weft/tunnel/tunneltest"
)

var _ tunnel.Device = (*Device)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// device is a Device on one end of a channel TUN.
func device(t *testing.T, large bool) (*Device, *tuntest.ChannelTUN) {
	t.Helper()
	channel := tuntest.NewChannelTUN()
	d, err := New(Config{TUN: channel.TUN(), Large: large})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, channel
}

func TestReadAndWrite(t *testing.T) {
	d, channel := device(t, false)
	if mtu, err := d.MTU(); d.Name() != "loopbackTun1" || mtu != tuntest.DefaultMTU || err != nil {
		t.Errorf("name %q, MTU %d, %v", d.Name(), mtu, err)
	}
	if o := d.Offloads(); o.Checksum || o.TCP || o.UDP || len(o.Why) != 1 {
		t.Errorf("Offloads = %+v", o)
	}
	packets, arena := make([]tunnel.Incoming, 4), make([]byte, tunnel.MinArena)
	for _, want := range [][]byte{{0x45}, bytes.Repeat([]byte{0x45, 7}, 700)} {
		go func() { channel.Outbound <- want }()
		n, err := d.Read(packets, arena)
		if n != 1 || err != nil || !bytes.Equal(packets[0].Data, want) {
			t.Fatalf("Read = %d, %v, %d bytes", n, err, len(packets[0].Data))
		}
		if in := packets[0]; in.Offset < tunnel.Headroom || &arena[in.Offset] != &in.Data[0] {
			t.Errorf("read to offset %d", in.Offset)
		}

		wrote := make(chan error)
		go func() {
			_, err := d.Write([]tunnel.Outgoing{{Parts: [][]byte{want[:1], want[1:]}}})
			wrote <- err
		}()
		if got := <-channel.Inbound; !bytes.Equal(got, want) {
			t.Errorf("wrote %d bytes, want %d", len(got), len(want))
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	d, channel := device(t, false)
	good := tunnel.Outgoing{Parts: [][]byte{{0x45}}}
	for _, tt := range []struct {
		bad  tunnel.Outgoing
		want error
	}{
		{tunnel.Outgoing{}, errEmpty},
		{tunnel.Outgoing{Parts: [][]byte{make([]byte, tunnel.MaxPacket), {1}}}, errTooLong},
		{tunnel.Outgoing{Offload: tunnel.Offload{NeedsChecksum: true}, Parts: good.Parts}, tunnel.ErrOffload},
	} {
		go func() { <-channel.Inbound; <-channel.Inbound }()
		packets := []tunnel.Outgoing{good, tt.bad, good}
		if n, err := d.Write(packets); n != 2 || !errors.Is(err, tt.want) || packets[1].Err != err || packets[2].Err != nil {
			t.Errorf("Write = %d, %v, want 2, %v", n, err, tt.want)
		}
	}
}

// TestLargePackets: what is taken as a super-packet arrives as one packet that
// is right in every sum, and what is not taken is refused.
func TestLargePackets(t *testing.T) {
	d, channel := device(t, true)
	if o := d.Offloads(); !o.Checksum || !o.TCP || o.UDP {
		t.Errorf("Offloads = %+v", o)
	}
	for _, addrs := range [][2]string{{"10.1.0.1:1", "10.2.0.2:2"}, {"[fd00::1]:1", "[fd00::2]:2"}} {
		for _, size := range []int{100, 1000, 40_000} {
			built := tunneltest.Packet{
				Source: netip.MustParseAddrPort(addrs[0]), Destination: netip.MustParseAddrPort(addrs[1]), Protocol: packet.TCP, Payload: make([]byte, size),
			}
			data, offload := built.Super(1000)
			wrote := make(chan error)
			go func() {
				_, err := d.Write([]tunnel.Outgoing{{Offload: offload, Parts: [][]byte{data[:30], data[30:]}}})
				wrote <- err
			}()
			if got, want := <-channel.Inbound, built.Bytes(); !bytes.Equal(got, want) {
				t.Errorf("%v: %d bytes are written as %d, or with other sums", addrs, len(want), len(got))
			}
			if err := <-wrote; err != nil {
				t.Error(err)
			}
		}
	}
	for _, bad := range []tunnel.Offload{{GSO: tunnel.GSOUDP}, {NeedsChecksum: true, ChecksumStart: 9}} {
		if n, err := d.Write([]tunnel.Outgoing{{Offload: bad, Parts: [][]byte{{0x45}}}}); n != 0 || err == nil {
			t.Errorf("Write with %+v = %d, %v", bad, n, err)
		}
	}
}

func TestClose(t *testing.T) {
	d, _ := device(t, false)
	if _, err := d.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena-1)); err == nil {
		t.Error("an arena below MinArena was accepted")
	}
	read := func() error {
		_, err := d.Read(make([]tunnel.Incoming, 1), make([]byte, tunnel.MinArena))
		return err
	}
	done := make(chan error)
	go func() { done <- read() }()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Read during Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if err := read(); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Read after Close: %v, want %v", err, tunnel.ErrClosed)
	}
	if _, err := d.Write(make([]tunnel.Outgoing, 1)); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("Write after Close: %v, want %v", err, tunnel.ErrClosed)
	}
}
