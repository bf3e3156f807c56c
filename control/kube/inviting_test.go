package kube

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/weft-net/weft/control/lease"
	"github.com/weft-net/weft/control/netconf"
)

func newTestAdmin(t *testing.T, f *fakeServer) *Admin {
	t.Helper()
	client, err := newAPI(&rest.Config{Host: f.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.close)
	return &Admin{api: client, namespace: DefaultNamespace, access: Invite{Server: "https://192.0.2.1:6443"}}
}

// TestInviteRequests holds what is refused before anything is made.
func TestInviteRequests(t *testing.T) {
	f := newFakeServer(t)
	f.set(newNode("node", cidr4(1), cidr6(1)))
	good := InviteRequest{Name: "anna", TTL: time.Hour, NetConf: []byte(dualNetConf)}
	tests := []struct {
		name   string
		change func(*Admin, *InviteRequest)
		want   string
	}{
		{"name", func(_ *Admin, r *InviteRequest) { r.Name = "Anna" }, `name "Anna"`},
		{"too short", func(_ *Admin, r *InviteRequest) { r.TTL = time.Minute }, "--ttl 1m0s"},
		{"prefix", func(_ *Admin, r *InviteRequest) { r.Prefix = "a/b/c" }, "--kube-annotation-prefix"},
		{"net-conf", func(_ *Admin, r *InviteRequest) { r.NetConf = []byte("{") }, "net-conf.json"},
		{"API server in clear", func(_ *Admin, r *InviteRequest) { r.APIURL = "http://192.0.2.1" }, "--guest-api-url"},
		{"nobody knows the API server", func(a *Admin, _ *InviteRequest) { a.insecure = true }, "insecure-skip-tls-verify"},
		{"a node's name", func(_ *Admin, r *InviteRequest) { r.Name = "node" }, "choose another name"},
		{"nobody to renew", func(_ *Admin, r *InviteRequest) { r.Renew = true }, "leave --renew out"},
		{"a node's pod CIDR", func(_ *Admin, r *InviteRequest) {
			r.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/20")}
		}, "--pod-cidr 10.244.0.0/20: overlaps that of Node node"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			admin, request := newTestAdmin(t, f), good
			test.change(admin, &request)
			if _, _, err := admin.Invite(t.Context(), request); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want an error with %q", err, test.want)
			}
		})
	}
}

// TestGuestData holds that a guest is given MACs of its own, and is no member
// by that.
func TestGuestData(t *testing.T) {
	for text, want := range map[string]int{
		dualNetConf: 2,
		`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`:   1,
		`{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`: 0,
	} {
		config, err := netconf.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		data, err := guestData(config, lease.DefaultPrefix)
		if err != nil {
			t.Fatal(err)
		}
		node := guestNode("anna", time.Now(), nil, data)
		macs := map[string]bool{}
		for _, mac := range lease.NodeMACs(node.Annotations, lease.DefaultPrefix) {
			if mac[0]&3 == 2 {
				macs[mac.String()] = true
			}
		}
		if len(macs) != want {
			t.Errorf("%s: MACs are %v, want %d of them", text, macs, want)
		}
		if _, managed := lease.FromNode(nodeData(node), lease.DefaultPrefix); managed {
			t.Errorf("%s: a guest that has not joined is a member: %v", text, node.Annotations)
		}
	}
	config, err := netconf.Parse([]byte(`{"Network":"10.244.0.0/16","Backend":{"Type":"wireguard"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guestData(config, lease.DefaultPrefix); err == nil || !strings.Contains(err.Error(), "use vxlan") {
		t.Errorf("a guest without a key of its own: %v", err)
	}
}
