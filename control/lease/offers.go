package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// Offers are one JSON object, as in
//
//	{"version":1,"vxlan":{"remoteChecksum":true},
//	 "wireguard":{"key":"(44 characters)","other":"(44 characters)","port":51820,"portV6":51821}}
//
// with one member per encapsulation. What a host offers by having a lease is
// taken back by "off":true of vxlan, and for direct ways by "routed":false. Of
// WireGuard, key is the one that handshakes are begun with, and other, if it is
// there, the one that takes its place soon or has done so lately: the host may
// use either. A port that is not there says that the family is not served; one
// of the two is.
//
// Members that are not known are passed over at every depth, so a host can
// offer more, or another encapsulation, without harm to those who do not know
// it. Only what changes the meaning of a known member needs another version.
type offersData struct {
	Version   int            `json:"version"`
	VXLAN     vxlanOffer     `json:"vxlan,omitzero"`
	WireGuard wireGuardOffer `json:"wireguard,omitzero"`
	Routed    *bool          `json:"routed,omitempty"` // nil is true
}

// vxlanOffer is control.VXLANOffer as it is written.
type vxlanOffer struct {
	RemoteChecksum bool `json:"remoteChecksum,omitzero"`
	Off            bool `json:"off,omitzero"`
}

// wireGuardOffer is control.WireGuardOffer as it is written.
type wireGuardOffer struct {
	Key    tunnel.PublicKey `json:"key"`
	Other  tunnel.PublicKey `json:"other,omitzero"`
	Port   uint16           `json:"port,omitzero"`
	PortV6 uint16           `json:"portV6,omitzero"`
}

const offersVersion = 1

// formatOffers writes offers in their one form: nil if there are none.
func formatOffers(offers control.Offers) ([]byte, error) {
	if offers == (control.Offers{}) {
		return nil, nil
	}
	if err := checkWireGuard(offers.WireGuard); err != nil {
		return nil, fmt.Errorf("offers: wireguard: %w", err)
	}
	data := offersData{
		Version: offersVersion,
		VXLAN:   vxlanOffer(offers.VXLAN),
		WireGuard: wireGuardOffer{
			Key: offers.WireGuard.Keys[0], Other: offers.WireGuard.Keys[1],
			Port: offers.WireGuard.Ports[v4], PortV6: offers.WireGuard.Ports[v6],
		},
	}
	if offers.NoDirect {
		data.Routed = new(bool)
	}
	return json.Marshal(data)
}

// parseOffers reads what formatOffers, or that of a later weft, has written.
// Names count to the letter. With an error there are no offers at all.
func parseOffers(data []byte) (control.Offers, error) {
	if len(data) == 0 {
		return control.Offers{}, nil
	}
	if len(data) > maxOffers {
		return control.Offers{}, fmt.Errorf("offers have %d bytes, at most %d are allowed", len(data), maxOffers)
	}
	members, err := decode[object](data, "a JSON object")
	if err != nil {
		return control.Offers{}, fmt.Errorf("offers: %w", err)
	}
	version, found, err := member[int](members, "version", "a number")
	switch {
	case err != nil:
		return control.Offers{}, fmt.Errorf("offers: %w", err)
	case !found:
		return control.Offers{}, errors.New("offers: version is missing")
	case version != offersVersion:
		return control.Offers{}, fmt.Errorf("offers: version is %d and only %d is known here: update weft on this host", version, offersVersion)
	}
	var offers control.Offers
	if offers.VXLAN, err = parseVXLANOffer(members); err != nil {
		return control.Offers{}, fmt.Errorf("offers: %w", err)
	}
	if offers.WireGuard, err = parseWireGuardOffer(members); err != nil {
		return control.Offers{}, fmt.Errorf("offers: %w", err)
	}
	routed, found, err := member[bool](members, "routed", "true or false")
	if err != nil {
		return control.Offers{}, fmt.Errorf("offers: %w", err)
	}
	offers.NoDirect = found && !routed
	return offers, nil
}

func parseVXLANOffer(members object) (offer control.VXLANOffer, err error) {
	vxlan, _, err := member[object](members, "vxlan", "a JSON object")
	if err != nil {
		return control.VXLANOffer{}, err
	}
	if offer.RemoteChecksum, _, err = member[bool](vxlan, "remoteChecksum", "true or false"); err != nil {
		return control.VXLANOffer{}, fmt.Errorf("vxlan: %w", err)
	}
	if offer.Off, _, err = member[bool](vxlan, "off", "true or false"); err != nil {
		return control.VXLANOffer{}, fmt.Errorf("vxlan: %w", err)
	}
	return offer, nil
}

func parseWireGuardOffer(members object) (offer control.WireGuardOffer, err error) {
	wireGuard, found, err := member[object](members, "wireguard", "a JSON object")
	if err != nil || !found {
		return control.WireGuardOffer{}, err
	}
	for i, name := range [2]string{"key", "other"} {
		text, found, err := member[string](wireGuard, name, "a public key")
		if err == nil && found {
			offer.Keys[i], err = parseKey(name, text)
		}
		if err != nil {
			return control.WireGuardOffer{}, fmt.Errorf("wireguard: %w", err)
		}
	}
	for family, name := range [families]string{"port", "portV6"} {
		port, found, err := member[uint16](wireGuard, name, "a port, 1 to 65535")
		if err == nil && found && port == 0 {
			err = fmt.Errorf("%s: 0: want a port, 1 to 65535", name)
		}
		if err != nil {
			return control.WireGuardOffer{}, fmt.Errorf("wireguard: %w", err)
		}
		offer.Ports[family] = port
	}
	// Without a key there would be nothing, and that is no offer to make.
	if offer.Keys[0] == (tunnel.PublicKey{}) {
		return control.WireGuardOffer{}, errors.New("wireguard: key is missing")
	}
	if err := checkWireGuard(offer); err != nil {
		return control.WireGuardOffer{}, fmt.Errorf("wireguard: %w", err)
	}
	return offer, nil
}

func parseKey(name, text string) (tunnel.PublicKey, error) {
	key, err := tunnel.ParsePublicKey(text)
	if err != nil {
		return tunnel.PublicKey{}, fmt.Errorf("%s %s: %w", name, quote(text), err)
	}
	return key, nil
}

// checkWireGuard refuses an offer that peers could make nothing of.
func checkWireGuard(offer control.WireGuardOffer) error {
	none := tunnel.PublicKey{}
	switch {
	case offer == control.WireGuardOffer{}:
		return nil
	case offer.Keys[0] == none:
		return errors.New("key is missing")
	case offer.Keys[0] == offer.Keys[1]:
		return errors.New("other is the same as key")
	case offer.Ports == [families]uint16{}:
		return errors.New("port and portV6 are both missing")
	}
	return nil
}

// object is a JSON object: decoded into a struct, names would match in any case.
type object map[string]json.RawMessage

// member decodes a member of an object, if it is there.
func member[T any](members object, name, want string) (value T, found bool, err error) {
	data, found := members[name]
	if !found {
		return value, false, nil
	}
	if value, err = decode[T](data, want); err != nil {
		return value, true, fmt.Errorf("%s: %w", name, err)
	}
	return value, true, nil
}

// decode decodes any value but null, which would pass for every type.
func decode[T any](data []byte, want string) (value T, err error) {
	decoded := &value
	if err := json.Unmarshal(data, &decoded); err != nil || decoded == nil {
		return value, fmt.Errorf("%s: want %s", quote(string(data)), want)
	}
	return value, nil
}
