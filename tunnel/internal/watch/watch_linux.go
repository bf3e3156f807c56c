package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config describes a Watcher. All fields are required.
type Config struct {
	Protocol int      // netlink protocol, as in unix.NETLINK_ROUTE
	Groups   []uint32 // multicast groups, numbers below 33
	// Relevant says whether a notification deserves a token. It runs on the
	// Watcher's goroutine and must not keep the message's data.
	Relevant func(syscall.NetlinkMessage) bool
	Logger   *slog.Logger
}

// Watcher listens in the network namespace it was opened in.
type Watcher struct {
	relevant func(syscall.NetlinkMessage) bool
	log      *slog.Logger
	socket   *os.File
	tokens   chan struct{}
	closing  chan struct{}
	once     sync.Once
	done     sync.WaitGroup
}

const (
	// maxDatagram is what the kernel fills at most with notifications.
	maxDatagram = 64 << 10
	// receiveBuffer holds the burst of a few thousand routes; what is more
	// overflows and is made up for by one token.
	receiveBuffer = 1 << 20
)

// Open subscribes and starts listening. The Watcher runs until Close.
func Open(config Config) (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, config.Protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	address := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range config.Groups {
		address.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, address); err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to netlink notifications: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("size netlink receive buffer: %w", err), unix.Close(fd))
	}
	w := &Watcher{
		relevant: config.Relevant,
		log:      config.Logger,
		socket:   os.NewFile(uintptr(fd), "netlink"),
		tokens:   make(chan struct{}, 1),
		closing:  make(chan struct{}),
	}
	w.done.Go(w.run)
	return w, nil
}

// Tokens has a token when something may have changed since the last one was
// taken. It is never closed.
func (w *Watcher) Tokens() <-chan struct{} { return w.tokens }

// Close ends the Watcher. It may be called more than once.
func (w *Watcher) Close() (err error) {
	w.once.Do(func() {
		close(w.closing)
		err = w.socket.Close()
		w.done.Wait()
	})
	return err
}

func (w *Watcher) run() {
	buffer := make([]byte, maxDatagram)
	for {
		n, err := w.socket.Read(buffer)
		select {
		case <-w.closing:
			return
		default:
		}
		if errors.Is(err, unix.ENOBUFS) {
			w.emit() // notifications were lost, some may have been relevant
			continue
		}
		if err != nil {
			w.log.Warn("netlink notifications failed, trying again", "err", err)
			w.emit()
			w.pause()
			continue
		}
		w.handle(buffer[:n])
	}
}

func (w *Watcher) handle(datagram []byte) {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err != nil {
		w.emit()
		return
	}
	for _, message := range messages {
		if w.relevant(message) {
			w.emit()
			return
		}
	}
}

func (w *Watcher) emit() {
	select {
	case w.tokens <- struct{}{}:
	default: // one is waiting already
	}
}

// pause keeps an error that stays from becoming a busy loop.
func (w *Watcher) pause() {
	select {
	case <-w.closing:
	case <-time.After(time.Second):
	}
}

// Attribute finds the value of the first netlink attribute of a type in a
// message after its header.
func Attribute(attributes []byte, kind uint16) ([]byte, bool) {
	for len(attributes) >= unix.SizeofRtAttr {
		length := int(binary.NativeEndian.Uint16(attributes))
		if length < unix.SizeofRtAttr || length > len(attributes) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(attributes[2:]) == kind {
			return attributes[unix.SizeofRtAttr:length], true
		}
		aligned := (length + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1)
		attributes = attributes[min(aligned, len(attributes)):]
	}
	return nil, false
}
