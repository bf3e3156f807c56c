// Package ring has the kernel read, receive and write for one thread by
// io_uring(7): what arrives is put into slots of memory as it comes, and many
// operations are begun, and waited for, with one system call. It must never hand
// out a slot that the kernel may still write to, nor wait for anything but what
// the caller waits for.
package ring

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/tunnel"
)

// Ring is one io_uring. From Start on all of its methods but Calls, and all that
// makes use of it, are for the thread that has called that. What arrives is read in
// that thread, too, at the end of whatever system call it makes.
type Ring struct {
	fd       int // -1: closed
	started  bool
	stopping bool
	calls    atomic.Uint64
	memory   [][]byte // mapped
	users    []user
	left     int // operations that are not completed

	entries   []entry
	entryTail *uint32
	queued    uint32 // entries filled since the last call
	done      []completion
	doneHead  *uint32
	doneTail  *uint32
}

// user is told what has become of the operations that it has queued. Index is
// what it gave them; the rest is as in struct io_uring_cqe.
type user interface {
	completed(index uint32, result int32, flags uint32)
}

// entry is struct io_uring_sqe, of 64 bytes.
type entry struct {
	opcode   uint8
	flags    uint8
	priority uint16
	fd       int32
	offset   uint64
	address  uint64
	length   uint32
	opFlags  uint32
	userData uint64
	group    uint16
	_        [22]byte
}

// completion is struct io_uring_cqe.
type completion struct {
	userData uint64
	result   int32
	flags    uint32
}

// From linux/io_uring.h.
const (
	opWritev        = 2
	opPollAdd       = 6
	opRecvmsg       = 10
	opAsyncCancel   = 14
	opReadMultishot = 49

	flagBufferSelect = 1 << 5

	receiveMultishot = 1 << 1 // in priority
	cancelAll        = 1 << 0
	cancelAny        = 1 << 2

	completionBuffer = 1 << 0
	completionMore   = 1 << 1

	setupCQSize       = 1 << 3
	setupDisabled     = 1 << 6
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupSingleIssuer = 1 << 12

	featureSingleMmap = 1 << 0
	featureNoDrop     = 1 << 1

	enterGetEvents = 1 << 0

	registerEnable  = 12
	registerBuffers = 22 // IORING_REGISTER_PBUF_RING

	offsetRings   = 0
	offsetEntries = 0x10000000
)

// params is struct io_uring_params.
type params struct {
	entries, completions, flags, _, _ uint32
	features, _                       uint32
	_                                 [3]uint32
	sq                                struct {
		head, tail, mask, count, flags, dropped, array, _ uint32
		_                                                 uint64
	}
	cq struct {
		head, tail, mask, count, overflow, cqes, flags, _ uint32
		_                                                 uint64
	}
}

// Sizes of a Ring: more entries than are queued between two calls, and more
// completions than there can be before they are looked at, which is one for each
// slot of all Streams and for each write of a batch.
const (
	entryCount = 128
	doneCount  = 2048
)

// Open opens a Ring that Start has work.
func Open() (*Ring, error) {
	p := params{
		flags:       setupCQSize | setupDisabled | setupSubmitAll | setupSingleIssuer | setupCoopTaskrun,
		completions: doneCount,
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entryCount, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &Ring{fd: int(fd)}
	r.add(nobody{})
	if err := r.mapRings(&p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Ring) mapRings(p *params) error {
	if want := uint32(featureSingleMmap | featureNoDrop); p.features&want != want {
		return fmt.Errorf("io_uring_setup: features %#x, want %#x", p.features, want)
	}
	size := max(p.sq.array+p.entries*4, p.cq.cqes+p.completions*uint32(unsafe.Sizeof(completion{})))
	rings, err := r.mmap(offsetRings, int(size))
	if err != nil {
		return err
	}
	entries, err := r.mmap(offsetEntries, int(p.entries)*int(unsafe.Sizeof(entry{})))
	if err != nil {
		return err
	}
	at := func(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[offset])) }
	r.entries = unsafe.Slice((*entry)(unsafe.Pointer(&entries[0])), p.entries)
	r.entryTail = at(p.sq.tail)
	// Which entry is next is told by way of an array, that of their numbers.
	for i, array := uint32(0), unsafe.Slice(at(p.sq.array), p.entries); i < p.entries; i++ {
		array[i] = i
	}
	r.done = unsafe.Slice((*completion)(unsafe.Pointer(&rings[p.cq.cqes])), p.completions)
	r.doneHead, r.doneTail = at(p.cq.head), at(p.cq.tail)
	return nil
}

func (r *Ring) mmap(offset int64, size int) ([]byte, error) {
	memory, err := unix.Mmap(r.fd, offset, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	r.memory = append(r.memory, memory)
	return memory, nil
}

// anonymous maps memory that the kernel is to write to, outside of what Go moves
// or frees.
func (r *Ring) anonymous(size int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", size, err)
	}
	r.memory = append(r.memory, memory)
	return memory, nil
}

// add returns what entries of u are to be queued with.
func (r *Ring) add(u user) (id uint32) {
	r.users = append(r.users, u)
	return uint32(len(r.users) - 1)
}

// Start is called once, by the thread that uses the Ring from then on.
func (r *Ring) Start() error {
	if err := r.register(registerEnable, 0, 0); err != nil {
		return fmt.Errorf("enable io_uring: %w", err)
	}
	r.started = true
	return nil
}

func (r *Ring) register(what, argument, count uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), what, argument, count, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// queue returns an entry to be filled, for operations of a user. There are as many
// as all users together may queue between two calls.
func (r *Ring) queue(id, index uint32) *entry {
	tail := *r.entryTail
	e := &r.entries[tail%uint32(len(r.entries))]
	*e = entry{userData: uint64(id)<<32 | uint64(index)}
	atomic.StoreUint32(r.entryTail, tail+1)
	r.queued++
	r.left++
	return e
}

// Enter begins what is queued, has the kernel do what it can, waits until so many
// operations are completed, of which there must be as many, and tells their users.
func (r *Ring) Enter(wait uint32) error {
	if r.fd < 0 {
		return tunnel.ErrClosed
	}
	for {
		queued := r.queued
		r.calls.Store(r.calls.Load() + 1)
		n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(queued), uintptr(wait), enterGetEvents, 0, 0)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.EBUSY: // no memory, or completions to be looked at first
			n = 0
		default:
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		r.queued -= uint32(n)
		if r.Reap(); uint32(n) == queued {
			return nil
		}
		wait = 0
	}
}

// Reap tells users what has been completed meanwhile. It makes no call.
func (r *Ring) Reap() {
	head, tail := *r.doneHead, atomic.LoadUint32(r.doneTail)
	for ; head != tail; head++ {
		c := r.done[head%uint32(len(r.done))]
		if c.flags&completionMore == 0 {
			r.left--
		}
		r.users[c.userData>>32].completed(uint32(c.userData), c.result, c.flags)
	}
	atomic.StoreUint32(r.doneHead, head)
}

// nobody is the user, number 0, of operations whose result is of no interest.
type nobody struct{}

func (nobody) completed(uint32, int32, uint32) {}

// Watch has no Enter wait as long as fd is readable, before Start.
func (r *Ring) Watch(fd int) {
	w := &watch{ring: r, fd: fd}
	w.id = r.add(w)
	w.ask()
}

// watch asks again and again: what was seen once may have been overlooked.
type watch struct {
	ring *Ring
	id   uint32
	fd   int
}

func (w *watch) ask() {
	e := w.ring.queue(w.id, 0)
	e.opcode, e.fd, e.opFlags = opPollAdd, int32(w.fd), unix.POLLIN
}

// completed implements user.
func (w *watch) completed(_ uint32, result int32, _ uint32) {
	if result >= 0 && !w.ring.stopping {
		w.ask()
	}
}

// Calls is the number of system calls made. It may be asked by any thread.
func (r *Ring) Calls() uint64 { return r.calls.Load() }

// Stop ends all operations and returns when nothing is left of them, so that
// descriptors that were used can be closed. The thread that has called Start calls it.
func (r *Ring) Stop() error {
	if !r.started || r.fd < 0 {
		return nil
	}
	r.stopping = true
	e := r.queue(0, 0)
	e.opcode, e.opFlags = opAsyncCancel, cancelAll|cancelAny
	for r.left > 0 {
		if err := r.Enter(1); err != nil {
			return fmt.Errorf("end operations: %w", err)
		}
	}
	return nil
}

// Close frees everything, the memory of Streams included. Between Start and Close
// there must be a Stop.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	errs := []error{unix.Close(r.fd)}
	r.fd = -1
	for _, memory := range r.memory {
		errs = append(errs, unix.Munmap(memory))
	}
	return errors.Join(errs...)
}
