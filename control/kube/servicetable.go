package kube

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weft-net/weft/control"
)

// serviceTable joins Services and EndpointSlices.
type serviceTable struct {
	changed  chan struct{} // a token
	services *objects[control.Service]
	slices   *objects[endpointSlice]
}

// endpointSlice is the little of an EndpointSlice that is ever read.
type endpointSlice struct {
	service objectKey
	ports   []endpointPort
	// ready take traffic; draining still answer, and are used where nobody is ready.
	ready, draining []netip.Addr
}

type endpointPort struct {
	name, protocol string
	port           uint16
}

func newServiceTable() *serviceTable {
	t := &serviceTable{changed: make(chan struct{}, 1)}
	touch := func() {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
	t.services = newObjects(readService, touch)
	t.slices = newObjects(readSlice, touch)
	return t
}

// deliver hands over a table after every change, once both halves are whole.
func (t *serviceTable) deliver(ctx context.Context, deliver func([]control.Service)) error {
	var last []control.Service
	first := true
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.changed:
		}
		services, slicesOf, ok := t.read()
		if !ok {
			continue
		}
		if table := joinServices(services, slicesOf); first || !slices.EqualFunc(last, table, sameService) {
			first, last = false, table
			deliver(slices.Clone(table))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(serviceCoalesce):
		}
	}
}

func (t *serviceTable) read() (map[objectKey]control.Service, map[objectKey]endpointSlice, bool) {
	services, wholeServices := t.services.read()
	endpoints, wholeSlices := t.slices.read()
	return services, endpoints, wholeServices && wholeSlices
}

func sameService(a, b control.Service) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && slices.Equal(a.ClusterIPs, b.ClusterIPs) &&
		slices.EqualFunc(a.Ports, b.Ports, func(p, q control.ServicePort) bool {
			return p.Name == q.Name && p.Protocol == q.Protocol && p.Port == q.Port && slices.Equal(p.Backends, q.Backends)
		})
}

// readService is a Service without backends; not ok: nothing to balance.
func readService(object *corev1.Service) (control.Service, bool) {
	service := control.Service{Namespace: object.Namespace, Name: object.Name, ClusterIPs: clusterIPs(object)}
	for _, port := range object.Spec.Ports {
		if name := protocolName(port.Protocol); name != "" && port.Port > 0 && port.Port <= 65535 {
			service.Ports = append(service.Ports, control.ServicePort{Name: port.Name, Protocol: name, Port: uint16(port.Port)})
		}
	}
	return service, object.Spec.Type != corev1.ServiceTypeExternalName && len(service.ClusterIPs) > 0 && len(service.Ports) > 0
}

// readSlice is an EndpointSlice; not ok: it is nobody's, or names hosts. The
// conditions' absence means ready, and serving what ready is.
func readSlice(object *discoveryv1.EndpointSlice) (endpointSlice, bool) {
	slice := endpointSlice{service: objectKey{object.Namespace, object.Labels[discoveryv1.LabelServiceName]}}
	for _, port := range object.Ports {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		name := protocolName(protocol)
		if name == "" || port.Port == nil || *port.Port <= 0 || *port.Port > 65535 {
			continue
		}
		read := endpointPort{protocol: name, port: uint16(*port.Port)}
		if port.Name != nil {
			read.name = *port.Name
		}
		slice.ports = append(slice.ports, read)
	}
	for _, endpoint := range object.Endpoints {
		if len(endpoint.Addresses) == 0 {
			continue
		}
		// All of an endpoint's addresses are the same endpoint: the first will do.
		addr, err := netip.ParseAddr(endpoint.Addresses[0])
		if err != nil {
			continue
		}
		ready := orElse(endpoint.Conditions.Ready, true)
		switch {
		case ready:
			slice.ready = append(slice.ready, addr.Unmap())
		case orElse(endpoint.Conditions.Serving, false) && orElse(endpoint.Conditions.Terminating, false):
			slice.draining = append(slice.draining, addr.Unmap())
		}
	}
	return slice, slice.service.name != "" && object.AddressType != discoveryv1.AddressTypeFQDN
}

func orElse(value *bool, otherwise bool) bool {
	if value == nil {
		return otherwise
	}
	return *value
}

// joinServices gives every Service port its backends. As kube-proxy does, it
// falls back on endpoints that are shutting down where no other is left, so
// that the end of the last one loses no connection.
func joinServices(services map[objectKey]control.Service, endpoints map[objectKey]endpointSlice) []control.Service {
	bySlice := map[objectKey][]endpointSlice{}
	for _, slice := range endpoints {
		bySlice[slice.service] = append(bySlice[slice.service], slice)
	}
	table := make([]control.Service, 0, len(services))
	for _, key := range slices.SortedFunc(maps.Keys(services), objectKey.compare) {
		service := services[key]
		service.Ports = slices.Clone(service.Ports)
		for i := range service.Ports {
			service.Ports[i].Backends = backends(service.Ports[i], bySlice[key])
		}
		table = append(table, service)
	}
	return table
}

func backends(port control.ServicePort, endpoints []endpointSlice) []netip.AddrPort {
	var found []netip.AddrPort
	for _, is4 := range []bool{true, false} {
		var ready, draining []netip.AddrPort
		for _, slice := range endpoints {
			for _, p := range slice.ports {
				if p.name != port.Name || p.protocol != port.Protocol {
					continue
				}
				ready = appendFamily(ready, slice.ready, p.port, is4)
				draining = appendFamily(draining, slice.draining, p.port, is4)
			}
		}
		if len(ready) == 0 {
			ready = draining
		}
		found = append(found, ready...)
	}
	slices.SortFunc(found, netip.AddrPort.Compare)
	return slices.Compact(found)
}

func appendFamily(to []netip.AddrPort, addrs []netip.Addr, port uint16, is4 bool) []netip.AddrPort {
	for _, addr := range addrs {
		if addr.Is4() == is4 {
			to = append(to, netip.AddrPortFrom(addr, port))
		}
	}
	return to
}

// objects keeps what V is made of every object that is of use. It is a
// cache.ReflectorStore.
type objects[V any] struct {
	convert func(object any) (V, bool)
	changed func()

	mu    sync.Mutex
	kept  map[objectKey]V
	whole bool
}

func newObjects[O, V any](convert func(O) (V, bool), changed func()) *objects[V] {
	anyObject := func(object any) (value V, ok bool) {
		if typed, is := object.(O); is {
			return convert(typed)
		}
		return value, false
	}
	return &objects[V]{convert: anyObject, changed: changed, kept: map[objectKey]V{}}
}

// read copies what is kept; whole is false before the first list is.
func (o *objects[V]) read() (kept map[objectKey]V, whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.kept), o.whole
}

// keyOf names an API object.
func keyOf(object any) (objectKey, bool) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return objectKey{}, false
	}
	return objectKey{accessor.GetNamespace(), accessor.GetName()}, true
}

// put keeps an object, or drops it if it is of no use any more. o.mu must be held.
func (o *objects[V]) put(object any) (key objectKey) {
	key, ok := keyOf(object)
	if !ok {
		return key
	}
	if value, useful := o.convert(object); useful {
		o.kept[key] = value
	} else {
		delete(o.kept, key)
	}
	return key
}

// Add implements cache.ReflectorStore.
func (o *objects[V]) Add(object any) error { return o.Update(object) }

// Update implements cache.ReflectorStore.
func (o *objects[V]) Update(object any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.put(object)
	o.changed()
	return nil
}

// Delete implements cache.ReflectorStore.
func (o *objects[V]) Delete(object any) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if key, ok := keyOf(object); ok {
		delete(o.kept, key)
		o.changed()
	}
	return nil
}

// Replace implements cache.ReflectorStore: list is the whole list.
func (o *objects[V]) Replace(list []any, _ string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	listed := map[objectKey]bool{}
	for _, object := range list {
		listed[o.put(object)] = true
	}
	maps.DeleteFunc(o.kept, func(key objectKey, _ V) bool { return !listed[key] })
	o.whole = true
	o.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (o *objects[V]) Resync() error { return nil }
