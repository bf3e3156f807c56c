package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/tunnel"
)

// Prefix is what the names of all annotations begin with, in normal form: it
// ends in "/" or "-". Make one with ParsePrefix.
type Prefix string

// DefaultPrefix is flannel's own.
const DefaultPrefix Prefix = "flannel.alpha.coreos.com/"

// The annotations. Name puts the prefix in front.
const (
	KubeSubnetManager   = "kube-subnet-manager" // "true": this Node is managed
	BackendType         = "backend-type"
	BackendData         = "backend-data"
	BackendV6Data       = "backend-v6-data"
	PublicIP            = "public-ip"
	PublicIPv6          = "public-ipv6"
	NodePublicIP        = "node-public-ip" // set by the user: like --public-ip
	NodePublicIPv6      = "node-public-ipv6"
	PublicIPOverwrite   = "public-ip-overwrite" // set by the user: published instead of ours
	PublicIPv6Overwrite = "public-ipv6-overwrite"
	WeftOffers          = "weft-offers" // weft's own: flanneld passes over it
)

// The names of each family's annotations, by family.
var (
	dataNames      = [families]string{BackendData, BackendV6Data}
	publicNames    = [families]string{PublicIP, PublicIPv6}
	nodeNames      = [families]string{NodePublicIP, NodePublicIPv6}
	overwriteNames = [families]string{PublicIPOverwrite, PublicIPv6Overwrite}
)

var prefixForm = regexp.MustCompile(`^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$`)

// ParsePrefix brings the annotation prefix a user gave into normal form, by
// flannel's rule: a domain name, then optionally "/" and a word. A missing "/"
// is added, and so is a "-" after the word.
func ParsePrefix(text string) (Prefix, error) {
	prefix := text
	if strings.Count(prefix, "/") > 1 {
		return "", fmt.Errorf("annotation prefix %s: at most one slash is allowed", quote(text))
	}
	switch _, word, slash := strings.Cut(prefix, "/"); {
	case !slash:
		prefix += "/"
	case word != "" && !strings.HasSuffix(word, "-"):
		prefix += "-"
	}
	if !prefixForm.MatchString(prefix) {
		return "", fmt.Errorf("annotation prefix %s: want a domain name of [a-z0-9_-], then optionally / and a word, as in %s", quote(text), DefaultPrefix)
	}
	return Prefix(prefix), nil
}

// Name is the full name of an annotation.
func (p Prefix) Name(annotation string) string { return string(p) + annotation }

// NodeData is what of a Kubernetes Node makes a lease.
type NodeData struct {
	Name        string
	PodCIDRs    []string // spec.podCIDRs, or else the one spec.podCIDR
	Annotations map[string]string
	Guest       bool // the Node was made by an invite
}

// FromNode reads the lease a Node carries. managed tells whether the Node
// claims to be a member at all; if not, there is no lease. A family whose
// annotations cannot be used is left out with a problem, the other one stays.
func FromNode(node NodeData, prefix Prefix) (lease control.Lease, managed bool) {
	if node.Annotations[prefix.Name(KubeSubnetManager)] != "true" {
		return control.Lease{}, false
	}
	raw := published{
		host: node.Name, backend: node.Annotations[prefix.Name(BackendType)], guest: node.Guest,
		offers: []byte(node.Annotations[prefix.Name(WeftOffers)]),
	}
	subnets, problems := podSubnets(node.PodCIDRs)
	for family := range raw.legs {
		leg := &raw.legs[family]
		leg.subnet = subnets[family]
		leg.data = []byte(node.Annotations[prefix.Name(dataNames[family])])
		leg.publicIP = node.Annotations[prefix.Name(publicNames[family])]
	}
	return raw.lease(problems), true
}

// podSubnets sorts pod CIDRs by family. The first of a family counts, as in
// Kubernetes, which never assigns two.
func podSubnets(cidrs []string) (subnets [families]netip.Prefix, problems []string) {
	if len(cidrs) == 0 {
		return subnets, []string{"no pod CIDR is assigned"}
	}
	for i, cidr := range cidrs {
		if i == families {
			return subnets, append(problems, fmt.Sprintf("%d pod CIDRs, at most one per family is used", len(cidrs)))
		}
		subnet, err := parseSubnet(cidr)
		if err != nil {
			problems = append(problems, "pod CIDR: "+err.Error())
			continue
		}
		family := familyOf(subnet.Addr())
		if subnets[family].IsValid() {
			problems = append(problems, fmt.Sprintf("pod CIDR %s: a second one of its family", subnet))
			continue
		}
		subnets[family] = subnet
	}
	return subnets, problems
}

// NodeSubnets returns the subnets Kubernetes assigned, IPv4 first.
func NodeSubnets(cidrs []string) ([]netip.Prefix, error) {
	subnets, problems := podSubnets(cidrs)
	if len(problems) > 0 {
		return nil, errors.New(problems[0])
	}
	var list []netip.Prefix
	for _, subnet := range subnets {
		if subnet.IsValid() {
			list = append(list, subnet)
		}
	}
	return list, nil
}

// Annotations returns the annotations that publish a claim, exactly as
// flannel writes them for the claim's backend, and one more if the claim has
// offers. node is what the Node has now: a public-ip-overwrite in it replaces
// the published address. An empty value is for an annotation that must go:
// peers would go on relying on offers of which the host knows nothing. Others
// that flannel leaves alone are not in the result.
func Annotations(claim control.Claim, prefix Prefix, node map[string]string) (map[string]string, error) {
	legs, err := claimLegs(claim)
	if err != nil {
		return nil, fmt.Errorf("make annotations: %w", err)
	}
	set := map[string]string{
		prefix.Name(KubeSubnetManager): "true",
		prefix.Name(BackendType):       claim.Backend,
	}
	for family, leg := range legs {
		data, address := "null", ""
		switch {
		case leg != nil:
			raw, err := formatData(claim.Backend, *leg)
			if err != nil {
				return nil, fmt.Errorf("make annotations: %s: %w", familyNames[family], err)
			}
			if raw != nil {
				data = string(raw)
			}
			address = leg.PublicIP.String()
		case family == v4 && claim.Backend != VXLAN:
			address = noIPv4 // as flannel does for every type but vxlan
		default:
			continue
		}
		if name := prefix.Name(overwriteNames[family]); node[name] != "" {
			overwrite, err := parsePublicIP(node[name], family)
			if err != nil {
				return nil, fmt.Errorf("read annotation %s: %w", name, err)
			}
			address = overwrite.String()
		}
		set[prefix.Name(dataNames[family])] = data
		set[prefix.Name(publicNames[family])] = address
	}
	offers, err := formatOffers(claim.Offers)
	if err != nil {
		return nil, fmt.Errorf("make annotations: %w", err)
	}
	name := prefix.Name(WeftOffers)
	if _, stale := node[name]; stale || offers != nil {
		set[name] = string(offers)
	}
	return set, nil
}

// NodePublicIPs returns the public addresses the user has set on a Node by
// node-public-ip and node-public-ipv6, IPv4 first.
func NodePublicIPs(annotations map[string]string, prefix Prefix) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for family, name := range nodeNames {
		text := annotations[prefix.Name(name)]
		if text == "" {
			continue
		}
		addr, err := parsePublicIP(text, family)
		if err != nil {
			return nil, fmt.Errorf("read annotation %s: %w", prefix.Name(name), err)
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

// NodeMACs returns the VTEP MACs a Node's annotations hold, IPv4 then IPv6;
// zero where there is none that could be used again.
func NodeMACs(annotations map[string]string, prefix Prefix) []tunnel.MAC {
	return recallMACs(nodeBackendData(annotations, prefix))
}

// NodeKeys returns the WireGuard keys a Node's annotations hold; zero where
// there is none.
func NodeKeys(annotations map[string]string, prefix Prefix) tunnel.WireGuardKeys {
	return recallKeys(nodeBackendData(annotations, prefix), []byte(annotations[prefix.Name(WeftOffers)]))
}

func nodeBackendData(annotations map[string]string, prefix Prefix) (data [families][]byte) {
	for family, name := range dataNames {
		data[family] = []byte(annotations[prefix.Name(name)])
	}
	return data
}
