package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-net/weft/control"
)

func ptr[T any](value T) *T { return &value }

// newService makes the Service ns/name with a port per protocol.
func newService(name string, ips []string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ips[0], ClusterIPs: ips, Ports: ports},
	}
}

// newSlice makes a slice of the Service ns/of.
func newSlice(name, of string, ports []discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: endpoints,
	}
}

func endpoint(addr string, conditions discoveryv1.EndpointConditions) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: conditions}
}

func backendsOf(texts ...string) []netip.AddrPort {
	var list []netip.AddrPort
	for _, text := range texts {
		list = append(list, netip.MustParseAddrPort(text))
	}
	return list
}

func TestServiceTable(t *testing.T) {
	ready := discoveryv1.EndpointConditions{Ready: ptr(true)}
	notReady := discoveryv1.EndpointConditions{Ready: ptr(false)}
	draining := discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
	ended := discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}
	http := corev1.ServicePort{Name: "http", Port: 80}
	dns := corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}
	httpAt := func(port int32) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: ptr("http"), Port: ptr(port)}
	}
	dnsAt := discoveryv1.EndpointPort{Name: ptr("dns"), Port: ptr(int32(5353)), Protocol: ptr(corev1.ProtocolUDP)}
	tests := []struct {
		name     string
		services []*corev1.Service
		slices   []*discoveryv1.EndpointSlice
		want     []control.Service
	}{
		{"ports by name and protocol", []*corev1.Service{newService("a", []string{"10.96.0.5"}, http, dns)},
			[]*discoveryv1.EndpointSlice{newSlice("a-1", "a", []discoveryv1.EndpointPort{httpAt(8080), dnsAt}, endpoint("10.244.1.2", ready))},
			[]control.Service{{Namespace: "ns", Name: "a", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, Ports: []control.ServicePort{
				{Name: "http", Protocol: "tcp", Port: 80, Backends: backendsOf("10.244.1.2:8080")},
				{Name: "dns", Protocol: "udp", Port: 53, Backends: backendsOf("10.244.1.2:5353")},
			}}}},
		{"slices of both families, doubles, different ports", []*corev1.Service{newService("a", []string{"10.96.0.5", "fd00:96::5"}, http)},
			[]*discoveryv1.EndpointSlice{
				newSlice("a-1", "a", []discoveryv1.EndpointPort{httpAt(8080)}, endpoint("10.244.1.2", ready), endpoint("10.244.2.2", discoveryv1.EndpointConditions{})),
				newSlice("a-2", "a", []discoveryv1.EndpointPort{httpAt(8080)}, endpoint("10.244.1.2", ready)),
				newSlice("a-3", "a", []discoveryv1.EndpointPort{httpAt(9090)}, endpoint("fd00:10:244:1::2", ready)),
				newSlice("b-1", "b", []discoveryv1.EndpointPort{httpAt(8080)}, endpoint("10.244.3.2", ready)),
			},
			[]control.Service{{Namespace: "ns", Name: "a", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("fd00:96::5")}, Ports: []control.ServicePort{
				{Name: "http", Protocol: "tcp", Port: 80, Backends: backendsOf("10.244.1.2:8080", "10.244.2.2:8080", "[fd00:10:244:1::2]:9090")},
			}}}},
		{"the ready go before those that drain", []*corev1.Service{newService("a", []string{"10.96.0.5"}, http)},
			[]*discoveryv1.EndpointSlice{newSlice("a-1", "a", []discoveryv1.EndpointPort{httpAt(80)}, endpoint("10.244.1.1", draining), endpoint("10.244.1.2", ready), endpoint("10.244.1.3", notReady))},
			[]control.Service{{Namespace: "ns", Name: "a", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, Ports: []control.ServicePort{
				{Name: "http", Protocol: "tcp", Port: 80, Backends: backendsOf("10.244.1.2:80")},
			}}}},
		{"the last one that drains", []*corev1.Service{newService("a", []string{"10.96.0.5"}, http)},
			[]*discoveryv1.EndpointSlice{newSlice("a-1", "a", []discoveryv1.EndpointPort{httpAt(80)}, endpoint("10.244.1.1", draining), endpoint("10.244.1.2", ended), endpoint("10.244.1.3", notReady))},
			[]control.Service{{Namespace: "ns", Name: "a", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}, Ports: []control.ServicePort{
				{Name: "http", Protocol: "tcp", Port: 80, Backends: backendsOf("10.244.1.1:80")},
			}}}},
		{"nothing to balance", []*corev1.Service{
			newService("headless", []string{corev1.ClusterIPNone}, http),
			newService("sctp", []string{"10.96.0.6"}, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolSCTP}),
			{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "alias"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, Ports: []corev1.ServicePort{http}}},
			newService("silent", []string{"10.96.0.7"}, http),
		}, nil,
			[]control.Service{{Namespace: "ns", Name: "silent", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: []control.ServicePort{{Name: "http", Protocol: "tcp", Port: 80}}}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			table := newServiceTable()
			for _, service := range test.services {
				table.services.Add(service)
			}
			for _, slice := range test.slices {
				table.slices.Add(slice)
			}
			services, endpoints, _ := table.read()
			if got := joinServices(services, endpoints); !reflect.DeepEqual(got, test.want) {
				t.Errorf("table is\n%+v, want\n%+v", got, test.want)
			}
		})
	}
}

// TestServiceTableDelivery holds that nothing is delivered before both halves
// are whole, nothing twice, and that a delivered table stays as it is.
func TestServiceTableDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newServiceTable()
		var got [][]control.Service
		go table.deliver(t.Context(), func(services []control.Service) { got = append(got, services) })
		settle := func(want int) {
			t.Helper()
			time.Sleep(2 * serviceCoalesce)
			synctest.Wait()
			if len(got) != want {
				t.Fatalf("%d tables were delivered, want %d", len(got), want)
			}
		}
		port := corev1.ServicePort{Port: 80}
		at := []discoveryv1.EndpointPort{{Port: ptr(int32(80))}}
		slice := newSlice("a-1", "a", at, endpoint("10.244.1.1", discoveryv1.EndpointConditions{}))
		table.services.Replace([]any{newService("a", []string{"10.96.0.5"}, port)}, "1")
		settle(0)
		table.slices.Replace([]any{slice}, "1")
		settle(1)
		table.slices.Update(slice)
		settle(1)
		before := slices.Clone(got[0][0].Ports[0].Backends)
		table.slices.Update(newSlice("a-1", "a", at, endpoint("10.244.1.1", discoveryv1.EndpointConditions{}), endpoint("10.244.1.0", discoveryv1.EndpointConditions{})))
		settle(2)
		if after := got[1][0].Ports[0].Backends; len(after) != 2 || !slices.Equal(before, got[0][0].Ports[0].Backends) {
			t.Errorf("backends were %v, then %v", got[0][0].Ports[0].Backends, after)
		}
		table.services.Update(newService("a", []string{corev1.ClusterIPNone}, port))
		settle(3)
		table.services.Update(newService("b", []string{"10.96.0.6"}, port))
		table.slices.Delete(slice)
		settle(4)
		table.services.Replace(nil, "9")
		settle(5)
		if len(got[4]) != 0 {
			t.Errorf("the last table holds %+v", got[4])
		}
	})
}
