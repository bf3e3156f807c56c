package packetwise

import (
	"bytes"
	"errors"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/weft-net/weft/tunnel"
)

var _ tunnel.Device = (*Device)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// device is a Device on one end of a channel TUN.
func device(t *testing.T) (*Device, *tuntest.ChannelTUN) {
	t.Helper()
	channel := tuntest.NewChannelTUN()
	d, err := New(channel.TUN())
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
	d, channel := device(t)
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
	d, channel := device(t)
	good := tunnel.Outgoing{Parts: [][]byte{{0x45}}}
	for _, tt := range []struct {
		bad  tunnel.Outgoing
		want error
	}{
		{tunnel.Outgoing{}, errEmpty},
		{tunnel.Outgoing{Parts: [][]byte{make([]byte, tunnel.MaxPacket), {1}}}, errTooLong},
		{tunnel.Outgoing{Offload: tunnel.Offload{NeedsChecksum: true}, Parts: good.Parts}, tunnel.ErrOffload},
	} {
		go func() { <-channel.Inbound }()
		if n, err := d.Write([]tunnel.Outgoing{good, tt.bad, good}); n != 1 || !errors.Is(err, tt.want) {
			t.Errorf("Write = %d, %v, want 1, %v", n, err, tt.want)
		}
	}
}

func TestClose(t *testing.T) {
	d, _ := device(t)
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
