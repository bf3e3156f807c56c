package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// naive is VXLAN as one would write it first: every packet is one read and one
// write, and no part of its work is left to the kernel.
type naive struct {
	config         endConfig
	device         *os.File
	socket         *net.UDPConn
	sent, received atomic.Uint64 // packets
}

func openNaive(config endConfig, _ *slog.Logger) (carrier, error) {
	device, err := openPlainTUN(config.Device)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", config.Device, err)
	}
	socket, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(config.Own.Outer))
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	// As much as the others ask for; an ordinary user gets what the machine allows.
	if err := errors.Join(socket.SetReadBuffer(naiveBuffer), socket.SetWriteBuffer(naiveBuffer)); err != nil {
		return nil, errors.Join(err, socket.Close(), device.Close())
	}
	return &naive{config: config, device: device, socket: socket}, nil
}

const (
	naiveBuffer  = 7 << 20 // bytes
	naiveHeaders = 8 + 14  // VXLAN and inner Ethernet
	naivePacket  = 1 << 16
)

// Run implements carrier.
func (n *naive) Run(ctx context.Context) error {
	group, stop := errgroup.WithContext(ctx)
	group.Go(n.send)
	group.Go(n.receive)
	group.Go(func() error {
		<-stop.Done()
		return errors.Join(n.device.Close(), n.socket.Close())
	})
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// send carries packets from the device to the peer.
func (n *naive) send() error {
	frame := make([]byte, naiveHeaders+naivePacket)
	frame[0] = 0x08 // RFC 7348: the VNI is valid
	binary.BigEndian.PutUint32(frame[4:], vxlanVNI<<8)
	copy(frame[8:], n.config.Peer.MAC[:])
	copy(frame[14:], n.config.Own.MAC[:])
	binary.BigEndian.PutUint16(frame[20:], 0x0800) // IPv4
	for {
		size, err := n.device.Read(frame[naiveHeaders:])
		if err != nil {
			return fmt.Errorf("read TUN: %w", err)
		}
		// What cannot be sent is lost, as packets are.
		if _, err := n.socket.WriteToUDPAddrPort(frame[:naiveHeaders+size], n.config.Peer.Outer); err == nil {
			n.sent.Add(1)
		}
	}
}

// receive carries packets from the peer to the device.
func (n *naive) receive() error {
	frame := make([]byte, naiveHeaders+naivePacket)
	for {
		size, from, err := n.socket.ReadFromUDPAddrPort(frame)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if size <= naiveHeaders || from.Addr() != n.config.Peer.Outer.Addr() {
			continue
		}
		if _, err := n.device.Write(frame[naiveHeaders:size]); err == nil {
			n.received.Add(1)
		}
	}
}

// Counters implements carrier. The waits of Go's runtime are not counted.
func (n *naive) Counters() map[string]uint64 {
	sent, received := n.sent.Load(), n.received.Load()
	return map[string]uint64{
		"tx_datagrams": sent, "tx_runs": sent, "tx_calls": 2 * sent,
		"rx_datagrams": received, "rx_runs": received, "rx_calls": 2 * received,
	}
}
