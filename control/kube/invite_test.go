package kube

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// newInvite is a valid invite for the Node "own", of servers that need no
// certificate authority of their own.
func newInvite() Invite {
	return Invite{
		Node: "own", Expires: time.Date(2099, 1, 2, 3, 4, 5, 0, time.UTC), NetConf: []byte(dualNetConf), Prefix: "flannel.alpha.coreos.com/",
		DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		ClusterDomain: "cluster.local", Server: "https://192.0.2.1:6443", TLSServerName: "kubernetes", ProxyURL: "socks5://192.0.2.2:1080", Token: "secret",
	}
}

func encode(t testing.TB, invite Invite) string {
	t.Helper()
	data, err := invite.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// sameJSON compares two documents.
func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal(a, &x), json.Unmarshal(b, &y)); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}

func TestInviteThereAndBack(t *testing.T) {
	for _, want := range []Invite{newInvite(), func() Invite {
		i := newInvite()
		i.DNS, i.ServiceCIDRs, i.TLSServerName, i.ProxyURL = nil, nil, "", ""
		return i
	}()} {
		got, err := ParseInvite([]byte(encode(t, want)))
		if err != nil {
			t.Fatal(err)
		}
		if !sameJSON(t, got.NetConf, want.NetConf) {
			t.Errorf("net-conf is %s, want %s", got.NetConf, want.NetConf)
		}
		got.NetConf = want.NetConf
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read back:\n%+v, want\n%+v", got, want)
		}
	}
}

func TestParseInviteRefuses(t *testing.T) {
	good := encode(t, newInvite())
	tests := []struct{ name, old, new, want string }{
		{"empty", good, "", "want Config"},
		{"no YAML", good, "a: [", "not readable"},
		{"too long", "kind: Config", "kind: Config\n#" + strings.Repeat("x", maxInvite), "longer than"},
		{"another kind", "kind: Config", "kind: ConfigMap", `kind "ConfigMap"`},
		{"an ordinary kubeconfig", inviteExtName, "example.com/other", "use --kubeconfig-file"},
		{"of a later weft", "weft-net.github.io/v1", "weft-net.github.io/v9", "use the version of weft that made it"},
		{"runs a program", "token: secret", "exec: {command: /bin/sh}", "exec"},
		{"reads a file", "token: secret", "tokenFile: /etc/passwd", "tokenFile"},
		{"trusts anybody", "tls-server-name: kubernetes", "insecure-skip-tls-verify: true", "insecure-skip-tls-verify"},
		{"in clear", "https://192.0.2.1", "http://192.0.2.1", "want an https URL"},
		{"a key twice", "token: secret", "token: secret\n    token: other", "token"},
		{"no token", "token: secret", `token: ""`, "token: missing"},
		{"no expiry", `expires: "2099-01-02T03:04:05Z"`, "", "expires: missing"},
		{"expiry", "2099-01-02T03:04:05Z", "tomorrow", "not as 'weft invite' makes it"},
		{"node", "node: own", "node: ../own", "node: name"},
		{"net-conf", "10.244.0.0/16", "10.244.0.0/99", "netConf"},
		{"prefix", "annotationPrefix: flannel.alpha.coreos.com/", "annotationPrefix: x", "annotationPrefix"},
		{"DNS", "10.96.0.10", "::", "dns"},
		{"DNS with a zone", "10.96.0.10", "fe80::1%eth0", "dns"},
		{"service CIDR", "10.96.0.0/12", "10.96.0.1/12", "serviceCIDRs"},
		{"domain", "clusterDomain: cluster.local", "clusterDomain: cluster..local", "clusterDomain"},
		{"proxy", "socks5://192.0.2.2:1080", "1080", "proxy-url"},
		{"authorities", "tls-server-name: kubernetes", "certificate-authority-data: AAAA", "no certificate"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(good, test.old, test.new, 1)
			if text == good {
				t.Fatalf("no %q in\n%s", test.old, good)
			}
			if _, err := ParseInvite([]byte(text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want an error with %q", err, test.want)
			} else if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
}

func TestLoadInvite(t *testing.T) {
	past := newInvite()
	past.Expires = time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		name, text string
		mode       os.FileMode
		want       string // in the error; empty: good
	}{
		{"good", encode(t, newInvite()), 0o600, ""},
		{"expired", encode(t, past), 0o600, "expired at 2001-01-0"},
		{"malformed", "{}", 0o600, "want Config"},
		{"for all to read", encode(t, newInvite()), 0o644, "chmod 600"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "invite")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadInvite(path); test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path)) {
				t.Errorf("%v, want an error with %q and the path", err, test.want)
			}
		})
	}
	if _, err := LoadInvite(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func FuzzParseInvite(f *testing.F) {
	good := encode(f, newInvite())
	for _, seed := range []string{good, "", "{}", "a: &a [*a]", strings.Replace(good, "own", "a-b.c", 1), strings.ReplaceAll(good, "\n", "\r\n")} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		invite, err := ParseInvite(data)
		if err != nil {
			return
		}
		again, err := invite.Encode()
		if err != nil {
			t.Fatalf("an invite that was read cannot be written: %v", err)
		}
		back, err := ParseInvite(again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, again)
		}
		if back.Node != invite.Node || back.Token != invite.Token || back.Server != invite.Server {
			t.Errorf("read back:\n%+v, want\n%+v", back, invite)
		}
		if _, err := invite.restConfig(); err != nil {
			t.Errorf("no client of an invite that was read: %v", err)
		}
	})
}
