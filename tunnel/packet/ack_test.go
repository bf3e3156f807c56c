package packet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/tunnel/tunneltest"
)

// timestamps is the option as senders write it.
func timestamps(value, echo uint32) []byte {
	b := binary.BigEndian.AppendUint32([]byte{1, 1, 8, 10}, value)
	return binary.BigEndian.AppendUint32(b, echo)
}

// ack is a plain acknowledgement.
func ack(is4 bool, acknowledgment uint32) tunneltest.Packet {
	p := tcp(is4, nil)
	p.Flags, p.Acknowledgment, p.TCPOptions = tunneltest.ACK, acknowledgment, timestamps(10, 20)
	return p
}

func TestSupersedes(t *testing.T) {
	sack := []byte{1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	tests := map[string]struct {
		old, next func(p *tunneltest.Packet) // changes to acknowledgements of 1000 and 2000
		want      bool
	}{
		"more acknowledged":    {want: true},
		"no options":           {func(p *tunneltest.Packet) { p.TCPOptions = nil }, func(p *tunneltest.Packet) { p.TCPOptions = nil }, true},
		"later timestamps":     {next: func(p *tunneltest.Packet) { p.TCPOptions = timestamps(11, 21) }, want: true},
		"timestamps wrap":      {func(p *tunneltest.Packet) { p.TCPOptions = timestamps(1<<32-1, 1<<32-1) }, nil, true},
		"acknowledgment wraps": {func(p *tunneltest.Packet) { p.Acknowledgment = 1<<32 - 1 }, nil, true},
		"other identification": {next: func(p *tunneltest.Packet) { p.ID += 7 }, want: true},

		"the same again":       {next: func(p *tunneltest.Packet) { p.Acknowledgment = 1000 }}, // says that something is missing
		"less acknowledged":    {next: func(p *tunneltest.Packet) { p.Acknowledgment = 999 }},
		"earlier timestamp":    {next: func(p *tunneltest.Packet) { p.TCPOptions = timestamps(9, 20) }},
		"earlier echo":         {next: func(p *tunneltest.Packet) { p.TCPOptions = timestamps(10, 19) }},
		"SACK before":          {old: func(p *tunneltest.Packet) { p.TCPOptions = sack }},
		"SACK in both":         {func(p *tunneltest.Packet) { p.TCPOptions = sack }, func(p *tunneltest.Packet) { p.TCPOptions = sack }, false},
		"options of one":       {next: func(p *tunneltest.Packet) { p.TCPOptions = nil }},
		"data before":          {old: func(p *tunneltest.Packet) { p.Payload = []byte{1} }},
		"data":                 {next: func(p *tunneltest.Packet) { p.Payload = []byte{1} }},
		"data in both":         {func(p *tunneltest.Packet) { p.Payload = []byte{1} }, func(p *tunneltest.Packet) { p.Payload = []byte{1} }, false},
		"congestion before":    {old: func(p *tunneltest.Packet) { p.Flags |= tunneltest.ECE }},
		"congestion in both":   {func(p *tunneltest.Packet) { p.Flags |= tunneltest.ECE }, func(p *tunneltest.Packet) { p.Flags |= tunneltest.ECE }, false},
		"end":                  {next: func(p *tunneltest.Packet) { p.Flags |= tunneltest.FIN }},
		"reset":                {next: func(p *tunneltest.Packet) { p.Flags |= tunneltest.RST }},
		"other sequence":       {next: func(p *tunneltest.Packet) { p.Sequence++ }},
		"other port":           {next: func(p *tunneltest.Packet) { p.Source = netip.AddrPortFrom(p.Source.Addr(), 1) }},
		"other address":        {next: func(p *tunneltest.Packet) { p.Source, p.Destination = p.Destination, p.Source }},
		"other ECN":            {next: func(p *tunneltest.Packet) { p.TOS ^= CE }},
		"other fragmentation":  {next: func(p *tunneltest.Packet) { p.DontFragment = !p.DontFragment }},
		"other protocol":       {next: func(p *tunneltest.Packet) { p.Protocol = tunneltest.UDP }},
		"other protocol, both": {func(p *tunneltest.Packet) { p.Protocol = tunneltest.UDP }, func(p *tunneltest.Packet) { p.Protocol = tunneltest.UDP }, false},
		"extension headers":    {addExtension, addExtension, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, is4 bool) {
				old, next := ack(is4, 1000), ack(is4, 2000)
				for p, change := range map[*tunneltest.Packet]func(*tunneltest.Packet){&old: tt.old, &next: tt.next} {
					if change != nil {
						change(p)
					}
				}
				if !is4 && name == "other fragmentation" {
					return // IPv6 has none
				}
				a, b := mustParse(t, old.Bytes()), mustParse(t, next.Bytes())
				if got := b.Supersedes(a); got != tt.want {
					t.Errorf("it is %v that the second supersedes the first, want %v", got, tt.want)
				}
				if a.Supersedes(b) && name != "less acknowledged" {
					t.Error("the first supersedes the second")
				}
			})
		})
	}
}

// addExtension puts something between the IP and the TCP header.
func addExtension(p *tunneltest.Packet) {
	if p.Source.Addr().Is4() {
		p.Options = []byte{1, 1, 1, 0}
		return
	}
	p.FirstExtension, p.Extensions = destination, []byte{TCP, 0, 1, 4, 0, 0, 0, 0}
}

// FuzzSupersedes: no packets, however broken, supersede each other both ways,
// and none does that has anything but headers.
func FuzzSupersedes(f *testing.F) {
	for _, is4 := range []bool{true, false} {
		f.Add(ack(is4, 1000).Bytes(), ack(is4, 2000).Bytes())
		f.Add(ack(is4, 1000).Bytes(), tcp(is4, []byte("data")).Bytes())
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		a, err := Parse(first)
		if err != nil {
			return
		}
		b, err := Parse(second)
		if err != nil || !b.Supersedes(a) {
			return
		}
		for _, v := range []View{a, b} {
			if headers, ok := v.PayloadOffset(); !ok || headers != len(v.Data) || v.Protocol != TCP {
				t.Errorf("%x is no acknowledgement alone", v.Data)
			}
		}
		if a.Supersedes(b) || len(a.Data) != len(b.Data) || a.Flow() != b.Flow() {
			t.Errorf("%x supersedes %x", b.Data, a.Data)
		}
	})
}
