package local

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// upgradeTo names what a dialled connection becomes.
const upgradeTo = "weft-dial"

// bufferedConn is a connection of which something has been read already.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.reader.Read(b) }

// CloseWrite ends what the other side reads, where the connection can.
func (c *bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// maxDatagram is the largest UDP payload of either family.
const maxDatagram = 65535 - 8 - 20

// frames carries datagrams over a stream: each has its length in front, in two
// bytes, big-endian.
type frames struct {
	net.Conn
	reader *bufio.Reader
	mu     sync.Mutex // one Write at a time
	buffer []byte
}

func newFrames(c net.Conn) *frames {
	return &frames{Conn: c, reader: bufio.NewReaderSize(c, 2+maxDatagram)}
}

// Read reads one datagram. What does not fit into b is lost, as with a socket.
func (f *frames) Read(b []byte) (int, error) {
	var header [2]byte
	if _, err := io.ReadFull(f.reader, header[:]); err != nil {
		return 0, err
	}
	size := int(binary.BigEndian.Uint16(header[:]))
	n, err := io.ReadFull(f.reader, b[:min(size, len(b))])
	if err == nil {
		_, err = f.reader.Discard(size - n)
	}
	return n, err
}

// Write writes one datagram.
func (f *frames) Write(b []byte) (int, error) {
	if len(b) > maxDatagram {
		return 0, fmt.Errorf("datagram of %d bytes: at most %d can be", len(b), maxDatagram)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buffer = append(binary.BigEndian.AppendUint16(f.buffer[:0], uint16(len(b))), b...)
	if _, err := f.Conn.Write(f.buffer); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Join copies both ways until both have ended. The end of one way of a stream is
// passed on; an error of either, and the end of datagrams, ends both.
func Join(a, b net.Conn, datagrams bool) {
	move := moveStream
	if datagrams {
		move = moveDatagrams
	}
	var group sync.WaitGroup
	carry := func(to, from net.Conn) {
		if move(to, from) != nil || datagrams || closeWrite(to) != nil {
			a.Close()
			b.Close()
		}
	}
	group.Go(func() { carry(a, b) })
	group.Go(func() { carry(b, a) })
	group.Wait()
}

func moveStream(to, from net.Conn) error {
	_, err := io.Copy(to, from)
	return err
}

// moveDatagrams keeps the bounds of datagrams, empty ones too. One that cannot
// be sent is lost, as datagrams are.
func moveDatagrams(to, from net.Conn) error {
	buffer := make([]byte, maxDatagram)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return err
		}
		if _, err := to.Write(buffer[:n]); errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}
