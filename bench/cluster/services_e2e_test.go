//go:build e2e

package cluster

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/kube"
)

// TestServices follows Services as a guest does, through changes and an outage.
func TestServices(t *testing.T) {
	ctx, c := startForTest(t, "10.244.0.0/16")
	applyManifests(ctx, t, c, "weft.yaml", "guests.yaml", "admission.yaml")
	type object = map[string]any
	send := func(verb, path string, body object) {
		t.Helper()
		if err := c.Request(ctx, verb, path, body, nil); err != nil {
			t.Fatal(err)
		}
	}
	ports := []object{{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}}
	send(http.MethodPost, "/api/v1/namespaces/kube-system/services", object{
		"metadata": object{"name": "kube-dns"}, "spec": object{"clusterIP": "10.96.0.10", "ports": ports},
	})
	send(http.MethodPost, "/api/v1/namespaces/default/services", object{
		"metadata": object{"name": "headless"}, "spec": object{"clusterIP": "None", "ports": ports},
	})
	send(http.MethodPost, "/api/v1/namespaces/kube-system/configmaps", object{
		"metadata": object{"name": "coredns"}, "data": object{"Corefile": ".:53 {\n    errors\n    kubernetes example.test in-addr.arpa ip6.arpa {\n    }\n}\n"},
	})
	admin := newAdmin(t, c.Kubeconfig())
	var invite kube.Invite
	eventually(ctx, t, "an invite", func() (made bool) { // the policy works a little after it has been made
		var err error
		invite, _, err = admin.Invite(ctx, kube.InviteRequest{Name: "anna", TTL: time.Hour})
		return err == nil
	})
	dns := []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	if !slices.Equal(invite.DNS, dns) || !slices.Equal(invite.ServiceCIDRs, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}) || invite.ClusterDomain != "example.test" {
		t.Errorf("invite has DNS %v, Services %v, domain %s", invite.DNS, invite.ServiceCIDRs, invite.ClusterDomain)
	}
	guest := newGuestHost(t, invite, "laptop/1")
	if found, err := guest.FindDNS(ctx); err != nil || !slices.Equal(found, dns) {
		t.Errorf("DNS is %v, %v", found, err)
	}
	var table []control.Service
	watching, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- guest.WatchServices(watching, func(services []control.Service) {
			guest.mu.Lock()
			defer guest.mu.Unlock()
			table = services
			guest.tell()
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("WatchServices: %v", err)
		}
	})
	backends := func(want ...string) func() bool {
		return func() bool {
			// The API server's own Service comes first.
			if len(table) != 2 || table[1].Name != "kube-dns" || !slices.Equal(table[1].ClusterIPs, dns) || len(table[1].Ports) != 2 {
				return false
			}
			var have []string
			for _, backend := range table[1].Ports[0].Backends {
				have = append(have, backend.String())
			}
			return table[1].Ports[0].Protocol == "udp" && slices.Equal(have, want)
		}
	}
	guest.await(ctx, t, "a Service without endpoints", backends())
	slice := func(addrs ...string) object {
		endpoints := []object{}
		for _, addr := range addrs {
			endpoints = append(endpoints, object{"addresses": []string{addr}, "conditions": object{"ready": true}})
		}
		return object{
			"metadata":    object{"name": "kube-dns-x", "labels": object{"kubernetes.io/service-name": "kube-dns"}},
			"addressType": "IPv4", "endpoints": endpoints, "ports": []object{{"name": "dns", "port": 5353, "protocol": "UDP"}},
		}
	}
	const resource = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
	send(http.MethodPost, resource, slice("10.244.1.2"))
	guest.await(ctx, t, "an endpoint", backends("10.244.1.2:5353"))
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := c.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	send(http.MethodPatch, resource+"/kube-dns-x", slice("10.244.1.2", "10.244.2.2"))
	guest.await(ctx, t, "two endpoints, after an outage", backends("10.244.1.2:5353", "10.244.2.2:5353"))
	send(http.MethodDelete, "/api/v1/namespaces/kube-system/services/kube-dns", nil)
	guest.await(ctx, t, "the Service to be gone", func() bool { return len(table) == 1 })
}
