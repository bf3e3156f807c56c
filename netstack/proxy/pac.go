package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
)

// pacScript decides by name and by literal address alone: it never asks this
// host's DNS, which knows nothing of the cluster.
const pacScript = `// Sends what is in the cluster to weft and everything else directly.
var proxy = %s;
var domains = %s;
// [bytes, bits]
var prefixes = %s;

function parse4(host) {
  var parts = host.split("."), bytes = [], i;
  if (parts.length !== 4) return null;
  for (i = 0; i < 4; i++) {
    if (!/^[0-9]{1,3}$/.test(parts[i]) || +parts[i] > 255) return null;
    bytes.push(+parts[i]);
  }
  return bytes;
}

function words(text) {
  var bytes = [], parts = text === "" ? [] : text.split(":"), i, last;
  for (i = 0; i < parts.length; i++) {
    if (i === parts.length - 1 && parts[i].indexOf(".") >= 0) {
      last = parse4(parts[i]);
      if (!last) return null;
      bytes = bytes.concat(last);
    } else {
      if (!/^[0-9a-f]{1,4}$/i.test(parts[i])) return null;
      last = parseInt(parts[i], 16);
      bytes.push(last >> 8, last & 255);
    }
  }
  return bytes;
}

function parse6(host) {
  var halves, head, tail;
  host = host.replace(/^\[|\]$/g, "");
  if (host.indexOf(":") < 0) return null;
  halves = host.split("::");
  head = words(halves[0]);
  tail = halves.length > 1 ? words(halves[1]) : [];
  if (!head || !tail || halves.length > 2 || head.length + tail.length > 16) return null;
  if (halves.length === 1 && head.length !== 16) return null;
  while (head.length + tail.length < 16) head.push(0);
  return head.concat(tail);
}

function within(bytes, prefix) {
  var i, bits, mask;
  if (bytes.length !== prefix[0].length) return false;
  for (i = 0, bits = prefix[1]; bits > 0; i++, bits -= 8) {
    mask = bits >= 8 ? 255 : 255 & (255 << (8 - bits));
    if ((bytes[i] & mask) !== (prefix[0][i] & mask)) return false;
  }
  return true;
}

function FindProxyForURL(url, host) {
  var bytes = parse4(host) || parse6(host), i, at;
  host = host.toLowerCase().replace(/\.$/, "");
  for (i = 0; bytes && i < prefixes.length; i++) {
    if (within(bytes, prefixes[i])) return proxy;
  }
  for (i = 0; !bytes && i < domains.length; i++) {
    at = host.length - domains[i].length - 1;
    if (host === domains[i] || (at >= 0 && host.substring(at) === "." + domains[i])) return proxy;
  }
  return "DIRECT";
}
`

// pac is a proxy auto-configuration file that leads to the proxy at self,
// "address:port".
func (d *Dialer) pac(self string) []byte {
	s := d.settings.Load()
	prefixes := slices.Concat(s.overlay, s.serviceCIDRs)
	for ip := range s.services.names {
		if !contains(prefixes, ip) {
			prefixes = append(prefixes, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	type prefix [2]any
	list := make([]prefix, 0, len(prefixes))
	for _, p := range slices.Compact(prefixes) {
		var octets []int // not bytes, which JSON would write as base64
		for _, octet := range p.Addr().AsSlice() {
			octets = append(octets, int(octet))
		}
		list = append(list, prefix{octets, p.Bits()})
	}
	return fmt.Appendf(nil, pacScript, literal("PROXY "+self), literal(append([]string{}, s.search...)), literal(list))
}

// literal writes strings and numbers as JavaScript.
func literal(value any) []byte {
	var out bytes.Buffer
	if err := json.NewEncoder(&out).Encode(value); err != nil {
		return []byte("null")
	}
	return bytes.TrimSpace(out.Bytes())
}
