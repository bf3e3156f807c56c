package differential

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/bench/lab"
	"github.com/weft-net/weft/tunnel"
)

// tap is a packet socket on one device.
type tap struct {
	t      *testing.T
	fd     int
	index  int
	buffer []byte
}

// openTap opens a tap that sees what passes the device, or one that only
// sends, super-packets too.
func openTap(t *testing.T, where *lab.Namespace, device string, sends bool) *tap {
	t.Helper()
	p := &tap{t: t, buffer: make([]byte, 1<<17)}
	err := where.Do(func() error {
		link, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		p.index = link.Index
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		if sends {
			return unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
		}
		const buffer = 16 << 20
		if unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
			_ = unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // as much as there is
		}
		return unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: p.index})
	})
	if err != nil {
		t.Fatalf("tap %s on %s: %v", device, where.Name(), err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	return p
}

func bigEndian(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// send puts a frame on the wire that begins with so many bytes of link header.
// The error is the kernel's.
func (p *tap) send(frame []byte, link int, etherType uint16, offload tunnel.Offload) error {
	// struct virtio_net_hdr: flags, type, header length, segment size, checksum start and offset.
	header := p.buffer[:10]
	clear(header)
	if offload.NeedsChecksum {
		header[0] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(header[6:], uint16(link)+offload.ChecksumStart)
		binary.NativeEndian.PutUint16(header[8:], offload.ChecksumOffset)
	}
	if offload.GSO != tunnel.GSONone {
		header[1] = map[tunnel.GSOType]byte{
			tunnel.GSOTCP4: unix.VIRTIO_NET_HDR_GSO_TCPV4, tunnel.GSOTCP6: unix.VIRTIO_NET_HDR_GSO_TCPV6, tunnel.GSOUDP: unix.VIRTIO_NET_HDR_GSO_UDP_L4,
		}[offload.GSO]
		if offload.ECN {
			header[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
		}
		binary.NativeEndian.PutUint16(header[4:], offload.SegmentSize)
	}
	n := len(header) + copy(p.buffer[len(header):], frame)
	return unix.Sendto(p.fd, p.buffer[:n], 0, &unix.SockaddrLinklayer{Protocol: bigEndian(etherType), Ifindex: p.index})
}

// next takes a frame that has passed. It is valid until the next one.
func (p *tap) next() (frame []byte, outgoing, ok bool) {
	p.t.Helper()
	n, from, err := unix.Recvfrom(p.fd, p.buffer, unix.MSG_TRUNC)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil, false, false
	case err != nil || n > len(p.buffer):
		p.t.Fatalf("receive %d bytes: %v", n, err)
	}
	link, _ := from.(*unix.SockaddrLinklayer)
	return p.buffer[:n], link != nil && link.Pkttype == unix.PACKET_OUTGOING, true
}

// lost is how many frames the tap has missed.
func (p *tap) lost() uint32 {
	stats, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		p.t.Fatal(err)
	}
	return stats.Drops
}

// wait waits until a tap has something, or not longer.
func wait(taps []*tap, timeout time.Duration) {
	var fds []unix.PollFd
	for _, p := range taps {
		fds = append(fds, unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN})
	}
	_, _ = unix.Poll(fds, int(timeout.Milliseconds())) // an interrupted wait is a short one
}

// ethernetFrame puts a link header in front of a packet.
func ethernetFrame(to, from tunnel.MAC, etherType uint16, packet []byte) []byte {
	b := append(append([]byte(nil), to[:]...), from[:]...)
	b = binary.BigEndian.AppendUint16(b, etherType)
	return append(b, packet...)
}

// openPeerSocket gives the peer its VXLAN port, with a filter that drops all:
// without it the peer's kernel would answer that the port is unreachable.
func (w *world) openPeerSocket() {
	w.t.Helper()
	err := w.peer.Do(func() (err error) {
		family, name := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: w.outer.As16()})
		if w.outer.Is4() {
			family, name = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: w.outer.As4()}
		}
		if w.peerSocket, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
		program := unix.SockFprog{Len: 1, Filter: &drop}
		return errors.Join(
			unix.SetsockoptSockFprog(w.peerSocket, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
			unix.Bind(w.peerSocket, name),
		)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { unix.Close(w.peerSocket) })
}

// sendFragmented has the peer's kernel send a datagram, in as many pieces as it takes.
func (w *world) sendFragmented(to netip.Addr, payload []byte) error {
	name := unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: to.As16()})
	if to.Is4() {
		name = &unix.SockaddrInet4{Port: port, Addr: to.As4()}
	}
	return unix.Sendto(w.peerSocket, payload, 0, name)
}
