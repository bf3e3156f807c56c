//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/bench/lab/script"
)

// wiretap looks at every packet on the underlay for pod traffic in clear:
//
//	capture HOST...                 begin to look at eth0 of these hosts
//	capture-end                     end; says how many packets there were of each kind, per host and in all
//	canary FROM TARGET PORT         have a pod send the canary text by UDP, a thousand times a second, until the end
//	canaries FROM TO PACKETS        TCP streams of the canary text, until so many packets more have been captured
type wiretap struct{ running[recording] }

// recording is what one script captures.
type recording struct {
	taps   []*tap
	seen   atomic.Int64 // packets so far, on all of them
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// What the scripts use.
var wiretapped = eavesdropper{
	networks: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")},
	port:     8472,
}

func (w *wiretap) commands() map[string]script.Command {
	return map[string]script.Command{"capture": w.start, "capture-end": w.finish, "canary": singAlong, "canaries": w.singThrough}
}

func (w *wiretap) start(run *script.Run, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: capture HOST...")
	}
	return w.begin(run, "capture", func() (*recording, error) { return record(run, args) })
}

func record(run *script.Run, hosts []string) (*recording, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &recording{cancel: cancel}
	run.Defer(func() error { cancel(); r.done.Wait(); return nil })
	for _, name := range hosts {
		host, err := run.Host(name)
		if err != nil {
			return nil, err
		}
		t, err := openTap(host)
		if err != nil {
			return nil, fmt.Errorf("capture on %s: %w", name, err)
		}
		r.taps = append(r.taps, t)
		r.done.Go(func() { t.run(ctx, &r.seen) })
	}
	return r, nil
}

func (w *wiretap) finish(run *script.Run, _ []string) error {
	r, err := w.end(run, "capture")
	if err != nil {
		return err
	}
	r.cancel()
	r.done.Wait()
	total := counts{kinds: map[string]int{}}
	for _, t := range r.taps {
		if t.err != nil {
			return fmt.Errorf("capture on %s: %w", t.host, t.err)
		}
		fmt.Fprintf(run.Stdout, "%s: %s\n", t.host, t.counts)
		for _, example := range t.examples {
			fmt.Fprintf(run.Stdout, "%s: in clear: %x\n", t.host, example)
		}
		total.missed += t.missed
		for kind, n := range t.kinds {
			total.kinds[kind] += n
		}
	}
	fmt.Fprintf(run.Stdout, "in all: %s\n", total)
	return nil
}

// counts are packets by kind, and those the kernel had no room for.
type counts struct {
	kinds  map[string]int
	missed int
}

func (c counts) String() string {
	all, open := 0, 0
	for kind, n := range c.kinds {
		all += n
		if kind != kindOther && kind != kindSealed {
			open += n
		}
	}
	text := fmt.Sprintf("%d packets, %d missed, %d in clear;", all, c.missed, open)
	for _, kind := range slices.Sorted(maps.Keys(c.kinds)) {
		text += fmt.Sprintf(" %s %d", kind, c.kinds[kind])
	}
	return text
}

// tap is a packet socket on one device. It sees what arrives after the kernel
// has joined it, and what leaves after the kernel has cut it.
type tap struct {
	counts
	host     string
	fd       int
	examples [][]byte // of what is in clear
	err      error
}

const (
	tapBatch    = 64
	tapRoom     = 64 << 20 // of the socket, for when there is no time to look
	maxExamples = 3
)

func openTap(host *lab.Host) (*tap, error) {
	t := &tap{counts: counts{kinds: map[string]int{}}, host: host.Name()}
	err := host.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		// Without a protocol, nothing arrives before it is bound.
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		if unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapRoom) != nil {
			_ = unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, tapRoom) // as much as there is
		}
		wait := unix.Timeval{Usec: 50_000} // so that the end is noticed
		if err := unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		return unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index})
	})
	return t, err
}

// message is struct mmsghdr of recvmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
}

// run judges packets until ctx ends and the socket is empty.
func (t *tap) run(ctx context.Context, seen *atomic.Int64) {
	defer unix.Close(t.fd)
	buffers := make([][1 << 16]byte, tapBatch)
	vectors := make([]unix.Iovec, tapBatch)
	messages := make([]message, tapBatch)
	for i := range messages {
		vectors[i].Base = &buffers[i][0]
		vectors[i].SetLen(len(buffers[i]))
		messages[i].header.Iov = &vectors[i]
		messages[i].header.SetIovlen(1)
	}
	for {
		flags := unix.MSG_WAITFORONE
		if ctx.Err() != nil {
			flags = unix.MSG_DONTWAIT // there may never be silence
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(t.fd), uintptr(unsafe.Pointer(&messages[0])), tapBatch, uintptr(flags), 0, 0)
		switch {
		case errno == unix.EAGAIN && ctx.Err() != nil:
			stats, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil {
				t.missed = int(stats.Drops)
			}
			t.err = err
			return
		case errno == unix.EAGAIN, errno == unix.EINTR:
			continue
		case errno != 0:
			t.err = errno
			return
		}
		seen.Add(int64(n))
		for i := range n {
			t.judge(buffers[i][:messages[i].length])
		}
	}
}

func (t *tap) judge(frame []byte) {
	kind := wiretapped.kind(frame)
	t.kinds[kind]++
	if kind != kindOther && kind != kindSealed && len(t.examples) < maxExamples {
		t.examples = append(t.examples, slices.Clone(frame[:min(len(frame), 120)]))
	}
}

// singAlong sends the canary text, whether or not it arrives.
func singAlong(run *script.Run, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: canary FROM TARGET PORT")
	}
	from, err := run.Place(args[0])
	if err != nil {
		return err
	}
	addrs, err := run.Addresses(args[1])
	if err != nil {
		return err
	}
	var conns []net.Conn
	for _, addr := range addrs {
		conn, err := from.Dial(context.Background(), "udp", net.JoinHostPort(addr.String(), args[2]))
		if err != nil {
			return err
		}
		conns = append(conns, conn)
	}
	var ended atomic.Bool
	var done sync.WaitGroup
	for _, conn := range conns {
		done.Go(func() {
			for !ended.Load() {
				_, _ = io.WriteString(conn, canary) // a refusal is an answer to the one before
				time.Sleep(time.Millisecond)
			}
		})
	}
	run.Defer(func() (err error) {
		ended.Store(true)
		done.Wait()
		for _, conn := range conns {
			err = errors.Join(err, conn.Close())
		}
		return err
	})
	return nil
}

// singThrough sends nothing else, second by second.
func (w *wiretap) singThrough(run *script.Run, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: canaries FROM TO PACKETS")
	}
	from, to, addr, err := run.Ends(args[0], args[1])
	if err != nil {
		return err
	}
	packets, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	r, err := w.of(run, "capture")
	if err != nil {
		return err
	}
	for goal := r.seen.Load() + packets; r.seen.Load() < goal; {
		listener, err := to.Listen(context.Background(), "tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			return err
		}
		gbps, err := lab.ThroughputOver(context.Background(), listener, func(ctx context.Context) (net.Conn, error) {
			conn, err := from.Dial(ctx, "tcp", listener.Addr().String())
			return canaries{conn}, err
		}, time.Second)
		if err != nil {
			return err
		}
		fmt.Fprintf(run.Stdout, "%.3f Gbit/s\n", gbps)
	}
	return nil
}

// canaries is a connection on which all that is written is the canary text.
type canaries struct{ net.Conn }

var chorus = slices.Repeat([]byte(canary), 20000)

func (c canaries) Write(p []byte) (int, error) {
	return c.Conn.Write(chorus[:min(len(p), len(chorus))])
}
