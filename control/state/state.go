// Package state keeps the files a host's agent leaves behind: subnet.env, the
// contract with CNI plugins. Files are replaced atomically. It must stay small
// enough for a CNI plugin to import, and must never import anything of ours.
package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// SubnetEnv is what subnet.env says.
type SubnetEnv struct {
	Networks []netip.Prefix // pod networks, masked
	// Subnets are this host's subnets, masked. The file has each with its first
	// address in place of the network address: that of the pods' gateway.
	Subnets []netip.Prefix
	MTU     int  // inner MTU for pods
	IPMasq  bool // the agent masquerades, so CNI plugins must not
}

// The keys, spelled as flannel spells them.
const (
	keyNetwork   = "FLANNEL_NETWORK"
	keySubnet    = "FLANNEL_SUBNET"
	keyNetwork6  = "FLANNEL_IPV6_NETWORK"
	keySubnet6   = "FLANNEL_IPV6_SUBNET"
	keyMTU       = "FLANNEL_MTU"
	keyIPMasq    = "FLANNEL_IPMASQ"
	maxSubnetEnv = 64 << 10 // bytes
)

// ParseSubnetEnv reads subnet.env: KEY=VALUE lines, values quoted or not,
// comments and unknown keys ignored, comma lists where subnets or networks
// are several. The error of an incomplete file names everything that is missing.
func ParseSubnetEnv(data []byte) (SubnetEnv, error) {
	if len(data) > maxSubnetEnv {
		return SubnetEnv{}, fmt.Errorf("parse subnet.env: %d bytes, at most %d are allowed", len(data), maxSubnetEnv)
	}
	values, err := parseLines(data)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("parse subnet.env: %w", err)
	}
	if missing := missingKeys(values); len(missing) > 0 {
		return SubnetEnv{}, fmt.Errorf("parse subnet.env: missing %s", strings.Join(missing, ", "))
	}
	var env SubnetEnv
	for _, list := range []struct {
		key  string
		into *[]netip.Prefix
	}{{keyNetwork, &env.Networks}, {keyNetwork6, &env.Networks}, {keySubnet, &env.Subnets}, {keySubnet6, &env.Subnets}} {
		if err := parsePrefixes(list.key, values[list.key], list.into); err != nil {
			return SubnetEnv{}, fmt.Errorf("parse subnet.env: %w", err)
		}
	}
	if env.MTU, err = strconv.Atoi(values[keyMTU]); err != nil || env.MTU < 1 || env.MTU > 1<<16-1 {
		return SubnetEnv{}, fmt.Errorf("parse subnet.env: %s is %.32q; allowed: 1 to 65535", keyMTU, values[keyMTU])
	}
	if env.IPMasq, err = strconv.ParseBool(values[keyIPMasq]); err != nil {
		return SubnetEnv{}, fmt.Errorf("parse subnet.env: %s is %.32q; allowed: true, false", keyIPMasq, values[keyIPMasq])
	}
	return env, nil
}

func missingKeys(values map[string]string) (missing []string) {
	for _, any := range [][]string{{keyNetwork, keyNetwork6}, {keySubnet, keySubnet6}, {keyMTU}, {keyIPMasq}} {
		found := false
		for _, key := range any {
			found = found || values[key] != ""
		}
		if !found {
			missing = append(missing, strings.Join(any, " or "))
		}
	}
	return missing
}

func parsePrefixes(key, value string, into *[]netip.Prefix) error {
	if value == "" {
		return nil
	}
	for _, text := range strings.Split(value, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		want4 := key == keyNetwork || key == keySubnet
		if err != nil || prefix.Addr().Is4() != want4 || prefix.Addr().Is4In6() {
			return fmt.Errorf("%s is %.64q; allowed: address/length of that family, or a comma list", key, value)
		}
		*into = append(*into, prefix.Masked())
	}
	return nil
}

// parseLines reads the known keys. Of a key that is there twice, the last counts.
func parseLines(data []byte) (map[string]string, error) {
	known := map[string]bool{
		keyNetwork: true, keySubnet: true, keyNetwork6: true, keySubnet6: true, keyMTU: true, keyIPMasq: true,
	}
	values := make(map[string]string, len(known))
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	for number, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if key = strings.TrimSpace(key); !known[key] {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("line %d: %s without a value; want %s=value", number+1, key, key)
		}
		value, err := unquote(value)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", number+1, key, err)
		}
		values[key] = value
	}
	return values, nil
}

// unquote strips quotes, and a comment after the value.
func unquote(value string) (string, error) {
	value = strings.TrimSpace(value)
	if value == "" || value[0] != '"' && value[0] != '\'' {
		if i := strings.Index(value, "#"); i == 0 || i > 0 && (value[i-1] == ' ' || value[i-1] == '\t') {
			value = value[:i]
		}
		return strings.TrimSpace(value), nil
	}
	end := strings.IndexByte(value[1:], value[0])
	if end < 0 {
		return "", errors.New("quote is not closed")
	}
	if rest := strings.TrimSpace(value[end+2:]); rest != "" && rest[0] != '#' {
		return "", errors.New("text after the closing quote")
	}
	return strings.TrimSpace(value[1 : end+1]), nil
}

// Bytes returns the file in flannel's order and spelling: per family, IPv4
// first, network and subnet; then MTU and masquerading.
func (e SubnetEnv) Bytes() []byte {
	var out bytes.Buffer
	for _, family := range []struct {
		network, subnet string
		is4             bool
	}{{keyNetwork, keySubnet, true}, {keyNetwork6, keySubnet6, false}} {
		writePrefixes(&out, family.network, e.Networks, family.is4, netip.Prefix.Masked)
		writePrefixes(&out, family.subnet, e.Subnets, family.is4, gateway)
	}
	fmt.Fprintf(&out, "%s=%d\n%s=%t\n", keyMTU, e.MTU, keyIPMasq, e.IPMasq)
	return out.Bytes()
}

func writePrefixes(out *bytes.Buffer, key string, prefixes []netip.Prefix, is4 bool, form func(netip.Prefix) netip.Prefix) {
	var texts []string
	for _, prefix := range prefixes {
		if prefix.Addr().Is4() == is4 {
			texts = append(texts, form(prefix).String())
		}
	}
	if len(texts) > 0 {
		fmt.Fprintf(out, "%s=%s\n", key, strings.Join(texts, ","))
	}
}

// gateway is the first address of a subnet, with the subnet's length.
func gateway(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Masked().Addr().Next(), subnet.Bits())
}

// ReadSubnetEnv reads the file. A missing file is an error that wraps fs.ErrNotExist.
func ReadSubnetEnv(path string) (SubnetEnv, error) {
	file, err := os.Open(path)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet.env: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSubnetEnv+1))
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet.env: %w", err)
	}
	env, err := ParseSubnetEnv(data)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read %s: %w", path, err)
	}
	return env, nil
}

// WriteSubnetEnv replaces the file atomically. Its directory is made where it
// is missing.
func WriteSubnetEnv(path string, env SubnetEnv) error {
	if err := WriteFile(path, env.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write subnet.env: %w", err)
	}
	return nil
}
