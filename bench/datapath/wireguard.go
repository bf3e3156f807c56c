package datapath

import (
	"context"
	"fmt"
	"log/slog"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// wireGuard is wireguard-go as its own program runs it.
type wireGuard struct{ device *device.Device }

func openWireGuard(config endConfig, logger *slog.Logger) (carrier, error) {
	link, err := tun.CreateTUN(config.Device, config.MTU)
	if err != nil {
		return nil, fmt.Errorf("open TUN %s: %w", config.Device, err)
	}
	w := wireGuard{device.NewDevice(link, conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			logger.Error("wireguard-go complains", "text", fmt.Sprintf(format, args...))
		},
	})}
	err = w.device.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%v\nallowed_ip=%v\n",
		config.Own.Private, config.Own.Outer.Port(), config.Peer.Public, config.Peer.Outer, config.Peer.Subnet))
	if err == nil {
		err = w.device.Up()
	}
	if err != nil {
		w.device.Close()
		return nil, fmt.Errorf("configure wireguard-go: %w", err)
	}
	return w, nil
}

// Run implements carrier.
func (w wireGuard) Run(ctx context.Context) error {
	defer w.device.Close()
	select {
	case <-ctx.Done():
		return nil
	case <-w.device.Wait():
		return fmt.Errorf("wireguard-go has stopped")
	}
}

// Counters implements carrier: wireguard-go counts bytes only.
func (wireGuard) Counters() map[string]uint64 { return nil }
