package kube

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
)

// Invite is what a guest needs to become a member: where the API server is,
// who the guest is there, and what it would read from files were it a node.
// ParseInvite makes a valid one.
type Invite struct {
	Node    string    // name of the guest's Node
	Expires time.Time // of the token, and for all peers
	NetConf []byte    // net-conf.json
	Prefix  string    // of the annotations, in normal form
	// DNS are the cluster DNS servers, ServiceCIDRs the networks of ClusterIPs.
	// Either may be empty: it could not be found out.
	DNS           []netip.Addr
	ServiceCIDRs  []netip.Prefix
	ClusterDomain string // as in cluster.local

	Server        string // URL of the API server
	TLSServerName string // empty: the URL's host
	ProxyURL      string // empty: none
	CA            []byte // PEM; empty: the system's authorities
	Token         string

	path string // of the file it came from: a renewed invite is put there
}

// inviteFile is the form of an invite: a kubeconfig of one context, so that
// kubectl takes it too, with weft's settings as an extension of the context.
type inviteFile struct {
	APIVersion     string          `json:"apiVersion"`
	Kind           string          `json:"kind"`
	CurrentContext string          `json:"current-context"`
	Preferences    struct{}        `json:"preferences,omitzero"`
	Clusters       []inviteCluster `json:"clusters"`
	Users          []inviteUser    `json:"users"`
	Contexts       []inviteContext `json:"contexts"`
}

type inviteCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server        string `json:"server"`
		CA            []byte `json:"certificate-authority-data,omitempty"`
		TLSServerName string `json:"tls-server-name,omitempty"`
		ProxyURL      string `json:"proxy-url,omitempty"`
	} `json:"cluster"`
}

type inviteUser struct {
	Name string `json:"name"`
	User struct {
		Token string `json:"token"`
	} `json:"user"`
}

type inviteContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster    string            `json:"cluster"`
		User       string            `json:"user"`
		Namespace  string            `json:"namespace,omitempty"`
		Extensions []inviteExtension `json:"extensions"`
	} `json:"context"`
}

type inviteExtension struct {
	Name      string         `json:"name"`
	Extension inviteSettings `json:"extension"`
}

// inviteSettings are weft's part of the file.
type inviteSettings struct {
	APIVersion    string          `json:"apiVersion"`
	Kind          string          `json:"kind"`
	Node          string          `json:"node"`
	Expires       time.Time       `json:"expires"`
	NetConf       json.RawMessage `json:"netConf"`
	Prefix        string          `json:"annotationPrefix"`
	DNS           []netip.Addr    `json:"dns,omitempty"`
	ServiceCIDRs  []netip.Prefix  `json:"serviceCIDRs,omitempty"`
	ClusterDomain string          `json:"clusterDomain"`
}

// The names in an invite.
const (
	inviteVersion   = "weft-net.github.io/v1"
	inviteKind      = "Invite"
	inviteExtName   = "weft-net.github.io/invite"
	inviteContextOf = "weft"
)

// maxInvite bounds an invite in bytes: certificates are most of it.
const maxInvite = 256 << 10

// LoadInvite reads an invite for use: it must be nobody else's to read, and not
// have expired.
func LoadInvite(path string) (Invite, error) {
	file, err := os.Open(path)
	if err != nil {
		return Invite{}, fmt.Errorf("read invite: %w", err)
	}
	defer file.Close()
	if err := checkPrivate(file); err != nil {
		return Invite{}, fmt.Errorf("invite %s: %w", path, err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxInvite+1))
	if err != nil {
		return Invite{}, fmt.Errorf("read invite: %w", err)
	}
	invite, err := ParseInvite(data)
	if err != nil {
		return Invite{}, fmt.Errorf("invite %s: %w", path, err)
	}
	if now := time.Now(); !now.Before(invite.Expires) {
		return Invite{}, fmt.Errorf("invite %s: %w", path, expired(invite.Node, invite.Expires))
	}
	invite.path = path
	return invite, nil
}

// expired words the end of an invite.
func expired(node string, at time.Time) error {
	return fmt.Errorf("the invite of %s expired at %s: ask an administrator for a new one (weft invite %s --renew)",
		node, at.Local().Format("2006-01-02 15:04:05 MST"), node)
}

// ParseInvite reads an invite. It is strict: a kubeconfig can name programs to
// run and files to read, an invite holds nothing but what weft puts there.
func ParseInvite(data []byte) (Invite, error) {
	if len(data) > maxInvite {
		return Invite{}, fmt.Errorf("longer than %d bytes: this is no file of 'weft invite'", maxInvite)
	}
	var head struct {
		Kind     string `json:"kind"`
		Contexts []struct {
			Context struct {
				Extensions []struct {
					Name      string `json:"name"`
					Extension struct {
						APIVersion string `json:"apiVersion"`
						Kind       string `json:"kind"`
					} `json:"extension"`
				} `json:"extensions"`
			} `json:"context"`
		} `json:"contexts"`
	}
	if err := yaml.Unmarshal(data, &head); err != nil {
		return Invite{}, fmt.Errorf("not readable as YAML: %w", err)
	}
	if head.Kind != "Config" {
		return Invite{}, fmt.Errorf("kind %.40q: want Config, a file of 'weft invite'", head.Kind)
	}
	if len(head.Contexts) != 1 || len(head.Contexts[0].Context.Extensions) != 1 || head.Contexts[0].Context.Extensions[0].Name != inviteExtName {
		return Invite{}, errors.New("a kubeconfig without weft's settings: for one that is no invite use --kubeconfig-file")
	}
	if have := head.Contexts[0].Context.Extensions[0].Extension; have.APIVersion != inviteVersion || have.Kind != inviteKind {
		return Invite{}, fmt.Errorf("settings are %.40q %.40q: this weft reads %s %s; use the version of weft that made it", have.APIVersion, have.Kind, inviteVersion, inviteKind)
	}
	var file inviteFile
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		return Invite{}, fmt.Errorf("not as 'weft invite' makes it: %w", err)
	}
	if len(file.Clusters) != 1 || len(file.Users) != 1 {
		return Invite{}, fmt.Errorf("%d clusters and %d users: want one of each", len(file.Clusters), len(file.Users))
	}
	cluster, user, settings := file.Clusters[0].Cluster, file.Users[0].User, file.Contexts[0].Context.Extensions[0].Extension
	invite := Invite{
		Node: settings.Node, Expires: settings.Expires, NetConf: settings.NetConf, Prefix: settings.Prefix,
		DNS: settings.DNS, ServiceCIDRs: settings.ServiceCIDRs, ClusterDomain: settings.ClusterDomain,
		Server: cluster.Server, TLSServerName: cluster.TLSServerName, ProxyURL: cluster.ProxyURL, CA: cluster.CA, Token: user.Token,
	}
	return invite, invite.check()
}

// Names of Nodes: a DNS label or several, short enough for a label's value.
var guestName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

const maxGuestName = 63

// CheckGuestName says what is wrong with the name of a guest.
func CheckGuestName(name string) error {
	if len(name) > maxGuestName || !guestName.MatchString(name) {
		return fmt.Errorf("name %.80q: want at most %d of a-z, 0-9, - and ., as in anna-laptop", name, maxGuestName)
	}
	return nil
}

// check says what is wrong with an invite.
func (i Invite) check() error {
	if err := CheckGuestName(i.Node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if i.Expires.IsZero() {
		return errors.New("expires: missing")
	}
	if _, err := netconf.Parse(i.NetConf); err != nil {
		return fmt.Errorf("netConf: %w", err)
	}
	if prefix, err := lease.ParsePrefix(i.Prefix); err != nil || string(prefix) != i.Prefix {
		return fmt.Errorf("annotationPrefix %.80q: want one like %s", i.Prefix, lease.DefaultPrefix)
	}
	for _, addr := range i.DNS {
		if !addr.IsValid() || addr.Zone() != "" || addr.IsUnspecified() {
			return fmt.Errorf("dns: %q is no address of a server", addr)
		}
	}
	for _, prefix := range i.ServiceCIDRs {
		if !prefix.IsValid() || prefix.Masked() != prefix {
			return fmt.Errorf("serviceCIDRs: %q is no network", prefix)
		}
	}
	if len(i.ClusterDomain) > 253 || !guestName.MatchString(i.ClusterDomain) {
		return fmt.Errorf("clusterDomain %.80q: want a domain, as in cluster.local", i.ClusterDomain)
	}
	return i.checkServer()
}

// checkServer looks at what the token is sent to.
func (i Invite) checkServer() error {
	server, err := url.Parse(i.Server)
	if err != nil || server.Scheme != "https" || server.Host == "" || server.User != nil {
		return fmt.Errorf("server %.80q: want an https URL", i.Server)
	}
	if i.ProxyURL != "" {
		if proxy, err := url.Parse(i.ProxyURL); err != nil || proxy.Host == "" {
			return fmt.Errorf("proxy-url %.80q: want a URL", i.ProxyURL)
		}
	}
	if len(i.CA) > 0 && !x509.NewCertPool().AppendCertsFromPEM(i.CA) {
		return errors.New("certificate-authority-data: no certificate in it")
	}
	if i.Token == "" {
		return errors.New("token: missing")
	}
	return nil
}

// Encode returns the invite's file, to be kept from others' eyes: it holds the
// token.
func (i Invite) Encode() ([]byte, error) {
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("encode invite: %w", err)
	}
	file := inviteFile{
		APIVersion: "v1", Kind: "Config", CurrentContext: inviteContextOf,
		Clusters: make([]inviteCluster, 1), Users: make([]inviteUser, 1), Contexts: make([]inviteContext, 1),
	}
	cluster, user, context := &file.Clusters[0], &file.Users[0], &file.Contexts[0]
	cluster.Name, user.Name, context.Name = inviteContextOf, i.Node, inviteContextOf
	cluster.Cluster.Server, cluster.Cluster.CA = i.Server, i.CA
	cluster.Cluster.TLSServerName, cluster.Cluster.ProxyURL = i.TLSServerName, i.ProxyURL
	user.User.Token = i.Token
	context.Context.Cluster, context.Context.User = cluster.Name, user.Name
	context.Context.Extensions = []inviteExtension{{Name: inviteExtName, Extension: inviteSettings{
		APIVersion: inviteVersion, Kind: inviteKind, Node: i.Node, Expires: i.Expires.UTC().Truncate(time.Second),
		NetConf: i.NetConf, Prefix: i.Prefix, DNS: i.DNS, ServiceCIDRs: i.ServiceCIDRs, ClusterDomain: i.ClusterDomain,
	}}}
	data, err := yaml.Marshal(file)
	if err != nil {
		return nil, fmt.Errorf("encode invite: %w", err)
	}
	return data, nil
}

// restConfig is the guest's client configuration.
func (i Invite) restConfig() (*rest.Config, error) {
	config := &rest.Config{
		Host: i.Server, BearerToken: i.Token,
		TLSClientConfig: rest.TLSClientConfig{CAData: i.CA, ServerName: i.TLSServerName},
	}
	if i.ProxyURL != "" {
		proxy, err := url.Parse(i.ProxyURL)
		if err != nil {
			return nil, fmt.Errorf("proxy-url: %w", err)
		}
		config.Proxy = http.ProxyURL(proxy)
	}
	return config, nil
}
