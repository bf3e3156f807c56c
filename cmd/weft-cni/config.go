package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-net/weft/control/state"
)

const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	defaultDataDir    = "/var/lib/cni/flannel"
	defaultDelegate   = "bridge"
	defaultIPAM       = "host-local"
)

// object is a JSON object whose values are kept as they came.
type object = map[string]json.RawMessage

// config is what the runtime gives the plugin on stdin.
type config struct {
	name, version       string
	subnetFile, dataDir string
	delegate, ipam      object
	runtimeConfig       object
	prevResult          json.RawMessage
	// valid is nil where the runtime did not say which attachments are.
	valid *[]types.GCAttachment
}

// The keys of GC: that of the specification, and the one it had by mistake.
const (
	keyValid    = "cni.dev/valid-attachments"
	keyValidOld = "cni.dev/attachments"
)

// parseConfig reads the configuration. An error names the key.
func parseConfig(stdin []byte) (config, error) {
	var keys object
	if err := json.Unmarshal(stdin, &keys); err != nil {
		return config{}, types.NewError(types.ErrDecodingFailure, "configuration is not a JSON object: "+err.Error(), "")
	}
	c := config{prevResult: keys["prevResult"]}
	for _, field := range []struct {
		key, want string
		into      any
	}{
		{"name", "a string", &c.name},
		{"cniVersion", "a string", &c.version},
		{"subnetFile", "a string", &c.subnetFile},
		{"dataDir", "a string", &c.dataDir},
		{"delegate", "an object", &c.delegate},
		{"ipam", "an object", &c.ipam},
		{"runtimeConfig", "an object", &c.runtimeConfig},
		{keyValidOld, "a list of containerID and ifname", &c.valid},
		{keyValid, "a list of containerID and ifname", &c.valid},
	} {
		value, ok := keys[field.key]
		if !ok {
			continue
		}
		if err := json.Unmarshal(value, field.into); err != nil {
			return config{}, badConfig(field.key, "want %s, got %.64s", field.want, value)
		}
	}
	return c.withDefaults()
}

func (c config) withDefaults() (config, error) {
	for _, path := range []struct {
		key, standard string
		value         *string
	}{{"subnetFile", defaultSubnetFile, &c.subnetFile}, {"dataDir", defaultDataDir, &c.dataDir}} {
		if *path.value == "" {
			*path.value = path.standard
		}
		if !filepath.IsAbs(*path.value) {
			return config{}, badConfig(path.key, "want an absolute path, got %.64q", *path.value)
		}
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := c.delegate[key]; ok {
			return config{}, badConfig("delegate."+key, "must not be set: it is made from the network's own %q", key)
		}
	}
	return c, nil
}

// badConfig is the error of one key.
func badConfig(key, format string, args ...any) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, key+": "+fmt.Sprintf(format, args...), "")
}

// pluginName is what a plugin may be called: nothing that leads out of CNI_PATH.
var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// delegated is a plugin and the configuration it is called with.
type delegated struct {
	plugin string
	stdin  []byte
}

// compose makes the delegate's configuration of ours and of the lease, as
// flannel's plugin does. What the user gave in delegate has precedence, except
// for the address ranges, which the lease alone decides.
func (c config) compose(env state.SubnetEnv) (delegated, error) {
	out := maps.Clone(c.delegate)
	if out == nil {
		out = object{}
	}
	plugin, err := typeOf(out, "delegate.type", defaultDelegate)
	if err != nil {
		return delegated{}, err
	}
	ipam, err := c.composeIPAM(env)
	if err != nil {
		return delegated{}, err
	}
	set(out, "name", c.name)
	set(out, "type", plugin)
	set(out, "ipam", ipam)
	setDefault(out, "ipMasq", !env.IPMasq)
	setDefault(out, "mtu", env.MTU)
	if plugin == "bridge" {
		setDefault(out, "isGateway", true)
	}
	if c.version != "" {
		set(out, "cniVersion", c.version)
	}
	if c.runtimeConfig != nil {
		set(out, "runtimeConfig", c.runtimeConfig)
	}
	return encode(plugin, out)
}

func (c config) composeIPAM(env state.SubnetEnv) (object, error) {
	ipam := maps.Clone(c.ipam)
	if ipam == nil {
		ipam = object{}
	}
	plugin, err := typeOf(ipam, "ipam.type", defaultIPAM)
	if err != nil {
		return nil, err
	}
	var routes []any
	if given, ok := ipam["routes"]; ok {
		var list []json.RawMessage
		if err := json.Unmarshal(given, &list); err != nil {
			return nil, badConfig("ipam.routes", "want a list, got %.64s", given)
		}
		for _, route := range list {
			routes = append(routes, route)
		}
	}
	for _, network := range env.Networks {
		routes = append(routes, map[string]netip.Prefix{"dst": network})
	}
	var ranges [][]map[string]netip.Prefix // one set of one range per family
	for _, subnet := range env.Subnets {
		ranges = append(ranges, []map[string]netip.Prefix{{"subnet": subnet}})
	}
	set(ipam, "type", plugin)
	set(ipam, "ranges", ranges)
	set(ipam, "routes", routes)
	return ipam, nil
}

// typeOf returns the plugin name in o, or the standard one.
func typeOf(o object, key, standard string) (string, error) {
	value, ok := o["type"]
	if !ok {
		return standard, nil
	}
	var name string
	if err := json.Unmarshal(value, &name); err != nil || !pluginName.MatchString(name) {
		return "", badConfig(key, "want the bare name of a plugin, got %.64s", value)
	}
	return name, nil
}

// set puts a value that always has a JSON form.
func set(o object, key string, value any) {
	data, err := json.Marshal(value)
	if err == nil {
		o[key] = data
	}
}

func setDefault(o object, key string, value any) {
	if _, ok := o[key]; !ok {
		set(o, key, value)
	}
}

// encode writes a configuration with its keys in order.
func encode(plugin string, o object) (delegated, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return delegated{}, fmt.Errorf("encode configuration of %s: %w", plugin, err)
	}
	return delegated{plugin: plugin, stdin: data}, nil
}

// decodeSaved reads back what encode wrote, or flannel's plugin.
func decodeSaved(data []byte) (d delegated, network string, err error) {
	var keys struct {
		Name string `json:"name"`
		Type string `json:"type"`
	}
	if err := json.Unmarshal(data, &keys); err != nil {
		return delegated{}, "", err
	}
	if !pluginName.MatchString(keys.Type) {
		return delegated{}, "", fmt.Errorf("type: %.64q is not the bare name of a plugin", keys.Type)
	}
	return delegated{plugin: keys.Type, stdin: data}, keys.Name, nil
}

// with returns d with one more key.
func (d delegated) with(key string, value any) (delegated, error) {
	var keys object
	if err := json.Unmarshal(d.stdin, &keys); err != nil {
		return delegated{}, fmt.Errorf("decode configuration of %s: %w", d.plugin, err)
	}
	set(keys, key, value)
	return encode(d.plugin, keys)
}
