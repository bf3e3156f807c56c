package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// Where leases lie in etcd, relative to the prefix of the network.
//
// SubnetsDir is flannel's. A flanneld watches every key that begins with it
// and drops all its peers when it meets one it cannot parse, and its form has
// no way to write a lease without IPv4 ("0.0.0.0-0&..." would parse, as a
// default route). IPv6-only leases therefore lie in Subnets6Dir, which no
// flanneld looks at; nothing is lost by that, because a flanneld cannot be
// IPv6-only on etcd.
const (
	ConfigKey   = "config"
	SubnetsDir  = "subnets/"
	Subnets6Dir = "x-weft-subnets/"
)

// Dir is the directory that holds the leases of a network with these pod
// networks or subnets.
func Dir(prefixes []netip.Prefix) string {
	for _, prefix := range prefixes {
		if prefix.Addr().Is4() {
			return SubnetsDir
		}
	}
	return Subnets6Dir
}

var keyForm = regexp.MustCompile(`^(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?$`)
var key6Form = regexp.MustCompile(`^([a-f\d:]+)-(\d+)$`)

// ParseKey reads the key of a lease, relative to the network's prefix, as in
// "subnets/10.244.1.0-24&fd00:10:244:1::-64", and returns its subnets, IPv4
// first. Only what FormatKey writes is accepted: one network has one key.
func ParseKey(key string) ([]netip.Prefix, error) {
	if len(key) > 128 {
		return nil, fmt.Errorf("parse lease key %s: too long", quote(key))
	}
	var parts []string
	if name, ok := strings.CutPrefix(key, SubnetsDir); ok {
		parts = keyForm.FindStringSubmatch(name)
	} else if name, ok := strings.CutPrefix(key, Subnets6Dir); ok {
		parts = key6Form.FindStringSubmatch(name)
	}
	var subnets []netip.Prefix
	for i := 1; i+1 < len(parts); i += 2 {
		if parts[i] == "" {
			continue
		}
		subnet, err := netip.ParsePrefix(parts[i] + "/" + parts[i+1])
		if err != nil {
			return nil, fmt.Errorf("parse lease key %s: %w", quote(key), err)
		}
		subnets = append(subnets, subnet)
	}
	if canonical, err := FormatKey(subnets); err != nil || canonical != key {
		return nil, fmt.Errorf("parse lease key %s: want %s10.244.1.0-24 or %s10.244.1.0-24&fd00:10:244:1::-64", quote(key), SubnetsDir, SubnetsDir)
	}
	return subnets, nil
}

// FormatKey writes the key of a lease, relative to the network's prefix. At
// most one subnet per family, IPv4 first.
func FormatKey(subnets []netip.Prefix) (string, error) {
	names := make([]string, len(subnets))
	for i, subnet := range subnets {
		// flannel reads 5 and 7 bits of length, so a host prefix would break it.
		if !subnet.IsValid() || subnet != subnet.Masked() || subnet.Addr().Is4In6() ||
			subnet.Bits() == 0 || subnet.IsSingleIP() {
			return "", fmt.Errorf("format lease key: subnet %s cannot be leased", subnet)
		}
		names[i] = subnet.Addr().String() + "-" + strconv.Itoa(subnet.Bits())
	}
	ordered := len(subnets) == 1 || len(subnets) == 2 && subnets[0].Addr().Is4() && subnets[1].Addr().Is6()
	if !ordered {
		return "", fmt.Errorf("format lease key: %v: want one subnet per family, IPv4 first", subnets)
	}
	return Dir(subnets) + strings.Join(names, "&"), nil
}

// HostOfKey is the name a lease goes by: its key without the directory.
func HostOfKey(key string) string { return key[strings.LastIndexByte(key, '/')+1:] }

// etcdValue is flannel's value of a lease key, and the offers. Order and
// omissions count. A flanneld ignores a field that it does not know.
type etcdValue struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
	WeftOffers    json.RawMessage `json:",omitempty"`
}

func (v etcdValue) data() [families][]byte { return [families][]byte{v.BackendData, v.BackendV6Data} }

// Value is the value of a lease key, read but not yet believed.
type Value struct {
	raw etcdValue
}

const maxValue = 64 << 10

// ParseValue reads the value of a lease key. Unknown fields are ignored. An
// error means that it is no lease at all.
func ParseValue(value []byte) (Value, error) {
	if len(value) > maxValue {
		return Value{}, fmt.Errorf("parse lease value: %d bytes, at most %d are allowed", len(value), maxValue)
	}
	var parsed Value
	if err := json.Unmarshal(value, &parsed.raw); err != nil {
		return Value{}, fmt.Errorf("parse lease value %s: %w", quote(string(value)), err)
	}
	if parsed.raw.PublicIP == "" && parsed.raw.PublicIPv6 == nil {
		return Value{}, fmt.Errorf("parse lease value %s: PublicIP is missing", quote(string(value)))
	}
	return parsed, nil
}

// publicIPs returns the public addresses as written, by family.
func (v Value) publicIPs() (texts [families]string) {
	texts[v4] = v.raw.PublicIP
	if v.raw.PublicIPv6 != nil {
		texts[v6] = *v.raw.PublicIPv6
	}
	return texts
}

// PublicIPs returns the public addresses that can be used, IPv4 first. They
// tell whose lease it is, also where the rest of the value is unusable.
func (v Value) PublicIPs() []netip.Addr {
	var addrs []netip.Addr
	for family, text := range v.publicIPs() {
		if addr, err := parsePublicIP(text, family); err == nil {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// Lease returns the lease of this value under a key: host names it, subnets
// are ParseKey's. A leg that cannot be used is left out with a problem.
func (v Value) Lease(host string, subnets []netip.Prefix) control.Lease {
	raw := published{host: host, backend: v.raw.BackendType, offers: v.raw.WeftOffers}
	data, texts := v.raw.data(), v.publicIPs()
	for family := range raw.legs {
		raw.legs[family].publicIP, raw.legs[family].data = texts[family], data[family]
	}
	for _, subnet := range subnets {
		raw.legs[familyOf(subnet.Addr())].subnet = subnet
	}
	return raw.lease(nil)
}

// MACs returns the VTEP MACs in the value, IPv4 then IPv6; zero where there is
// none that could be used again.
func (v Value) MACs() []tunnel.MAC { return recallMACs(v.raw.data()) }

// Keys returns the WireGuard keys in the value; zero where there is none.
func (v Value) Keys() tunnel.WireGuardKeys { return recallKeys(v.raw.data(), v.raw.WeftOffers) }

// FormatValue writes the value that publishes a claim, exactly as flannel
// writes it for the claim's backend, with the claim's offers at the end if it
// has any.
func FormatValue(claim control.Claim) ([]byte, error) {
	legs, err := claimLegs(claim)
	if err != nil {
		return nil, fmt.Errorf("format lease value: %w", err)
	}
	value := etcdValue{PublicIP: noIPv4, BackendType: claim.Backend}
	if leg := legs[v4]; leg != nil {
		value.PublicIP = leg.PublicIP.String()
	}
	if leg := legs[v6]; leg != nil {
		address := leg.PublicIP.String()
		value.PublicIPv6 = &address
	}
	for family, data := range [families]*json.RawMessage{&value.BackendData, &value.BackendV6Data} {
		if legs[family] == nil {
			continue
		}
		if *data, err = formatData(claim.Backend, *legs[family]); err != nil {
			return nil, fmt.Errorf("format lease value: %s: %w", familyNames[family], err)
		}
	}
	if value.WeftOffers, err = formatOffers(claim.Offers); err != nil {
		return nil, fmt.Errorf("format lease value: %w", err)
	}
	return json.Marshal(value)
}
