package packet

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

// syn is a SYN with an option of mss, which begins after lead options of one byte.
func syn(is4 bool, lead int, mss uint16) tunneltest.Packet {
	p := tcp(is4, nil)
	p.Flags = tunneltest.SYN
	options := append(bytes.Repeat([]byte{1}, lead), 2, 4, byte(mss>>8), byte(mss))
	for len(options)%4 != 0 {
		options = append(options, 1)
	}
	p.TCPOptions = options
	return p
}

// announced is every MSS in a packet's TCP header that bears no other options
// but those of one byte.
func announced(b []byte, is4 bool) (all []int) {
	headers := 60
	if is4 {
		headers = 40
	}
	options := b[headers:]
	for len(options) > 0 {
		if options[0] == 1 {
			options = options[1:]
			continue
		}
		all = append(all, int(binary.BigEndian.Uint16(options[2:])))
		options = options[4:]
	}
	return all
}

func TestClampMSS(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		headers := 60
		if is4 {
			headers = 40
		}
		for _, flags := range []uint8{tunneltest.SYN, tunneltest.SYN | tunneltest.ACK, tunneltest.SYN | tunneltest.ECE | tunneltest.CWR} {
			for lead := range 6 { // at even and odd places
				for _, tt := range []struct{ mss, mtu, want int }{
					{1460, 1450, 1450 - headers},
					{1450 - headers, 1450, 1450 - headers},
					{536, 1450, 536},
					{65535, 1450, 1450 - headers},
					{65535, 65535, 65535 - headers},
					{1460, 1 << 20, 1460},
					{1460, headers + 1, 1},
					{1460, headers, 1460},
					{1460, 0, 1460},
					{1460, -1, 1460},
					{0, 1450, 0},
				} {
					p := syn(is4, lead, uint16(tt.mss))
					p.Flags = flags
					b := p.Bytes()
					changed := ClampMSS(mustParse(t, b), tt.mtu, false)
					if got := announced(b, is4); changed != (tt.mss != tt.want) || len(got) != 1 || got[0] != tt.want {
						t.Errorf("MSS %d and MTU %d: %v, %v, want %d", tt.mss, tt.mtu, got, changed, tt.want)
					}
					if err := tunneltest.Check(b); err != nil {
						t.Errorf("MSS %d and MTU %d at %d: %v", tt.mss, tt.mtu, lead, err)
					}
				}
			}
		}
	})
}

// A partial checksum comes out right when it is finished after the clamp.
func TestClampMSSPartial(t *testing.T) {
	bothFamilies(t, func(t *testing.T, is4 bool) {
		for lead := range 4 {
			b, offload := syn(is4, lead, 1460).Partial()
			v := mustParse(t, b)
			if !ClampMSS(v, 1450, true) || !v.Partial() {
				t.Error("not changed, or not partial any more")
			}
			if err := Finish(b, int(offload.ChecksumStart), int(offload.ChecksumOffset)); err != nil {
				t.Fatal(err)
			}
			if err := tunneltest.Check(b); err != nil {
				t.Error(err)
			}
		}
	})
}

// A finished checksum that looks partial, as one in 65,536 does, is taken for
// what the caller says, and is right either way.
func TestClampMSSPartialByChance(t *testing.T) {
	for _, partial := range []bool{false, true} {
		p := syn(true, 1, 1460)
		for p.Sequence = 0; !mustParse(t, p.Bytes()).Partial(); p.Sequence++ {
			if p.Sequence > 1<<17 {
				t.Fatal("no such packet found")
			}
		}
		b := p.Bytes()
		v := mustParse(t, b)
		if !ClampMSS(v, 1450, partial) {
			t.Error("not changed")
		}
		if partial {
			if err := Finish(b, v.Transport, 16); err != nil {
				t.Fatal(err)
			}
		}
		if err := tunneltest.Check(b); err != nil {
			t.Errorf("partial %v: %v", partial, err)
		}
	}
}

func TestClampMSSOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		options []byte
		want    []byte // nil: unchanged
	}{
		"none":            {nil, nil},
		"twice":           {[]byte{2, 4, 5, 180, 2, 4, 5, 180}, []byte{2, 4, 5, 130, 2, 4, 5, 130}},
		"after others":    {[]byte{4, 2, 3, 3, 7, 2, 4, 5, 180, 1, 1, 1}, []byte{4, 2, 3, 3, 7, 2, 4, 5, 130, 1, 1, 1}},
		"after the end":   {[]byte{0, 2, 4, 5, 180, 0, 0, 0}, nil},
		"wrong length":    {[]byte{2, 3, 5, 2, 4, 5, 180, 0}, []byte{2, 3, 5, 2, 4, 5, 130, 0}},
		"long one":        {[]byte{2, 8, 5, 180, 0, 0, 0, 0}, nil},
		"length 0":        {[]byte{3, 0, 2, 4, 5, 180, 0, 0}, nil},
		"length 1":        {[]byte{3, 1, 2, 4, 5, 180, 0, 0}, nil},
		"past the header": {[]byte{2, 4, 5, 180, 3, 5, 2, 4}, []byte{2, 4, 5, 130, 3, 5, 2, 4}},
		"cut off":         {[]byte{1, 1, 2, 4}, nil},
		"without length":  {[]byte{1, 1, 1, 2}, nil},
	} {
		p := syn(true, 0, 0)
		p.TCPOptions = tt.options
		p.Payload = []byte{2, 4, 5, 180} // never taken for an option
		want := p
		if tt.want != nil {
			want.TCPOptions = tt.want
		}
		b := p.Bytes()
		if changed := ClampMSS(mustParse(t, b), 1450, false); changed != (tt.want != nil) || !bytes.Equal(b[20:], want.Bytes()[20:]) && tt.want == nil {
			t.Errorf("%s: %v, %x", name, changed, b)
		}
		if !bytes.Equal(b[40:], want.Bytes()[40:]) {
			t.Errorf("%s: options and payload are %x, want %x", name, b[40:], want.Bytes()[40:])
		}
		if err := tunneltest.Check(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClampMSSNever(t *testing.T) {
	ack, datagram, fragment := syn(true, 0, 1460), syn(true, 0, 1460), syn(true, 0, 1460).Bytes()
	ack.Flags = tunneltest.ACK
	datagram.Protocol = UDP
	fragment[6] |= 0x20
	short := syn(true, 0, 1460).Bytes()
	short[32] = 0xf0 // a header longer than the packet
	for name, b := range map[string][]byte{"no SYN": ack.Bytes(), "UDP": datagram.Bytes(), "fragment": fragment, "short": short} {
		before := bytes.Clone(b)
		if ClampMSS(mustParse(t, b), 1450, false) || !bytes.Equal(b, before) {
			t.Errorf("%s: changed", name)
		}
	}
}

// Extension headers and IP options stand in front of the option, and are not
// counted: a sender takes its own off the MSS.
func TestClampMSSBehindExtensions(t *testing.T) {
	p := syn(false, 1, 1460)
	p.Extensions, p.FirstExtension = extensions(TCP, 0, 60)
	b := p.Bytes()
	if !ClampMSS(mustParse(t, b), 1450, false) {
		t.Error("not changed behind extension headers")
	}
	if err := tunneltest.Check(b); err != nil {
		t.Error(err)
	}
	p = syn(true, 1, 1460)
	p.Options = []byte{1, 1, 1, 1}
	b = p.Bytes()
	if !ClampMSS(mustParse(t, b), 1450, false) {
		t.Error("not changed behind IP options")
	}
	if err := tunneltest.Check(b); err != nil {
		t.Error(err)
	}
}

func TestClampMSSDoesNotAllocate(t *testing.T) {
	b := syn(true, 1, 1460).Bytes()
	mtu := 1450
	if n := testing.AllocsPerRun(100, func() {
		v, _ := Parse(b)
		mtu--
		ClampMSS(v, mtu, false)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzClampMSS: whatever the options, only MSS values change, downwards, and a
// checksum that was right is right.
func FuzzClampMSS(f *testing.F) {
	f.Add([]byte{2, 4, 5, 180, 1, 3, 3, 7}, uint16(1450), true, false)
	f.Add([]byte{1, 2, 4, 5, 180, 0, 0, 0}, uint16(1280), false, true)
	f.Add([]byte{8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 2}, uint16(576), true, true)
	f.Fuzz(func(t *testing.T, options []byte, mtu uint16, is4, partial bool) {
		p := syn(is4, 0, 0)
		p.TCPOptions = options[:min(len(options), 40)&^3]
		p.Payload = tunneltest.Random(rand.New(rand.NewPCG(1, 2)), int(mtu)%50)
		b := p.Bytes()
		if partial {
			b, _ = p.Partial()
		}
		before := bytes.Clone(b)
		v := mustParse(t, b)
		changed := ClampMSS(v, int(mtu), partial)
		if changed != !bytes.Equal(b, before) {
			t.Fatalf("says %v, but %x became %x", changed, before, b)
		}
		if partial {
			if err := Finish(b, v.Transport, 16); err != nil {
				t.Fatal(err)
			}
		}
		if err := tunneltest.Check(b); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if ClampMSS(v, int(mtu), false) {
			t.Fatal("changes it again")
		}
		// All that differs are the checksum and values of options 2, 4.
		at, end := v.Transport+20, v.Transport+20+len(p.TCPOptions)
		for i := range b {
			if b[i] == before[i] || i == v.Transport+16 || i == v.Transport+17 {
				continue
			}
			inValue := func(start int) bool {
				return start >= at && start+4 <= end && before[start] == 2 && before[start+1] == 4 &&
					binary.BigEndian.Uint16(b[start+2:]) < binary.BigEndian.Uint16(before[start+2:])
			}
			if !inValue(i-2) && !inValue(i-3) {
				t.Fatalf("byte %d changed: %x became %x", i, before, b)
			}
		}
	})
}
