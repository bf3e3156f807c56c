package guard

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/tunnel"
)

// specChain is the chain whose one comment describes the table.
const specChain = "spec"

// The words of a spec that are not prefixes.
const (
	wordMasquerade  = "masquerade"
	wordRandomFully = "random-fully"
	wordForward     = "forward"
)

// formatSpec writes a Firewall as the comment in its table. The longest one
// fits the 128 bytes that nft allows.
func formatSpec(fw tunnel.Firewall) string {
	words := []string{fw.Network.String(), fw.Subnet.String()}
	for _, flag := range []struct {
		set  bool
		word string
	}{{fw.Masquerade, wordMasquerade}, {fw.RandomFully, wordRandomFully}, {fw.Forward, wordForward}} {
		if flag.set {
			words = append(words, flag.word)
		}
	}
	return strings.Join(words, " ")
}

// parseSpec reads what formatSpec writes, and nothing else.
func parseSpec(text string) (fw tunnel.Firewall, err error) {
	words := strings.Split(text, " ")
	if len(words) < 2 {
		return fw, fmt.Errorf("parse spec %q: want a network and a subnet", text)
	}
	if fw.Network, err = netip.ParsePrefix(words[0]); err != nil {
		return tunnel.Firewall{}, fmt.Errorf("parse spec %q: %w", text, err)
	}
	if fw.Subnet, err = netip.ParsePrefix(words[1]); err != nil {
		return tunnel.Firewall{}, fmt.Errorf("parse spec %q: %w", text, err)
	}
	for _, word := range words[2:] {
		switch word {
		case wordMasquerade:
			fw.Masquerade = true
		case wordRandomFully:
			fw.RandomFully = true
		case wordForward:
			fw.Forward = true
		}
	}
	if formatSpec(fw) != text {
		return tunnel.Firewall{}, fmt.Errorf("parse spec %q: not in the form %q", text, formatSpec(fw))
	}
	return fw, nil
}
