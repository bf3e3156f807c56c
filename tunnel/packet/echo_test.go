package packet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

func echo(is4 bool) Echo {
	return Echo{
		Source: tcp(is4, nil).Source.Addr(), Destination: far(is4),
		Identifier: 0x1234, Sequence: 0xfedc, Data: []byte("what comes back"),
	}
}

// replyTo is what the far end answers to a request.
func replyTo(request []byte) []byte {
	is4 := request[0]>>4 == 4
	source, destination, _ := Addresses(request)
	p := tunneltest.Packet{
		Source: netip.AddrPortFrom(destination, 0), Destination: netip.AddrPortFrom(source, 0), Protocol: ICMPv6,
	}
	if is4 {
		p.Protocol, p.Payload = ICMPv4, bytes.Clone(request[20:])
		p.Payload[0] = 0
	} else {
		p.Payload = bytes.Clone(request[40:])
		p.Payload[0] = 129
	}
	return p.Bytes()
}

func TestEcho(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		e := echo(is4)
		least := 48 + len(e.Data)
		if is4 {
			least = 28 + len(e.Data)
		}
		for _, size := range []int{least, least + 1, 576, 1450, 65535} {
			b := bytes.Repeat([]byte{0xaa}, size)
			if err := PutEchoRequest(b, e); err != nil {
				t.Fatal(err)
			}
			if err := tunneltest.Check(b); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			v := mustParse(t, b)
			if len(v.Data) != size || !v.DontFragment() || v.Source() != e.Source || v.Destination() != e.Destination {
				t.Errorf("%d bytes: %d bytes, DF %v, from %v to %v", size, len(v.Data), v.DontFragment(), v.Source(), v.Destination())
			}
			if _, ok := ParseEchoReply(v); ok {
				t.Errorf("%d bytes: a request is taken for a reply", size)
			}
			got, ok := ParseEchoReply(mustParse(t, replyTo(b)))
			if !ok || got.Source != e.Destination || got.Destination != e.Source || got.Identifier != e.Identifier ||
				got.Sequence != e.Sequence || !bytes.HasPrefix(got.Data, e.Data) || len(got.Data) != len(e.Data)+size-least {
				t.Errorf("%d bytes: reply %+v, %v", size, got, ok)
			}
		}
	})
}

func TestPutEchoRequestErrors(t *testing.T) {
	e4, e6, mixed, mapped := echo(true), echo(false), echo(true), echo(true)
	mixed.Destination = e6.Destination
	mapped.Source = netip.AddrFrom16(mapped.Source.As16())
	for name, tt := range map[string]struct {
		e    Echo
		size int
	}{
		"no addresses": {Echo{}, 1000}, "two families": {mixed, 1000}, "mapped": {mapped, 1000},
		"short4": {e4, 27 + len(e4.Data)}, "short6": {e6, 47 + len(e6.Data)}, "empty": {e4, 0}, "long": {e4, 65536},
	} {
		if err := PutEchoRequest(make([]byte, tt.size), tt.e); !errors.Is(err, ErrEcho) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseEchoReplyNever(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		request := make([]byte, 200)
		if err := PutEchoRequest(request, echo(is4)); err != nil {
			t.Fatal(err)
		}
		at := 40
		if is4 {
			at = 20
		}
		for name, change := range map[string]func(b []byte) []byte{
			"wrong checksum": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			"other type":     func(b []byte) []byte { b[at] = 3; return b },
			"other code":     func(b []byte) []byte { b[at+1], b[at+3] = 1, b[at+3]-1; return b },
			"TCP":            func([]byte) []byte { return tcp(is4, nil).Bytes() },
			"short": func(b []byte) []byte {
				p := tcp(is4, nil)
				p.Protocol, p.Payload = b[9], b[at:at+7]
				if !is4 {
					p.Protocol = b[6]
				}
				return p.Bytes()
			},
			"other family's": func(b []byte) []byte {
				p := tcp(is4, nil)
				p.Protocol, p.Payload = ICMPv4, b[at:]
				if is4 {
					p.Protocol = ICMPv6
				}
				return p.Bytes()
			},
		} {
			if e, ok := ParseEchoReply(mustParse(t, change(replyTo(request)))); ok {
				t.Errorf("%s: taken for %+v", name, e)
			}
		}
	})
}

// The first fragment of a reply says enough, a later one nothing.
func TestParseEchoReplyInFragments(t *testing.T) {
	request := make([]byte, 1450)
	if err := PutEchoRequest(request, echo(true)); err != nil {
		t.Fatal(err)
	}
	fragments := fragmentAll(t, mustParse(t, replyTo(request)), 576)
	if e, ok := ParseEchoReply(mustParse(t, fragments[0])); !ok || !bytes.HasPrefix(e.Data, echo(true).Data) {
		t.Errorf("first fragment: %+v, %v", e, ok)
	}
	if e, ok := ParseEchoReply(mustParse(t, fragments[1])); ok {
		t.Errorf("second fragment: %+v", e)
	}

	if err := PutEchoRequest(request, echo(false)); err != nil {
		t.Fatal(err)
	}
	reply := replyTo(request)
	first := append(bytes.Clone(reply[:40]), ICMPv6, 0, 0, 1, 0, 0, 0, 9)
	first = append(first, reply[40:1240]...)
	first[6] = fragment
	binary.BigEndian.PutUint16(first[4:], uint16(len(first)-40))
	if e, ok := ParseEchoReply(mustParse(t, first)); !ok || !bytes.HasPrefix(e.Data, echo(false).Data) {
		t.Errorf("first IPv6 fragment: %+v, %v", e, ok)
	}
}

// FuzzParseEchoReply: nothing is read outside, and what is found is there.
func FuzzParseEchoReply(f *testing.F) {
	for _, is4 := range []bool{true, false} {
		request := make([]byte, 100)
		if err := PutEchoRequest(request, echo(is4)); err != nil {
			f.Fatal(err)
		}
		f.Add(request)
		f.Add(replyTo(request))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		e, ok := ParseEchoReply(v)
		if ok && (!bytes.HasSuffix(v.Data, e.Data) || e.Source != v.Source() || len(e.Data)+28 > len(v.Data)) {
			t.Errorf("%x: %+v", b, e)
		}
	})
}
