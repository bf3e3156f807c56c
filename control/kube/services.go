package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/control"
)

// serviceCoalesce is the least time between two tables of Services: a rollout
// changes slices many times a second.
const serviceCoalesce = 200 * time.Millisecond

// WatchServices follows the Services and EndpointSlices of all namespaces and
// delivers the whole table, sorted by namespace and name, whenever it has
// changed: first once both are known whole, from one goroutine, until ctx is
// done. Services without a ClusterIP are not in it. The table is the
// receiver's, and is never changed afterwards.
func (s *Source) WatchServices(ctx context.Context, deliver func([]control.Service)) error {
	table := newServiceTable()
	group, ctx := errgroup.WithContext(ctx)
	follow := func(resource string, begin func() *rest.Request, store cache.ReflectorStore, sample, list runtime.Object) {
		follower := &follower{source: s, resource: resource, begin: begin, list: list}
		reflector := cache.NewReflectorWithOptions(&cache.ListWatch{
			ListWithContextFunc:  follower.all,
			WatchFuncWithContext: follower.watch,
		}, sample, store, cache.ReflectorOptions{Name: resource})
		group.Go(func() error {
			reflector.RunWithContext(ctx)
			return ctx.Err()
		})
	}
	follow("services", func() *rest.Request { return s.api.rest.Get() }, table.services, &corev1.Service{}, &corev1.ServiceList{})
	follow("endpointslices", func() *rest.Request { return s.api.discovery.Get() }, table.slices, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})
	group.Go(func() error { return table.deliver(ctx, deliver) })
	return group.Wait()
}

// follower lists and watches one resource for a Reflector.
type follower struct {
	source   *Source
	resource string
	begin    func() *rest.Request
	list     runtime.Object // an empty list
}

func (f *follower) request() *rest.Request { return f.begin().MaxRetries(0).Resource(f.resource) }

func (f *follower) all(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list := f.list.DeepCopyObject()
	if err := f.request().VersionedParams(&options, f.source.api.params).Do(ctx).Into(list); err != nil {
		f.source.lost(topicServices, "list "+f.resource, err)
		return nil, err
	}
	f.source.waiting(topicServices, "")
	return list, nil
}

func (f *follower) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return f.source.openWatch(ctx, topicServices, "watch "+f.resource, func() (watch.Interface, error) {
		return f.source.api.watch(ctx, f.request(), options)
	})
}

// FindDNS waits for an answer of the API server and returns the addresses of
// the cluster's DNS servers; none where its Service has another name than
// nearly everywhere.
func (s *Source) FindDNS(ctx context.Context) ([]netip.Addr, error) {
	var found []netip.Addr
	err := s.retry(ctx, topicServices, func(ctx context.Context) (err error) {
		found, err = s.api.findDNS(ctx)
		return err
	})
	return found, err
}

// findDNS looks for the Service that Kubernetes' own DNS add-ons make.
func (a api) findDNS(ctx context.Context) ([]netip.Addr, error) {
	var service corev1.Service
	err := a.rest.Verb(http.MethodGet).MaxRetries(0).Namespace("kube-system").Resource("services").Name("kube-dns").Do(ctx).Into(&service)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get Service kube-system/kube-dns: %w", err)
	}
	return clusterIPs(&service), nil
}

// clusterIPs are a Service's virtual addresses; none if it is headless or an
// alias. API servers before dual stack have one.
func clusterIPs(service *corev1.Service) []netip.Addr {
	texts := service.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{service.Spec.ClusterIP}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// protocolName is control's name of a protocol; empty for those that no
// device-less host can carry. Kubernetes takes none for TCP.
func protocolName(protocol corev1.Protocol) string {
	switch protocol {
	case corev1.ProtocolTCP, "":
		return "tcp"
	case corev1.ProtocolUDP:
		return "udp"
	}
	return ""
}

// objectKey names an object among those of its kind.
type objectKey struct{ namespace, name string }

func (k objectKey) compare(other objectKey) int {
	if order := strings.Compare(k.namespace, other.namespace); order != 0 {
		return order
	}
	return strings.Compare(k.name, other.name)
}
