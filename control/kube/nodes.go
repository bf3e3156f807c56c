package kube

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/control"
	"github.com/weft-net/weft/control/lease"
)

// Run watches all Nodes and delivers a Snapshot whenever a lease has changed,
// from one goroutine, at most one per coalesce. It keeps the own Node as
// Acquire and Ready left it. It returns when ctx is done, or when the own Node
// has been given another subnet.
//
// A Node is a member while it carries the kube-subnet-manager annotation;
// flannel goes on believing in one that has lost it.
func (s *Source) Run(ctx context.Context, deliver func(control.Snapshot)) error {
	name, err := s.NodeName(ctx)
	if err != nil {
		return err
	}
	s.nodes.setOwn(name)
	reflector := cache.NewReflectorWithOptions(&cache.ListWatch{
		ListWithContextFunc:  s.list,
		WatchFuncWithContext: s.watch,
	}, &corev1.Node{}, s.nodes, cache.ReflectorOptions{
		Name:    "nodes",
		Backoff: &wait.Backoff{Duration: firstRetry, Factor: 2, Jitter: 0.5, Cap: lastRetry, Steps: 10},
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		reflector.RunWithContext(ctx)
		return ctx.Err()
	})
	group.Go(func() error { return s.deliver(ctx, deliver) })
	group.Go(func() error { return s.keepOwn(ctx) })
	if s.cfg.Invite != nil {
		group.Go(func() error { return s.keepHold(ctx) })
	} else {
		group.Go(func() error { return s.tellEvents(ctx, name) })
	}
	return group.Wait()
}

// coalesce is the least time between two Snapshots.
const coalesce = 50 * time.Millisecond

// deliver hands over a Snapshot after every change.
func (s *Source) deliver(ctx context.Context, deliver func(control.Snapshot)) error {
	var expiry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.nodes.changed:
		case <-expiry:
		}
		snapshot, next, ok := s.nodes.snapshot(time.Now())
		if expiry = nil; !next.IsZero() {
			expiry = time.After(time.Until(next))
		}
		if !ok {
			s.waiting(topicNodes, "the API server knows no Node at all; keeping what was known")
			continue
		}
		s.waiting(topicNodes, "")
		deliver(snapshot)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(coalesce):
		}
	}
}

// list is the fallback for API servers without streaming lists.
func (s *Source) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list, err := s.api.listNodes(ctx, options)
	if err != nil {
		s.lost(topicWatch, "list Nodes", err)
		return nil, err
	}
	s.waiting(topicWatch, "")
	return list, nil
}

// watch opens a watch or a streaming list of Nodes.
func (s *Source) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return s.openWatch(ctx, topicWatch, "watch Nodes", func() (watch.Interface, error) { return s.api.watchNodes(ctx, options) })
}

// openWatch opens a watch for a Reflector. While the API server cannot be
// reached it tries on by itself: the Reflector would not hear of ctx while it
// waits, and would then ask for a whole list.
func (s *Source) openWatch(ctx context.Context, about topic, what string, open func() (watch.Interface, error)) (watch.Interface, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		stream, err := open()
		if err == nil {
			s.waiting(about, "")
			return stream, nil
		}
		var answer apierrors.APIStatus
		if errors.As(err, &answer) && !apierrors.IsTooManyRequests(err) {
			// Expired versions and servers without streaming lists are routine.
			if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) && !apierrors.IsInvalid(err) {
				s.lost(about, what, err)
			}
			return nil, err
		}
		s.lost(about, what, err)
		if err := pause(ctx, delay(err, wait)); err != nil {
			return nil, err
		}
	}
}

// lost reports why there is no news.
func (s *Source) lost(about topic, what string, err error) {
	if !errors.Is(err, context.Canceled) {
		s.waiting(about, what+": "+plain(err))
	}
}

// nodes keeps what of each Node makes a lease, and the own Node's part that
// weft writes. It is a cache.TransformingStore: a Reflector fills it.
type nodes struct {
	prefix     lease.Prefix
	ownChanged func()
	changed    chan struct{} // a token: some lease has changed

	mu      sync.Mutex
	ownName string
	own     *corev1.Node // trimmed; nil: there is none
	members map[string]member
	whole   bool // the first list is whole
}

// member is one Node, managed or not.
type member struct {
	lease   control.Lease
	managed bool
	expires time.Time // of a guest's invite; zero: no guest
}

func (m member) equal(other member) bool {
	return m.managed == other.managed && m.expires.Equal(other.expires) && m.lease.Backend == other.lease.Backend &&
		m.lease.Offers == other.lease.Offers && m.lease.Guest == other.lease.Guest &&
		slices.Equal(m.lease.Legs, other.lease.Legs) && slices.Equal(m.lease.Problems, other.lease.Problems)
}

func newNodes(prefix lease.Prefix, ownChanged func()) *nodes {
	return &nodes{prefix: prefix, ownChanged: ownChanged, changed: make(chan struct{}, 1), members: map[string]member{}}
}

func (n *nodes) setOwn(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ownName = name
}

// ownNode is the own Node, nil if there is none; known is false before the
// first list is whole.
func (n *nodes) ownNode() (node *corev1.Node, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.own, n.whole
}

// repaired takes over what the API server has made of the own Node, unless there
// was news meanwhile: the watch may be about to be opened anew.
func (n *nodes) repaired(before, after *corev1.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.own == before {
		n.put(after)
	}
}

// snapshot is every lease at the moment now, without those of guests whose
// invite has expired; next is when the next one does, zero if none will. There
// is none before the first list is whole, or when it holds no Node at all: this
// host runs on one, so that is an API server that has lost its memory.
func (n *nodes) snapshot(now time.Time) (snapshot control.Snapshot, next time.Time, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.whole || len(n.members) == 0 {
		return control.Snapshot{}, time.Time{}, false
	}
	snapshot.Complete = true
	snapshot.Leases = make([]control.Lease, 0, len(n.members))
	for _, name := range slices.Sorted(maps.Keys(n.members)) {
		m := n.members[name]
		if !m.managed {
			continue
		}
		if !m.expires.IsZero() && !now.Before(m.expires) {
			snapshot.Problems = append(snapshot.Problems, control.Problem{Source: name, Reason: "a guest whose invite has expired"})
			continue
		}
		if !m.expires.IsZero() && (next.IsZero() || m.expires.Before(next)) {
			next = m.expires
		}
		snapshot.Leases = append(snapshot.Leases, m.lease)
	}
	return snapshot, next, true
}

// put stores a Node. n.mu must be held.
func (n *nodes) put(object any) {
	node, ok := object.(*corev1.Node)
	if !ok {
		return
	}
	var m member
	m.lease, m.managed = lease.FromNode(nodeData(node), n.prefix)
	if isGuest(node) {
		m.expires = guestExpiry(node)
	}
	if before, known := n.members[node.Name]; !known || !before.equal(m) {
		n.members[node.Name] = m
		n.touch()
	}
	if node.Name == n.ownName {
		n.own = n.trim(node)
		n.ownChanged()
	}
}

// touch tells that some lease has changed.
func (n *nodes) touch() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Add implements cache.ReflectorStore.
func (n *nodes) Add(object any) error { return n.Update(object) }

// Update implements cache.ReflectorStore.
func (n *nodes) Update(object any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.put(object)
	return nil
}

// Delete implements cache.ReflectorStore.
func (n *nodes) Delete(object any) error {
	node, ok := object.(*corev1.Node)
	if !ok {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.remove(node.Name)
	return nil
}

// remove forgets a Node. n.mu must be held.
func (n *nodes) remove(name string) {
	delete(n.members, name)
	n.touch()
	if name == n.ownName {
		n.own = nil
		n.ownChanged()
	}
}

// Replace implements cache.ReflectorStore: objects is the whole list.
func (n *nodes) Replace(objects []any, _ string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	listed := map[string]bool{}
	for _, object := range objects {
		n.put(object)
		if node, ok := object.(*corev1.Node); ok {
			listed[node.Name] = true
		}
	}
	for name := range n.members {
		if !listed[name] {
			n.remove(name)
		}
	}
	if !n.whole {
		n.whole = true
		n.touch()
		n.ownChanged()
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (n *nodes) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a streaming list is trimmed
// object by object, so that thousands of whole Nodes are never held at once.
func (n *nodes) Transformer() cache.TransformFunc {
	return func(object any) (any, error) {
		if node, ok := object.(*corev1.Node); ok {
			return n.trim(node), nil
		}
		return object, nil
	}
}

// trim copies the little of a Node that is ever read.
func (n *nodes) trim(node *corev1.Node) *corev1.Node {
	trimmed := &corev1.Node{}
	trimmed.Name, trimmed.ResourceVersion = node.Name, node.ResourceVersion
	trimmed.Spec.PodCIDR, trimmed.Spec.PodCIDRs = node.Spec.PodCIDR, node.Spec.PodCIDRs
	trimmed.Annotations = map[string]string{}
	for name, value := range node.Annotations {
		if strings.HasPrefix(name, string(n.prefix)) {
			trimmed.Annotations[name] = value
		}
	}
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			trimmed.Status.Addresses = append(trimmed.Status.Addresses, address)
		}
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeNetworkUnavailable || condition.Type == corev1.NodeReady && isGuest(node) {
			trimmed.Status.Conditions = append(trimmed.Status.Conditions, condition)
		}
	}
	if isGuest(node) {
		trimmed.Labels = map[string]string{guestLabel: node.Labels[guestLabel]}
		trimmed.Annotations[expiresAnnotation] = node.Annotations[expiresAnnotation]
	}
	return trimmed
}

// podCIDRs are a Node's pod CIDRs: API servers before dual stack have one.
func podCIDRs(node *corev1.Node) []string {
	if len(node.Spec.PodCIDRs) == 0 && node.Spec.PodCIDR != "" {
		return []string{node.Spec.PodCIDR}
	}
	return node.Spec.PodCIDRs
}

func nodeData(node *corev1.Node) lease.NodeData {
	return lease.NodeData{Name: node.Name, PodCIDRs: podCIDRs(node), Annotations: node.Annotations, Guest: isGuest(node)}
}
