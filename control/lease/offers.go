package lease

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/weft-net/weft/control"
)

// Offers are one JSON object, as in
//
//	{"version":1,"vxlan":{"remoteChecksum":true}}
//
// with one member per encapsulation; "routed":false takes back what a host
// offers by having a lease. Members that are not known are passed
// over at every depth, so a host can offer more, or another encapsulation,
// without harm to those who do not know it. Only what changes the meaning of a
// known member needs another version.
type offersData struct {
	Version int        `json:"version"`
	VXLAN   vxlanOffer `json:"vxlan,omitzero"`
	Routed  *bool      `json:"routed,omitempty"` // nil is true
}

// vxlanOffer is control.VXLANOffer as it is written.
type vxlanOffer struct {
	RemoteChecksum bool `json:"remoteChecksum,omitzero"`
}

const offersVersion = 1

// formatOffers writes offers in their one form: nil if there are none.
func formatOffers(offers control.Offers) ([]byte, error) {
	if offers == (control.Offers{}) {
		return nil, nil
	}
	data := offersData{Version: offersVersion, VXLAN: vxlanOffer{RemoteChecksum: offers.VXLAN.RemoteChecksum}}
	if offers.NoDirect {
		data.Routed = new(bool)
	}
	return json.Marshal(data)
}

// parseOffers reads what formatOffers, or that of a later weft, has written.
// Names count to the letter. With an error there are no offers at all.
func parseOffers(data []byte) (offers control.Offers, err error) {
	if len(data) == 0 {
		return offers, nil
	}
	if len(data) > maxOffers {
		return offers, fmt.Errorf("offers have %d bytes, at most %d are allowed", len(data), maxOffers)
	}
	members, err := decode[object](data, "a JSON object")
	if err != nil {
		return offers, fmt.Errorf("offers: %w", err)
	}
	version, found, err := member[int](members, "version", "a number")
	switch {
	case err != nil:
		return offers, fmt.Errorf("offers: %w", err)
	case !found:
		return offers, errors.New("offers: version is missing")
	case version != offersVersion:
		return offers, fmt.Errorf("offers: version is %d and only %d is known here: update weft on this host", version, offersVersion)
	}
	vxlan, _, err := member[object](members, "vxlan", "a JSON object")
	if err != nil {
		return offers, fmt.Errorf("offers: %w", err)
	}
	remoteChecksum, _, err := member[bool](vxlan, "remoteChecksum", "true or false")
	if err != nil {
		return offers, fmt.Errorf("offers: vxlan: %w", err)
	}
	routed, found, err := member[bool](members, "routed", "true or false")
	if err != nil {
		return offers, fmt.Errorf("offers: %w", err)
	}
	offers.VXLAN.RemoteChecksum = remoteChecksum
	offers.NoDirect = found && !routed
	return offers, nil
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
