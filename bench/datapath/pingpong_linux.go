package datapath

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// openPing opens a UDP socket whose calls block for at most pingWait.
func openPing() (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	wait := unix.NsecToTimeval(pingWait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("setsockopt", err)
	}
	return fd, nil
}

// pong answers on addr until ctx is done. ready is told when it does so, or
// why it cannot.
func pong(ctx context.Context, addr netip.AddrPort, ready chan<- error) error {
	fd, err := openPing()
	if err == nil {
		defer unix.Close(fd)
		err = os.NewSyscallError("bind", unix.Bind(fd, socketAddress(addr)))
	}
	ready <- err
	if err != nil {
		return err
	}
	buffer := make([]byte, 2*pingBytes)
	connected := false
	for ctx.Err() == nil {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == nil && !connected {
			connected = true // from now on no address is looked up, nor allocated
			err = unix.Connect(fd, from)
		}
		if err == nil {
			_, err = unix.Write(fd, buffer[:n])
		}
		if err != nil && !transient(err) {
			return os.NewSyscallError("answer", err)
		}
	}
	return nil
}

// ping sends to addr for a while and returns the round-trip times.
func ping(ctx context.Context, addr netip.AddrPort, duration time.Duration) ([]time.Duration, error) {
	fd, err := openPing()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, socketAddress(addr)); err != nil {
		return nil, os.NewSyscallError("connect", err)
	}
	trips := make([]time.Duration, 0, pingSamples)
	buffer := make([]byte, pingBytes)
	for start := time.Now(); ctx.Err() == nil && len(trips) < cap(trips); {
		sent := time.Now()
		if sent.Sub(start) > duration {
			break
		}
		_, err := unix.Write(fd, buffer)
		if err == nil {
			_, err = unix.Read(fd, buffer)
		}
		switch {
		case err == nil:
			trips = append(trips, time.Since(sent))
		case !transient(err):
			return nil, os.NewSyscallError("ping", err)
		}
	}
	return trips, ctx.Err()
}

// transient errors are lost packets, interrupted waits, and news that the other
// side has left while a packet was on its way to it.
func transient(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED)
}

func socketAddress(addr netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
}

// pin keeps the calling thread, which must be locked, on the processor with a
// number, of those that it may use.
func pin(number int) error {
	var may, on unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	number %= may.Count()
	for cpu := 0; ; cpu++ {
		if !may.IsSet(cpu) {
			continue
		}
		if number == 0 {
			on.Set(cpu)
			return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinity(0, &on))
		}
		number--
	}
}
