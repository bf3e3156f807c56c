package datapath

import (
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/engine"
	"github.com/weft-net/weft/tunnel/internal/ring"
	"github.com/weft-net/weft/tunnel/tundev"
	"github.com/weft-net/weft/tunnel/udp"
)

// wantsRing reports whether the workers are to use rings, and tells queues and the log
// why not. supported is ring.Supported.
func wantsRing(config Config, queues []*tundev.Device, supported func() error) (bool, error) {
	err := errors.New("switched off")
	if config.Offloads.Ring != tunnel.Off {
		err = supported()
	}
	switch {
	case err == nil:
		return true, nil
	case config.Offloads.Ring == tunnel.On:
		return false, fmt.Errorf("open datapath: Offloads.Ring is on, want auto or off where there is no io_uring: %w", err)
	}
	why := fmt.Sprintf("no io_uring: %v", err)
	for _, queue := range queues {
		queue.Lacks(why)
	}
	config.Logger.Info("the datapath makes a system call for every packet", "device", config.Device, "reason", why)
	return false, nil
}

// openPoller opens what a worker waits in for its device, which is bit 0, and its sockets.
func openPoller(device *tundev.Device, sockets []*udp.Socket, withRing bool, busyPoll time.Duration) (engine.Poller, error) {
	if withRing {
		return openRing(device, sockets, busyPoll)
	}
	descriptors := [][]int{{device.Descriptor()}}
	for _, socket := range sockets {
		descriptors = append(descriptors, socket.Descriptors())
	}
	return newPoller(descriptors, busyPoll)
}

// openRing does the same, and has all of them use the ring.
func openRing(device *tundev.Device, sockets []*udp.Socket, busyPoll time.Duration) (engine.Poller, error) {
	r, err := ring.Open()
	if err != nil {
		return nil, err
	}
	stream, err := device.UseRing(r)
	streams := [][]*ring.Stream{{stream}}
	for _, socket := range sockets {
		if err != nil {
			break
		}
		var of []*ring.Stream
		of, err = socket.UseRing(r)
		streams = append(streams, of)
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return newRingPoller(r, streams, busyPoll)
}
