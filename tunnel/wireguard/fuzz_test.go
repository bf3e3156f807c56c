package wireguard

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

// FuzzHandshake gives foreign bytes to the handshake, with their first code made
// right, as a stranger who knows our key can.
func FuzzHandshake(f *testing.F) {
	for kind, size := range map[byte]int{1: device.MessageInitiationSize, 2: device.MessageResponseSize, 3: device.MessageCookieReplySize} {
		f.Add(append([]byte{kind, 0, 0, 0, 7}, make([]byte, size-5)...), false)
		f.Add(append([]byte{kind, 0, 0, 0, 7}, make([]byte, size-5)...), true)
	}
	f.Fuzz(func(t *testing.T, datagram []byte, loaded bool) {
		s, _ := sessions(t)
		p, h := s.Peer(), s.Peer().host
		h.initiate(p, h.now())
		if loaded {
			h.loadedUntil = h.now() + device.UnderLoadAfterTime
		}
		if len(datagram) >= 60 && datagram[0] != device.MessageCookieReplyType {
			if datagram[0] == device.MessageResponseType {
				binary.LittleEndian.PutUint32(datagram[8:], p.upkeep.attempt.slot.index)
			}
			var macs device.CookieGenerator
			macs.Init(device.NoisePublicKey(h.own[0].public))
			macs.AddMacs(datagram)
		}
		h.Handshake(datagram, netip.MustParseAddrPort(placeC))
		for len(h.queue) > 0 {
			m := <-h.queue
			h.handle(&m)
		}
		if p.current.Load() != s || p.next != nil || p.upkeep.attempt == nil || p.Endpoint() != netip.MustParseAddrPort(placeB) {
			t.Fatal("a stranger has changed the peer")
		}
	})
}

func FuzzOpen(f *testing.F) {
	_, sender := sessions(f)
	sealed := make([]byte, 4+Overhead)
	sender.Seal(sealed, []byte("data"), 3, new(Scratch))
	f.Add(sealed)
	f.Add([]byte{4, 0, 0, 0, 7, 0, 0, 0})
	f.Fuzz(func(t *testing.T, datagram []byte) {
		receiver, _ := sessions(t)
		genuine := string(datagram[min(8, len(datagram)):]) == string(sealed[8:])
		if _, _, ok := receiver.Open(datagram, new(Scratch)); ok && !genuine {
			t.Fatalf("opened %x", datagram)
		}
	})
}
