package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// vxlanData is flannel's backend data of type vxlan: field order included,
// and nothing may be added (a flanneld reads its own MAC back by position).
type vxlanData struct {
	VNI     uint32
	VtepMAC tunnel.MAC
}

const maxVNI = 1<<24 - 1

// parseVXLAN reads vxlan backend data. Load balancers join with hand-written
// data that has only VtepMAC: then VNI is 0, which stands for "not said".
func parseVXLAN(data []byte) (vxlanData, error) {
	var text struct {
		VNI     *uint32
		VtepMAC *string
	}
	if err := unmarshalData(data, &text, `{"VNI":1,"VtepMAC":"02:00:5e:00:53:01"}`); err != nil {
		return vxlanData{}, err
	}
	if text.VtepMAC == nil || *text.VtepMAC == "" {
		return vxlanData{}, errors.New("backend data: VtepMAC is missing")
	}
	var parsed vxlanData
	if len(*text.VtepMAC) > maxQuoted {
		return vxlanData{}, fmt.Errorf("backend data: VtepMAC %s: not a MAC", quote(*text.VtepMAC))
	}
	var err error
	if parsed.VtepMAC, err = tunnel.ParseMAC(*text.VtepMAC); err != nil {
		return vxlanData{}, fmt.Errorf("backend data: VtepMAC: %w", err)
	}
	if text.VNI != nil {
		if parsed.VNI = *text.VNI; parsed.VNI > maxVNI {
			return vxlanData{}, fmt.Errorf("backend data: VNI is %d, at most %d is allowed", parsed.VNI, maxVNI)
		}
	}
	return parsed, nil
}

// wireGuardData is flannel's backend data of type wireguard, field order
// included.
type wireGuardData struct {
	PublicKey tunnel.PublicKey
	Port      uint16
}

// parseWireGuard reads wireguard backend data. Old flannels published no Port:
// it is 0 then, which stands for the one that all hosts use.
func parseWireGuard(data []byte) (wireGuardData, error) {
	var text struct {
		PublicKey *string
		Port      *uint16
	}
	if err := unmarshalData(data, &text, `{"PublicKey":"(44 characters)","Port":51820}`); err != nil {
		return wireGuardData{}, err
	}
	if text.PublicKey == nil || *text.PublicKey == "" {
		return wireGuardData{}, errors.New("backend data: PublicKey is missing")
	}
	var parsed wireGuardData
	var err error
	if parsed.PublicKey, err = tunnel.ParsePublicKey(*text.PublicKey); err != nil {
		return wireGuardData{}, fmt.Errorf("backend data: PublicKey %s: %w", quote(*text.PublicKey), err)
	}
	if text.Port != nil {
		parsed.Port = *text.Port
	}
	return parsed, nil
}

// unmarshalData decodes one family's backend data; want is how it should look.
func unmarshalData(data []byte, into any, want string) error {
	switch {
	case len(data) == 0 || string(data) == "null":
		return errors.New("backend data is missing")
	case len(data) > maxData:
		return fmt.Errorf("backend data has %d bytes, at most %d are allowed", len(data), maxData)
	case json.Unmarshal(data, into) != nil:
		return fmt.Errorf("backend data %s: want %s", quote(string(data)), want)
	}
	return nil
}

// formatData writes backend data of a leg; nil where the backend has none.
func formatData(backend string, leg control.Leg) ([]byte, error) {
	switch backend {
	case VXLAN:
		if leg.MAC == (tunnel.MAC{}) {
			return nil, errors.New("leg has no MAC")
		}
		return json.Marshal(vxlanData{VNI: leg.VNI, VtepMAC: leg.MAC})
	case WireGuard:
		if leg.Key == (tunnel.PublicKey{}) {
			return nil, errors.New("leg has no WireGuard key")
		}
		return json.Marshal(wireGuardData{PublicKey: leg.Key, Port: leg.Port})
	}
	return nil, nil
}

// recallMACs reads the VTEP MACs out of backend data, IPv4 then IPv6; zero
// where there is none that could be used again.
func recallMACs(data [families][]byte) []tunnel.MAC {
	macs := make([]tunnel.MAC, families)
	for family := range data {
		if parsed, err := parseVXLAN(data[family]); err == nil {
			macs[family] = parsed.VtepMAC
		}
	}
	return macs
}

// recallKeys reads the WireGuard keys out of offers, or else out of backend
// data, where a host has one for both families; zero where there is none.
func recallKeys(data [families][]byte, offers []byte) (keys tunnel.WireGuardKeys) {
	if parsed, err := parseOffers(offers); err == nil && parsed.WireGuard != (control.WireGuardOffer{}) {
		return parsed.WireGuard.Keys
	}
	for family := range data {
		if parsed, err := parseWireGuard(data[family]); err == nil {
			return tunnel.WireGuardKeys{parsed.PublicKey}
		}
	}
	return keys
}
