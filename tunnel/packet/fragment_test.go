package packet

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

// reassemble puts fragments together again.
func reassemble(t *testing.T, fragments [][]byte) []byte {
	t.Helper()
	var payload []byte
	for i, f := range fragments {
		if err := tunneltest.Check(f); err != nil {
			t.Fatalf("fragment %d: %v", i, err)
		}
		position := binary.BigEndian.Uint16(f[6:])
		if int(position&0x1fff)*8 != len(payload) || (position&moreFragments != 0) != (i+1 < len(fragments)) {
			t.Fatalf("fragment %d at %d has position %#x", i, len(payload), position)
		}
		payload = append(payload, f[int(f[0]&15)*4:]...)
	}
	return payload
}

func TestFragment(t *testing.T) {
	p := udp(true, make([]byte, 1000))
	for i := range p.Payload {
		p.Payload[i] = byte(i)
	}
	p.DontFragment = false
	// A record route option is for the first fragment only, the security option for all.
	p.Options = []byte{130, 3, 9, 7, 3, 4, 1, 0}
	whole := p.Bytes()
	for _, mtu := range []int{68, 100, 576, 1020, 1027} {
		fragments := fragmentAll(t, mustParse(t, whole), mtu)
		if got := reassemble(t, fragments); !bytes.Equal(got, whole[28:]) {
			t.Fatalf("MTU %d: reassembled to %x", mtu, got)
		}
		for i, f := range fragments {
			want := []byte{130, 3, 9, 1, 1, 1, 1, 0}
			if i == 0 {
				want = p.Options
			}
			if len(f) > mtu || !bytes.Equal(f[20:28], want) {
				t.Errorf("MTU %d: fragment %d of %d bytes has options %x", mtu, i, len(f), f[20:28])
			}
		}
	}
}

// A fragment can be cut further: the pieces join the others of their packet.
func TestFragmentFragment(t *testing.T) {
	p := udp(true, make([]byte, 1000))
	p.DontFragment = false
	whole := p.Bytes()
	var fragments [][]byte
	for _, f := range fragmentAll(t, mustParse(t, whole), 576) {
		fragments = append(fragments, fragmentAll(t, mustParse(t, f), 100)...)
	}
	if got := reassemble(t, fragments); !bytes.Equal(got, whole[20:]) {
		t.Errorf("reassembled to %x", got)
	}
}

func TestFragmentErrors(t *testing.T) {
	may := udp(true, make([]byte, 100))
	may.DontFragment = false
	for name, test := range map[string]struct {
		data []byte
		mtu  int
	}{
		"may not":   {udp(true, make([]byte, 100)).Bytes(), 68},
		"IPv6":      {udp(false, make([]byte, 100)).Bytes(), 68},
		"small MTU": {may.Bytes(), 27},
	} {
		if _, err := Fragment(mustParse(t, test.data), test.mtu); err != ErrFragment {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzFragment holds that fragments of anything are sound, fit the MTU and
// carry the payload.
func FuzzFragment(f *testing.F) {
	p := udp(true, make([]byte, 200))
	p.DontFragment = false
	p.Options = []byte{7, 4, 4, 0}
	f.Add(p.Bytes(), uint16(68))
	f.Fuzz(func(t *testing.T, b []byte, mtu uint16) {
		v, err := Parse(b)
		if err != nil {
			return
		}
		if _, err := Fragment(v, int(mtu)); err != nil || len(b) > 10000 {
			return
		}
		total := 0
		for _, f := range fragmentAll(t, v, int(mtu)) {
			w := mustParse(t, f)
			if len(f) > int(mtu) || !w.HeaderValid() {
				t.Fatalf("fragment of %d bytes: %x", len(f), f)
			}
			total += len(f) - w.headerLen()
		}
		if total != len(v.Data)-v.headerLen() {
			t.Fatalf("%d bytes of payload became %d", len(v.Data)-v.headerLen(), total)
		}
	})
}
