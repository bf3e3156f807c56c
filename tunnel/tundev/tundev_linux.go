package tundev

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
	"github.com/weft-net/weft/tunnel/internal/linux"
)

const (
	// alignment is that of every packet's headroom in the arena.
	alignment = 8
	// maxVectors is IOV_MAX; the first holds the virtio header.
	maxVectors = 1024
)

// Errors of callers' mistakes, which come again and again, are made once.
var (
	errArena = fmt.Errorf("read: arena is smaller than %d bytes", tunnel.MinArena)
	errEmpty = errors.New("write: a packet without bytes")
)

// Device is a queue of a TUN link on Linux, and implements tunnel.Device. The
// link is there until all its queues are closed. The descriptor is outside Go's netpoller: a Read that
// waits holds a thread.
type Device struct {
	name     string
	offloads tunnel.Offloads
	polled   bool

	fd     int
	waker  *linux.Waker
	closed atomic.Bool

	// Errors that come again and again under load are made once.
	errDown, errGone, errRefused, errOff, errParts error

	reader reader
	writer writer
	ring   *ringed // nil: none
	link   linkSocket
}

// reader is what one Read at a time works with.
type reader struct {
	mu      sync.Mutex
	calls   atomic.Uint64
	header  vnetHeader
	vectors [2]unix.Iovec
}

// writer is the same for Write.
type writer struct {
	mu      sync.Mutex
	calls   atomic.Uint64
	header  vnetHeader
	vectors [maxVectors]unix.Iovec
}

// Open opens a link with one queue, as OpenQueues does.
func Open(config Config) (*Device, error) {
	config.Queues = 1
	devices, err := OpenQueues(config)
	if err != nil {
		return nil, err
	}
	return devices[0], nil
}

// OpenQueues makes the link in the network namespace of the calling thread,
// with its MTU and queue set, and up. Where a link cannot be made the error says
// how to allow it. Each Device is one queue of the link.
func OpenQueues(config Config) (devices []*Device, err error) {
	config, err = config.withDefaults("weft0")
	if err != nil {
		return nil, err
	}
	for range config.Queues {
		d := &Device{fd: -1, polled: config.Polled}
		d.link.fd = -1
		devices = append(devices, d)
		if err = d.open(config); err != nil {
			break
		}
		config.Name = d.name // a pattern such as tun%d has become one link
	}
	if err == nil {
		err = setUpLink(config.Name, config)
	}
	if err == nil {
		offloads := probeWrites(config, devices[0].offloads, devices[0].writeOne)
		for _, d := range devices {
			d.offloads = offloads
		}
	}
	if err != nil {
		err = fmt.Errorf("open TUN %s: %w", config.Name, err)
		for _, d := range devices {
			err = errors.Join(err, d.free())
		}
		return nil, err
	}
	for _, why := range devices[0].offloads.Why {
		config.Logger.Info("TUN device is slower than it could be", "device", config.Name, "reason", why)
	}
	return devices, nil
}

func (d *Device) open(config Config) (err error) {
	if d.fd, d.name, err = attach(config.Name, config.Queues); err != nil {
		return err
	}
	set := func(flags int) error { return unix.IoctlSetInt(d.fd, unix.TUNSETOFFLOAD, flags) }
	if d.offloads, err = negotiate(config, linux.KernelVersion(), set); err != nil {
		return err
	}
	if d.waker, err = linux.NewWaker(); err != nil {
		return err
	}
	if err = d.link.open(); err != nil {
		return err
	}
	d.init()
	return nil
}

func (d *Device) init() {
	d.errDown = fmt.Errorf("write to %s: the link is down (ip link set %s up): %w", d.name, d.name, unix.EIO)
	d.errGone = fmt.Errorf("%s: the link was deleted: %w", d.name, unix.EBADFD)
	d.errRefused = fmt.Errorf("write to %s: %w: %w", d.name, tunnel.ErrOffload, unix.EINVAL)
	d.errOff = fmt.Errorf("write to %s: %w: it is off, as Offloads says", d.name, tunnel.ErrOffload)
	d.errParts = fmt.Errorf("write to %s: a packet of more than %d parts", d.name, maxVectors-1)
	d.reader.vectors[0].Base = &d.reader.header[0]
	d.reader.vectors[0].SetLen(len(d.reader.header))
	d.writer.vectors[0].Base = &d.writer.header[0]
	d.writer.vectors[0].SetLen(len(d.writer.header))
}

// Descriptor is readable when Read has something to return. It is valid until
// Close and may be waited for, not read.
func (d *Device) Descriptor() int { return d.fd }

// Calls is the number of system calls made to read and write.
func (d *Device) Calls() uint64 { return d.reader.calls.Load() + d.writer.calls.Load() }

// Name is the link's name.
func (d *Device) Name() string { return d.name }

// MTU asks the kernel.
func (d *Device) MTU() (int, error) {
	mtu, err := d.link.mtu(d.name)
	if err != nil {
		return 0, fmt.Errorf("get MTU of %s: %w", d.name, err)
	}
	return mtu, nil
}

// Offloads says what Write accepts, and why not more.
func (d *Device) Offloads() tunnel.Offloads { return d.offloads }

// Lacks adds to why Offloads is not more. It is for before the Device is used.
func (d *Device) Lacks(why string) { d.offloads.Why = append(slices.Clip(d.offloads.Why), why) }

// Close ends a Read that waits and removes the link.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.waker.Wake()
	// The descriptor's number must not be given to another file while a call
	// still uses it.
	d.reader.mu.Lock()
	defer d.reader.mu.Unlock()
	d.writer.mu.Lock()
	defer d.writer.mu.Unlock()
	if err := d.free(); err != nil {
		return fmt.Errorf("close TUN %s: %w", d.name, err)
	}
	return nil
}

// free closes whatever open has opened.
func (d *Device) free() error {
	errs := []error{d.link.close()}
	if d.fd >= 0 {
		errs = append(errs, unix.Close(d.fd))
	}
	if d.waker != nil {
		errs = append(errs, d.waker.Close())
	}
	return errors.Join(errs...)
}

// Read fills packets as tunnel.Device says. A packet whose header is not valid
// is dropped.
func (d *Device) Read(packets []tunnel.Incoming, arena []byte) (int, error) {
	if len(arena) < tunnel.MinArena {
		return 0, errArena
	}
	d.reader.mu.Lock()
	defer d.reader.mu.Unlock()
	for len(packets) > 0 {
		if d.closed.Load() {
			return 0, tunnel.ErrClosed
		}
		if d.ring != nil {
			return d.take(packets)
		}
		n, err := d.drain(packets, arena)
		if n > 0 || err != nil || d.polled {
			return n, err
		}
		if _, err := d.waker.Wait(d.fd, unix.POLLIN, -1); err != nil {
			return 0, fmt.Errorf("read from %s: %w", d.name, err)
		}
	}
	return 0, nil
}

// drain takes what is ready. It returns 0 and no error where nothing is.
func (d *Device) drain(packets []tunnel.Incoming, arena []byte) (n int, err error) {
	for at := 0; n < len(packets) && len(arena)-at >= tunnel.MinArena; {
		data := arena[at+tunnel.Headroom:][:tunnel.MaxPacket]
		d.reader.vectors[1].Base = &data[0]
		d.reader.vectors[1].SetLen(len(data))
		size, errno := transfer(unix.SYS_READV, d.fd, d.reader.vectors[:], &d.reader.calls)
		if errno != 0 {
			return n, d.readError(errno)
		}
		size -= len(d.reader.header)
		offload, ok := d.reader.header.decode(size)
		if size <= 0 || !ok {
			continue
		}
		packets[n] = tunnel.Incoming{Offload: offload, Data: data[:size:size], Offset: at + tunnel.Headroom}
		n++
		at = (at + tunnel.Headroom + size + alignment - 1) &^ (alignment - 1)
	}
	return n, nil
}

// readError is nil where there is nothing to be read.
func (d *Device) readError(errno unix.Errno) error {
	switch errno {
	case 0, unix.EAGAIN:
		return nil
	case unix.EBADFD:
		return d.errGone
	}
	return fmt.Errorf("read from %s: %w", d.name, errno)
}

// Write writes packets as tunnel.Device says: one system call per packet, or one
// for all with a Ring.
func (d *Device) Write(packets []tunnel.Outgoing) (int, error) {
	d.writer.mu.Lock()
	defer d.writer.mu.Unlock()
	if d.ring != nil {
		return d.put(packets)
	}
	return tunnel.WriteEach(packets, d.writeOne)
}

// check says why p is not to be written.
func (d *Device) check(p *tunnel.Outgoing) error {
	switch {
	case d.closed.Load():
		return tunnel.ErrClosed
	case len(p.Parts) == 0 || len(p.Parts[0]) == 0:
		return errEmpty
	case len(p.Parts) >= maxVectors:
		return d.errParts
	case !d.accepts(&p.Offload):
		return d.errOff
	}
	return nil
}

func (d *Device) writeOne(p *tunnel.Outgoing) error {
	if err := d.check(p); err != nil {
		return err
	}
	d.writer.header.encode(p)
	vectors := d.writer.vectors[:1+len(p.Parts)]
	for i, part := range p.Parts {
		vectors[1+i].Base = unsafe.SliceData(part)
		vectors[1+i].SetLen(len(part))
	}
	_, errno := transfer(unix.SYS_WRITEV, d.fd, vectors, &d.writer.calls)
	clear(vectors[1:]) // the parts are the caller's again
	return d.writeError(errno, p)
}

func (d *Device) writeError(errno unix.Errno, p *tunnel.Outgoing) error {
	switch {
	case errno == 0:
		return nil
	case errno == unix.EIO:
		return d.errDown
	case errno == unix.EBADFD:
		return d.errGone
	case errno == unix.EINVAL && p.Offload != tunnel.Offload{}:
		return d.errRefused
	}
	return fmt.Errorf("write to %s: %w", d.name, errno)
}

// accepts reports whether o is within Offloads.
func (d *Device) accepts(o *tunnel.Offload) bool {
	switch o.GSO {
	case tunnel.GSOTCP4, tunnel.GSOTCP6:
		return d.offloads.TCP
	case tunnel.GSOUDP:
		return d.offloads.UDP
	}
	return !o.NeedsChecksum || d.offloads.Checksum
}

// transfer runs readv or writev and returns the bytes moved. It never waits:
// the descriptor is non-blocking. Only one goroutine at a time adds to calls.
func transfer(call uintptr, fd int, vectors []unix.Iovec, calls *atomic.Uint64) (int, unix.Errno) {
	for {
		calls.Store(calls.Load() + 1)
		n, _, errno := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&vectors[0])), uintptr(len(vectors)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}
