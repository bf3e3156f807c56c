package wireguard

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/weft-net/weft/tunnel"
)

// bind is the library's socket on a wire.
type bind struct {
	wire *wire

	mu     sync.Mutex
	at     netip.AddrPort
	in     chan datagramFrom
	closed chan struct{}
}

type datagramFrom struct {
	from     netip.AddrPort
	datagram []byte
}

func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.in, b.closed = make(chan datagramFrom, 1024), make(chan struct{})
	in, closed := b.in, b.closed
	b.wire.connect(b.at, func(datagram []byte, from netip.AddrPort) {
		select {
		case in <- datagramFrom{from, datagram}:
		case <-closed:
		}
	})
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case m := <-in:
			sizes[0] = copy(packets[0], m.datagram)
			eps[0] = place(m.from)
			return 1, nil
		case <-closed:
			return 0, net.ErrClosed
		}
	}}, b.at.Port(), nil
}

func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *bind) roam(at netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wire.mu.Lock()
	b.wire.ends[at], b.wire.ends[b.at] = b.wire.ends[b.at], nil
	b.wire.mu.Unlock()
	b.at = at
}

func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	b.mu.Lock()
	from := b.at
	b.mu.Unlock()
	for _, packet := range packets {
		if err := b.wire.send(from, netip.AddrPort(to.(place)), packet); err != nil {
			return err
		}
	}
	return nil
}

func (b *bind) SetMark(uint32) error { return nil }
func (b *bind) BatchSize() int       { return 1 }
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	at, err := netip.ParseAddrPort(s)
	return place(at), err
}

type place netip.AddrPort

func (p place) ClearSrc()           {}
func (p place) SrcToString() string { return "" }
func (p place) SrcIP() netip.Addr   { return netip.Addr{} }
func (p place) DstToString() string { return netip.AddrPort(p).String() }
func (p place) DstIP() netip.Addr   { return netip.AddrPort(p).Addr() }
func (p place) DstToBytes() []byte {
	b, _ := netip.AddrPort(p).MarshalBinary()
	return b
}

// library is golang.zx2c4.com/wireguard as the other end.
type library struct {
	device *device.Device
	tun    *tuntest.ChannelTUN
	bind   *bind
	key    tunnel.SecretKey
}

var (
	innerOurs  = netip.MustParseAddr("10.0.0.1")
	innerTheir = netip.MustParseAddr("10.0.0.2")
)

func newLibrary(t *testing.T, w *wire, e *end, psk tunnel.SecretKey) *library {
	t.Helper()
	l := &library{tun: tuntest.NewChannelTUN(), bind: &bind{wire: w, at: netip.MustParseAddrPort(placeB)}, key: secretKey(99)}
	l.device = device.NewDevice(l.tun.TUN(), l.bind, device.NewLogger(device.LogLevelSilent, ""))
	t.Cleanup(l.device.Close)
	public := e.key.Public()
	settings := []string{
		"private_key=" + hex.EncodeToString(l.key[:]), "listen_port=51820", "replace_peers=true",
		"public_key=" + hex.EncodeToString(public[:]), "preshared_key=" + hex.EncodeToString(psk[:]),
		"endpoint=" + placeA, "allowed_ip=0.0.0.0/0",
	}
	must(t, l.device.IpcSet(strings.Join(settings, "\n")+"\n"))
	must(t, l.device.Up())
	return l
}

// exchange sends both ways, the given end first.
func (l *library) exchange(t *testing.T, e *end, p *Peer, theyFirst bool) {
	t.Helper()
	ours, theirs := tuntest.Ping(innerTheir, innerOurs), tuntest.Ping(innerOurs, innerTheir)
	send := func() {
		must(t, e.send(p, ours))
		if got := <-l.tun.Inbound; string(got) != string(ours) {
			t.Fatalf("the library received %x, want %x", got, ours)
		}
	}
	receive := func() {
		had := len(e.received())
		l.tun.Outbound <- theirs
		eventually(t, "packet of the library", func() bool { return len(e.received()) > had })
		if got := e.received()[had]; !strings.HasPrefix(got, string(theirs)) {
			t.Fatalf("received %x, want %x", got, theirs)
		}
	}
	if theyFirst {
		receive()
		send()
	} else {
		send()
		receive()
	}
}

// withLibrary runs a test between one of our ends and the library.
func withLibrary(t *testing.T, psk tunnel.SecretKey, test func(t *testing.T, w *wire, e *end, l *library, p *Peer)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		e := newEnd(t, w, 1, placeA, Config{Preshared: psk})
		l := newLibrary(t, w, e, psk)
		p := e.setPeers(PeerConfig{Name: "library", Keys: tunnel.WireGuardKeys{l.key.Public()}, Endpoint: netip.MustParseAddrPort(placeB)})[0]
		test(t, w, e, l, p)
	})
}

func TestLibrary(t *testing.T) {
	for _, theyFirst := range []bool{false, true} {
		for _, psk := range []tunnel.SecretKey{{}, secretKey(7)} {
			t.Run(fmt.Sprintf("they first %t, psk %t", theyFirst, psk != tunnel.SecretKey{}), func(t *testing.T) {
				withLibrary(t, psk, func(t *testing.T, _ *wire, e *end, l *library, p *Peer) {
					for range 3 {
						l.exchange(t, e, p, theyFirst)
					}
				})
			})
		}
	}
}

// TestLibraryOtherPSK holds that another pre-shared key keeps hosts apart.
func TestLibraryOtherPSK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tr := w.watch(nil)
		e := newEnd(t, w, 1, placeA, Config{Preshared: secretKey(8)})
		l := newLibrary(t, w, e, secretKey(7))
		p := e.setPeers(PeerConfig{Keys: tunnel.WireGuardKeys{l.key.Public()}, Endpoint: netip.MustParseAddrPort(placeB)})[0]
		must(t, e.send(p, []byte("lost")))
		time.Sleep(time.Minute)
		if p.Status().Up || tr.of(e, 4) != 0 {
			t.Fatal("a session is up")
		}
	})
}

// TestLibraryRekeys holds that sessions follow one another without a loss.
func TestLibraryRekeys(t *testing.T) {
	for _, theyFirst := range []bool{false, true} {
		withLibrary(t, tunnel.SecretKey{}, func(t *testing.T, w *wire, e *end, l *library, p *Peer) {
			handshakes := map[time.Time]bool{}
			tr := w.watch(nil)
			for range 600 {
				l.exchange(t, e, p, theyFirst)
				handshakes[p.Status().LastHandshake] = true
				time.Sleep(time.Second)
			}
			if len(handshakes) < 4 || len(handshakes) > 6 {
				t.Errorf("%d handshakes in ten minutes", len(handshakes))
			}
			if ours := tr.of(e, device.MessageInitiationType); (ours == 0) != theyFirst {
				t.Errorf("%d of them are ours", ours)
			}
		})
	}
}

func TestLibraryRoams(t *testing.T) {
	withLibrary(t, tunnel.SecretKey{}, func(t *testing.T, _ *wire, e *end, l *library, p *Peer) {
		l.exchange(t, e, p, false)
		l.bind.roam(netip.MustParseAddrPort(placeC))
		l.exchange(t, e, p, true)
		if p.Endpoint().String() != placeC {
			t.Fatalf("the library is at %s", p.Endpoint())
		}
		e.roam("192.0.2.44:51820")
		l.exchange(t, e, p, false)
	})
}

// TestLibraryRestarts holds that a lost session on our side is replaced at once.
func TestLibraryRestarts(t *testing.T) {
	withLibrary(t, tunnel.SecretKey{}, func(t *testing.T, w *wire, e *end, l *library, p *Peer) {
		l.exchange(t, e, p, true)
		time.Sleep(10 * time.Second)
		config := *p.config.Load()
		e.stop()
		again := newEnd(t, w, 1, placeA, Config{})
		p = again.setPeers(config)[0]
		l.tun.Outbound <- tuntest.Ping(innerOurs, innerTheir) // lost
		synctest.Wait()
		l.exchange(t, again, p, true)
	})
}

// TestLibraryUnderLoad holds that its cookies are understood.
func TestLibraryUnderLoad(t *testing.T) {
	withLibrary(t, tunnel.SecretKey{}, func(t *testing.T, w *wire, e *end, l *library, p *Peer) {
		junk := make([]byte, device.MessageInitiationSize)
		junk[0] = device.MessageInitiationType
		var macs device.CookieGenerator
		macs.Init(device.NoisePublicKey(l.key.Public()))
		macs.AddMacs(junk)
		var mu sync.Mutex
		var answers []byte
		w.setPass(func(from, to netip.AddrPort, datagram []byte, deliver func()) {
			if to == e.place() {
				mu.Lock()
				answers = append(answers, datagram[0])
				mu.Unlock()
			} else if datagram[0] == device.MessageInitiationType {
				for range device.QueueHandshakeSize / 2 {
					l.bind.in <- datagramFrom{netip.MustParseAddrPort(placeC), junk}
				}
			}
			if to != netip.MustParseAddrPort(placeC) {
				deliver()
			}
		})
		must(t, e.send(p, tuntest.Ping(innerTheir, innerOurs)))
		time.Sleep(6 * time.Second)
		<-l.tun.Inbound
		mu.Lock()
		defer mu.Unlock()
		if string(answers) != "\x03\x02" {
			t.Fatalf("answers are of types %v, want a cookie and a response", answers)
		}
	})
}

// TestLoadUnderLibrary holds that it understands ours.
func TestLoadUnderLibrary(t *testing.T) {
	withLibrary(t, tunnel.SecretKey{}, func(t *testing.T, w *wire, e *end, l *library, p *Peer) {
		synctest.Wait()
		e.host.loadedUntil = e.host.now() + time.Hour
		tr := w.watch(nil)
		l.exchange(t, e, p, true)
		wantSent(t, tr, e, device.MessageCookieReplyType, 1)
		wantSent(t, tr, e, device.MessageResponseType, 1)
	})
}
